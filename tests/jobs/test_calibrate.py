"""jobs/calibrate.py on made-up scores: what is fitted on which rows, what is refused, what is written."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit, softmax

from core.calibration import apply_calibration, read_fit
from core.errors import UserError
from core.metrics import calibration_summary
from core.rows import RowFormat, file_sha256
from core.spent import row_hashes, write_uses
from jobs import calibrate
from jobs.calibration_files import draw
from tests.conftest import write_jsonl

NAMES = ["a", "b", "c"]
FLAGS = {"validation": "val_data", "calibration": "calibration_data", "test": "test_data"}
SEEDS = {"validation": 0, "calibration": 1, "test": 2, "data": 3}


def made_up(num_rows, several, seed, temperature=2.5):
    """Too sure logits, and the rows that they are of."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0 * several, 1.5, (num_rows, 3)).astype(np.float32)
    if several:
        truth = rng.random(logits.shape) < expit(logits)
        labels = [[name for name, holds in zip(NAMES, row) if holds] for row in truth]
    else:
        drawn = (rng.random((num_rows, 1)) < softmax(logits, axis=1).cumsum(axis=1)).argmax(axis=1)
        labels = [NAMES[c] for c in drawn]
    rows = [{"text": f"row {seed} {k}", "labels" if several else "label": y} for k, y in enumerate(labels)]
    return logits * temperature, rows


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder without training: make_run(several, {split: number of rows})."""

    def make(several=False, sizes=None, **made):
        folder, uses = tmp_path / "run", {"train": SimpleNamespace(hashes=row_hashes(["a training row"]))}
        record = {"status": "finished", "arguments": {}, "data": {}}
        row_format = {"label_field": "labels"} if several else {}
        record["model"] = {"label_names": NAMES, "multi_label": several, "row_format": row_format}
        for split, num_rows in (sizes or {"validation": 200}).items():
            logits, rows = made_up(num_rows, several, SEEDS[split], **made)
            path = write_jsonl(tmp_path / f"{split}.jsonl", rows)
            (folder / split).mkdir(parents=True)
            np.save(folder / split / "logits.npy", logits)
            record["arguments"][FLAGS[split]], record["data"][split] = path, file_sha256(path)
            uses[split] = SimpleNamespace(hashes=row_hashes([row["text"] for row in rows]))
        own = {"thresholds": dict.fromkeys(NAMES, 0.3), "tuned_on": "its own rows"}
        if several:
            (folder / "validation" / "thresholds.json").write_text(json.dumps(own))
        (folder / "validation" / "calibration.json").write_text('{"ece": 0.5, "method": "none"}')
        (folder / "run.json").write_text(json.dumps(record))
        write_uses(folder, uses)
        return folder

    return make


def call(run, *flags):
    return calibrate.main([str(run), "--resamples", "100", *flags])


def held(run, name="calibration"):
    return json.loads((run / "validation" / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take more time than everything else."""
    monkeypatch.setattr("jobs.calibration_files.save_png", lambda figure, path: None)


def test_too_sure_scores_are_mended(make_run, capsys):
    run = make_run(sizes={"validation": 400, "test": 300})
    result = call(run)
    found = held(run)
    assert result["method"] == found["method"] == "temperature"
    assert found["temperature"] == pytest.approx(2.5, rel=0.2)
    assert found["ece"] == result["ece_after"] < 0.5 * result["ece_before"]
    assert found["nll"] == found["after"]["nll"] < found["before"]["nll"]
    assert found["test"]["after"]["nll"] < found["test"]["before"]["nll"]
    assert found["test"]["labels_changed"] == found["labels_changed"] == 0
    assert set(held(run)) >= {"ece", "brier", "nll", "bins", "temperature", "method"}  # DESIGN.md
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == result
    assert "temperature <- chosen" in printed


def test_after_is_cross_fitted_and_the_map_is_fitted_on_all_rows(make_run):
    run = make_run()
    call(run, "--method", "isotonic")
    found, (logits, rows) = held(run), made_up(200, False, SEEDS["validation"])
    truth = np.array([NAMES.index(row["label"]) for row in rows])
    shown = apply_calibration("isotonic", found["parameters"], logits, False)
    in_sample = calibration_summary(shown, truth, False)
    assert in_sample["nll"] < found["nll"]  # a fit flatters the rows that it was made on
    assert found["before"]["nll"] == pytest.approx(calibration_summary(logits, truth, False)["nll"])
    assert found["measured_on"] == "validation, cross-fitted in 5 folds"
    assert "200 validation rows" in found["fitted_on"]


@pytest.mark.parametrize("several", [False, True])
def test_the_same_command_gives_the_same_again(make_run, several):
    run = make_run(several)
    first = held(run), several and held(run, "thresholds")
    call(run)
    once = {path.name: path.read_bytes() for path in (run / "validation").glob("*.json")}
    call(run)
    assert {path.name: path.read_bytes() for path in (run / "validation").glob("*.json")} == once
    assert held(run, "calibration.uncalibrated") == first[0]
    assert ("thresholds.uncalibrated.json" in once) == several
    assert not several or held(run, "thresholds.uncalibrated") == first[1]


