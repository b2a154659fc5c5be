"""ensemble_predict.py: an ensemble predicts what its members' predictions come to; members that are gone or others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import predict
import train
from core.calibration import fit_name
from core.errors import UserError
from core.metrics import probabilities
from core.stacking import stacked_logits
from ensemble_predict import is_ensemble
from jobs import ensemble, feedback
from tests.conftest import save_tiny, toy_rows, write_jsonl

TEXTS = [row["text"] for row in toy_rows(20, 7)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two runs each with one label a row and with several, of a BERT and of a RoBERTa with another length."""
    home = tmp_path_factory.mktemp("ensembles")
    models = [save_tiny(home / family, family) for family in ("bert", "roberta")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        patch.setattr("torch.utils.tensorboard.SummaryWriter.add_figure", lambda *_: None)
        for kind in ("one", "list"):
            data = {name: write_jsonl(home / f"{kind}-{name}.jsonl", toy_rows(48, seed, kind))
                    for seed, name in enumerate(("train", "val"))}  # fmt: skip
            for k, model in enumerate(models):
                flags = [f"--{name}_data={path}" for name, path in data.items()]
                flags += [
                    f"--model_name={model}",
                    f"--cache_dir={home / 'cache'}",
                    f"--output_dir={home / kind}{k}",
                ]
                flags += [
                    "--epochs=1",
                    "--learning_rate=1e-2",
                    "--amp=off",
                    "--batch_size=16",
                    "--max_tokens=512",
                ]
                train.main([*flags, f"--max_length={8 + 24 * k}"])
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch) -> Path:
    """A copy of the runs, to be changed."""
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)
    for kind in ("one", "list"):
        for k in range(2):
            shutil.copytree(made / f"{kind}{k}", tmp_path / f"{kind}{k}")
    return tmp_path


def combined(home: Path, kind: str, method: str) -> Path:
    runs = [str(home / f"{kind}{k}") for k in range(2)]
    ensemble.main([*runs, "--output_dir", str(home / "out"), "--method", method])
    return home / "out"


def members_say(home: Path, kind: str) -> np.ndarray:
    return np.stack([predict.load(home / f"{kind}{k}").scores(TEXTS) for k in range(2)])


@pytest.mark.parametrize("kind", ["one", "list"])
def test_a_mean_is_the_mean_of_what_the_members_predict(home, kind):
    rows = predict.load(combined(home, kind, "mean"))(TEXTS)
    members = [predict.load(home / f"{kind}{k}")(TEXTS) for k in range(2)]
    for row, *own in zip(rows, *members, strict=True):
        for name, value in row["probabilities"].items():
            assert value == pytest.approx(sum(one["probabilities"][name] for one in own) / 2, abs=2e-6)
        if kind == "one":
            assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_labels_hold_from_the_thresholds_of_the_ensemble(home):
    out = combined(home, "list", "mean")
    tuned = json.loads((out / "validation" / "thresholds.json").read_text())["thresholds"]
    for row in predict.load(out)(TEXTS):
        assert row["labels"] == [name for name, p in row["probabilities"].items() if p >= tuned[name]]


@pytest.mark.parametrize("kind", ["one", "list"])
def test_a_meta_learner_sees_the_members_scores(home, kind):
    out = combined(home, kind, "stacking")
    expected = stacked_logits(members_say(home, kind), np.load(out / "stacking.npy"), kind == "list")
    found = predict.load(out).scores(TEXTS)
    assert np.allclose(found, expected, atol=1e-4)


def test_weights_are_those_that_are_stored(home):
    out = combined(home, "one", "weighted")
    weights = [
        member["weight"] for member in json.loads((out / "run.json").read_text())["ensemble"]["members"]
    ]
    expected = np.tensordot(
        weights, probabilities(members_say(home, "one").reshape(-1, 3), False).reshape(2, -1, 3), 1
    )
    assert np.allclose(probabilities(predict.load(out).scores(TEXTS), False), expected, atol=1e-5)


def test_columns_of_a_member_in_another_order(home):
    out = combined(home, "one", "mean")
    before = predict.load(out)(TEXTS)
    record = json.loads((out / "run.json").read_text())
    record["model"]["label_names"] = record["model"]["label_names"][::-1]
    (out / "run.json").write_text(json.dumps(record))
    (out / "validation" / "calibration.json").unlink()
    after = predict.load(out)(TEXTS)
    assert [row["label"] for row in after] == [row["label"] for row in before]
    assert [dict(sorted(row["probabilities"].items())) for row in after] == [
        dict(sorted(row["probabilities"].items())) for row in before
    ]