def test_calibration_rows_are_used_where_there_are_some(make_run):
    run = make_run(sizes={"validation": 60, "calibration": 150})
    assert call(run)["n"] == 150
    assert held(run)["measured_on"] == "calibration, cross-fitted in 5 folds"
    before = held(run)
    np.save(run / "validation" / "logits.npy", np.zeros((60, 3), np.float32))
    call(run)
    assert held(run) == before


def test_test_rows_choose_nothing(make_run):
    run = make_run(True, {"validation": 150, "test": 80})
    call(run)
    before, cuts = held(run), held(run, "thresholds")
    np.save(run / "test" / "logits.npy", np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32))
    call(run)
    after = held(run)
    assert before.pop("test") != after.pop("test")
    assert before == after
    assert cuts == held(run, "thresholds")


def test_thresholds_stand_on_calibrated_probabilities(make_run):
    run = make_run(True, {"validation": 300, "test": 200})
    call(run, "--method", "platt")
    fit, tuned = read_fit(run / "validation", NAMES)
    assert fit["method"] == "platt"
    logits, _ = made_up(200, True, SEEDS["test"])
    cuts = np.array([tuned["thresholds"][name] for name in NAMES])
    assert (cuts != 0.5).any()
    chosen = expit(apply_calibration(**fit, logits=logits, multi_label=True)) >= cuts
    truth = np.array(
        [[name in row["labels"] for name in NAMES] for row in made_up(200, True, SEEDS["test"])[1]]
    )
    f1 = 2 * (chosen & truth).sum(axis=0) / (chosen.sum(axis=0) + truth.sum(axis=0))
    assert held(run)["test"]["macro_f1"]["chosen"]["macro_f1"] == pytest.approx(f1.mean())
    for name, entry in tuned["classes"].items():
        assert entry["threshold"] == tuned["thresholds"][name]
        assert entry["exact_low"] <= entry["exact_high"]


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_no_thresholds_leaves_decisions_as_they_are(make_run, method):
    run = make_run(True)
    call(run, "--method", method, "--no_thresholds")
    fit, tuned = read_fit(run / "validation", NAMES)
    logits, _ = made_up(500, True, 9)
    cuts = np.array([tuned["thresholds"][name] for name in NAMES])
    assert (cuts != 0.3).all()
    calibrated = expit(apply_calibration(**fit, logits=logits, multi_label=True))
    np.testing.assert_array_equal(calibrated >= cuts, expit(logits) >= 0.3)
    assert tuned["tuned_on"].startswith("its own rows; carried over")


def test_a_kill_between_the_two_files_is_seen(make_run, monkeypatch):
    run = make_run(True)
    real = calibrate.write_files.__globals__["write_json"]

    def dying(path, value):
        if path.name == "thresholds.json":
            raise KeyboardInterrupt
        real(path, value)

    monkeypatch.setattr("jobs.calibration_files.write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        call(run, "--method", "temperature")
    with pytest.raises(UserError, match="are not of one fit"):
        read_fit(run / "validation", NAMES)
    assert read_fit(run / "validation", NAMES, raw=True)[1]["tuned_on"] == "its own rows"
    monkeypatch.undo()
    call(run, "--method", "temperature")
    assert read_fit(run / "validation", NAMES)[0]["method"] == "temperature"


# -- whose rows they are ----------------------------------------------------------------------------------------


@pytest.fixture
def scorer(monkeypatch):
    """Stands for the model: gives the made-up scores of the rows of a --data file."""

    def give(several=False):
        logits, rows = made_up(120, several, SEEDS["data"])
        of = {row["text"]: score for row, score in zip(rows, logits, strict=True)}
        of |= {"a training row": logits[0], "row 2 0": logits[0]}

        def load(run, device, amp, raw):
            assert (amp, raw) == ("run", True)
            return SimpleNamespace(
                label_names=NAMES,
                multi_label=several,
                row_format=RowFormat(label_field="labels") if several else RowFormat(),
                scores=lambda texts, pairs: np.stack([of[text] for text in texts]),
            )

        monkeypatch.setattr(calibrate, "load", load)
        return rows

    return give


@pytest.mark.parametrize("several", [False, True])
def test_rows_of_a_file(make_run, scorer, tmp_path, several):
    run, rows = make_run(several), scorer(several)
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    assert call(run, "--data", data)["n"] == 120
    found = held(run)
    assert found["measured_on"] == "data, cross-fitted in 5 folds"
    assert found["fitted_on"] == f"{data}, 120 data rows"


def test_rows_of_a_file_that_are_spent(make_run, scorer, tmp_path):
    run, rows = make_run(sizes={"validation": 60, "test": 40}), scorer()
    data = write_jsonl(tmp_path / "data.jsonl", [*rows, {"text": "a training row", "label": "a"}])
    with pytest.raises(UserError, match="trained on 1 of its 121 rows"):
        call(run, "--data", data)
    data = write_jsonl(tmp_path / "data.jsonl", [*rows, {"text": "row 2 0", "label": "a"}])
    with pytest.raises(UserError, match=r"1 of its 121 rows are test rows of .*run"):
        call(run, "--data", data)
    assert not (run / "validation" / "calibration.uncalibrated.json").exists()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"text": "row 3 0"}], "line 1"),
        ([{"text": "row 3 0", "label": "pink"}], "labels that it has not: pink"),
    ],
)
def test_rows_of_a_file_with_wrong_labels(make_run, scorer, tmp_path, rows, message):
    run, _ = make_run(), scorer()
    with pytest.raises(UserError, match=message):
        call(run, "--data", write_jsonl(tmp_path / "data.jsonl", rows))


def test_own_rows_that_are_training_rows_too_are_left_out(make_run, capsys):
    run = make_run()
    texts = [f"row 0 {k}" for k in range(7)]
    np.save(run / "rows" / "train.npy", row_hashes(texts))
    assert call(run)["n"] == 193
    assert "7 of 200 validation rows left out" in capsys.readouterr().out
    np.save(run / "rows" / "train.npy", row_hashes([f"row 0 {k}" for k in range(101)]))
    with pytest.raises(UserError, match="101 of its 200 validation rows"):
        call(run)


def test_a_run_that_does_not_tell_its_rows(make_run, capsys):
    run = make_run()
    for path in (run / "rows").iterdir():
        path.unlink()
    call(run)
    assert "does not tell which rows it was trained on" in capsys.readouterr().out


# -- little, nothing, and what is no run ------------------------------------------------------------------------


def test_few_rows_say_that_they_are_few(make_run, capsys):
    call(make_run(sizes={"validation": 30}, temperature=1.0))
    printed = capsys.readouterr().out
    assert "30 rows are few" in printed
    assert "do not show that anything is wrong" in printed
    assert "none <- chosen" in printed


def test_too_few_rows_are_refused(make_run):
    with pytest.raises(UserError, match="9 rows; expected 10 at least"):
        call(make_run(sizes={"validation": 9}))


def test_what_is_right_already_is_left_alone(make_run):
    run = make_run(sizes={"validation": 300}, temperature=1.0)
    assert call(run)["method"] == "none"
    assert read_fit(run / "validation", NAMES) == ({"method": "none", "parameters": {}}, None)


def test_what_is_no_finished_run(make_run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        call(tmp_path / "nowhere")
    run = make_run()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(UserError, match="is a running run"):
        call(run)


def test_a_test_file_that_is_gone_stops_nothing(make_run, tmp_path, capsys):
    run = make_run(sizes={"validation": 60, "test": 40})
    (tmp_path / "test.jsonl").unlink()
    call(run)
    assert held(run)["test"] is None
    assert "not measured on test rows" in capsys.readouterr().out


@pytest.mark.parametrize("several", [False, True])
def test_pictures_are_written(make_run, several, monkeypatch):
    monkeypatch.undo()
    run = make_run(several, {"validation": 60})
    call(run)
    expected = {"calibration.png"} | ({"threshold_curves.png"} if several else set())
    assert {path.name for path in (run / "validation").glob("*.png")} == expected


def test_pictures_show_what_was_found():
    rng, names = np.random.default_rng(0), [f"class {c}" for c in range(20)]
    truth = rng.random((300, 20)) < np.linspace(0.5, 0.02, 20)
    found = {"probs": rng.random((300, 20)), "thresholds": np.linspace(0.2, 0.8, 20)}
    found["intervals"] = np.stack([found["thresholds"] - 0.1, found["thresholds"] + 0.1], axis=1)
    bins = [{"confidence": 0.2, "accuracy": 0.3, "n": 10}, {"confidence": 0.8, "accuracy": 0.6, "n": 20}]
    summary = {"bins": bins, "ece": 0.1, "brier": 0.2, "nll": 0.3}
    calibration = {"method": "platt", "before": summary, "after": summary | {"ece": 0.01}}
    pictures = draw(calibration, found, truth, names)
    before, after = pictures["calibration"].axes
    assert before.collections[-1].get_offsets().tolist() == [[0.2, 0.3], [0.8, 0.6]]
    assert "ECE 0.010" in after.get_title()
    panels = pictures["threshold_curves"].axes
    order = np.argsort(-truth.sum(axis=0), kind="stable")
    shown = [*order[:6], *order[-6:]]  # the most frequent and the rarest
    assert [axes.get_title() for axes in panels] == [f"class {c}: {truth[:, c].sum()} rows" for c in shown]
    assert [axes.lines[-1].get_xdata()[0] for axes in panels] == [found["thresholds"][c] for c in shown]