def test_a_member_without_weight_is_not_loaded(home):
    out = combined(home, "one", "mean")
    record = json.loads((out / "run.json").read_text())
    for member, weight in zip(record["ensemble"]["members"], (0.0, 1.0)):
        member["weight"] = weight
    (out / "run.json").write_text(json.dumps(record))
    shutil.rmtree(home / "one0")
    assert predict.load(out)(TEXTS) == predict.load(home / "one1")(TEXTS)


def test_from_the_shell(home, capsys):
    out, data = combined(home, "one", "mean"), home / "rows.jsonl"
    write_jsonl(data, toy_rows(20, 7))
    result = predict.main([str(out), "--data", str(data), "--output", str(home / "got.jsonl"), "--evaluate"])
    rows = [json.loads(line) for line in (home / "got.jsonl").read_text().splitlines()]
    assert rows == predict.load(out)(TEXTS)
    right = [row["label"] == own["label"] for row, own in zip(rows, toy_rows(20, 7), strict=True)]
    assert result["accuracy"] == pytest.approx(np.mean(right))
    with pytest.raises(UserError, match="is an ensemble; ask one of its members"):
        predict.main([str(out), "--data", str(data), "--output", str(home / "x.jsonl"), "--generate"])


def test_the_calibration_of_the_ensemble_is_used_and_the_members_are_not(home):
    out = combined(home, "one", "mean")
    plain = predict.load(out)
    names = plain.label_names
    for folder, temperature in ((out, 2.0), (home / "one0", 5.0)):
        fit = {"method": "temperature", "parameters": {"temperature": temperature}, "label_names": names}
        (folder / "validation" / "calibration.json").write_text(json.dumps(fit))
    calibrated = predict.load(out)
    scores = calibrated.scores(TEXTS)
    assert np.allclose(scores, plain.scores(TEXTS), atol=1e-5)
    shown = np.array([list(row["probabilities"].values()) for row in calibrated(TEXTS)])
    assert np.allclose(shown, probabilities(scores / 2, False), atol=1e-6)
    assert fit_name("temperature", {"temperature": 2.0}).startswith("temperature")
    assert np.allclose([list(row["probabilities"].values()) for row in predict.load(out, raw=True)(TEXTS)],
                       probabilities(scores, False), atol=1e-5)  # fmt: skip


def test_moved_together(home):
    out = combined(home, "one", "mean")
    before = predict.load(out)(TEXTS)
    (home / "there").mkdir()
    for name in ("out", "one0", "one1"):
        shutil.move(home / name, home / "there" / name)
    assert predict.load(home / "there" / "out")(TEXTS) == before


def test_a_member_that_is_gone_is_named(home):
    out = combined(home, "one", "mean")
    shutil.rmtree(home / "one1")
    with pytest.raises(UserError, match=rf"{out}: its member {home / 'one1'} is gone"):
        predict.load(out)


def test_a_member_that_was_trained_again_is_named(home):
    out = combined(home, "one", "mean")
    path = home / "one1" / "validation" / "logits.npy"
    np.save(path, np.load(path) + 1)
    with pytest.raises(UserError, match=rf"its member {home / 'one1'} is another run than it was"):
        predict.load(out)


def test_what_needs_a_tokenizer(home):
    out = combined(home, "one", "mean")
    write_jsonl(home / "rows.jsonl", toy_rows(5, 7))
    with pytest.raises(UserError, match="is an ensemble, which has no tokenizer of its own"):
        feedback.main(
            ["collect", str(out), "--data", str(home / "rows.jsonl"), "--output", str(home / "f.json")]
        )


def test_a_text_alone_is_no_list(home):
    with pytest.raises(TypeError, match="found one string"):
        predict.load(combined(home, "one", "mean"))("a text")


def test_which_folders_are_ensembles(home):
    assert is_ensemble(combined(home, "one", "mean"))
    assert not is_ensemble(home / "one0")
    assert not is_ensemble(home / "one0" / "best_model")
    assert not is_ensemble(home / "nowhere")
