"""jobs/ensemble.py on run folders made by hand: who chooses, what is written, who else can read it, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.metrics import probabilities
from core.mixing import mean_logits
from core.rows import file_sha256
from core.spent import read_uses, row_hashes
from core.thresholds import best_thresholds, cross_fitted
from jobs import compare, ensemble
from jobs.members import read_team
from jobs.scored import read_scored
from tests.conftest import write_jsonl

NAMES = ["blue", "green", "red"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """What plots show is not tested here, and they take most of the time."""
    monkeypatch.setattr("core.evaluate.save_png", lambda *_: None)


def truth_of(path: str) -> np.ndarray:
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    named = [row["labels"] if "labels" in row else [row["label"]] for row in rows]
    return np.array([[name in own for name in NAMES] for own in named])


def write_rows(path: Path, num_rows: int, seed: int, several: bool = False) -> str:
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(num_rows):
        row = {"text": f"{path.stem} text number {k}"}
        if several:
            row["labels"] = [name for name in NAMES if rng.random() < 0.4]
        else:
            row["label"] = NAMES[rng.integers(3)]
        rows.append(row)
    return write_jsonl(path, rows)


@pytest.fixture(params=[False, True], ids=["one", "several"])
def several(request) -> bool:
    return request.param


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Rows with one label each, by use."""
    return make_files(tmp_path, False)


def make_files(folder: Path, several: bool) -> dict[str, str]:
    sizes = {"train": 50, "validation": 60, "test": 40, "calibration": 55}
    return {
        name: write_rows(folder / f"{name}.jsonl", size, seed, several)
        for seed, (name, size) in enumerate(sizes.items())
    }


def make_run(folder: Path, files: dict[str, str], seed: int, skill: float, names=None, **changes) -> Path:
    """A run folder as train.py leaves it, with scores of a given skill; changes: of run.json's arguments."""
    names = names or NAMES
    flags = {
        "train": "train_data",
        "validation": "val_data",
        "calibration": "calibration_data",
        "test": "test_data",
    }
    several, rng = "labels" in Path(files["validation"]).read_text(), np.random.default_rng(seed + 100)
    arguments = {flag: files.get(use, "") for use, flag in flags.items()}
    arguments |= {"batch_size": 10, "seed": seed, "architecture": "bert", "model_name": "tiny"} | changes
    about = {"architecture": "bert", "head": "model", "pooling": "mean", "model_name": "tiny"}
    about |= {"label_names": names, "multi_label": several, "attention": "auto"}
    about |= {"row_format": {"text_field": "text", "pair_field": "", "label_field": ""}}
    record = {"status": "finished", "arguments": arguments, "model": about, "started": f"at {seed}"}
    record["data"] = {use: file_sha256(files[use]) for use in flags if use in files}
    record["hardware"] = {"world": 1, "cpu": "a processor", "threads": 1, "device": "cpu"}
    record |= {"num_steps": 20, "epochs": 4.0, "learning_rate": 1e-3 * (seed + 1), "loss": "ce"}
    record |= {"num_parameters": 1000, "num_trained": 1000, "timings": {"train_s": 60.0}}
    record |= {"peak_memory": {"mem/peak_mib": 100.0 + seed}}
    for use in ("validation", "calibration", "test"):
        if use in files:
            truth = truth_of(files[use])[:, [NAMES.index(name) for name in names]]
            logits = skill * (2.0 * truth - 1) + rng.normal(size=truth.shape)
            (folder / use).mkdir(parents=True)
            np.save(folder / use / "logits.npy", logits.astype(np.float32))
    (folder / "rows").mkdir()
    for use in record["data"]:
        texts = [json.loads(line)["text"] for line in Path(files[use]).read_text().splitlines()]
        np.save(folder / "rows" / f"{use}.npy", row_hashes(texts))
    (folder / "best_model").mkdir()
    (folder / "best_model" / "bareloop.json").write_text(json.dumps(about))
    log = {"step": 20, "perf/step_ms": 50.0, "perf/tokens_per_s": 400.0}
    (folder / "training_logs.jsonl").write_text(json.dumps(log) + "\n")
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def make_runs(folder: Path, files: dict[str, str], skills=(1.0, 0.6, 0.3), **changes) -> list[str]:
    return [str(make_run(folder / f"run{k}", files, k, skill, **changes)) for k, skill in enumerate(skills)]


@pytest.fixture
def runs(tmp_path, files) -> list[str]:
    """Three runs with validation and test rows."""
    return make_runs(tmp_path, {use: files[use] for use in ("train", "validation", "test")})


def combined(runs: list[str], folder: Path, *flags: str) -> dict:
    ensemble.main([*runs, "--output_dir", str(folder), *flags])
    return json.loads((folder / "run.json").read_text())


def saved(folder: Path | str, split: str) -> np.ndarray:
    return np.load(Path(folder) / split / "logits.npy")


def edit(run: str, change) -> None:
    path = Path(run) / "run.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


# -- what is combined -------------------------------------------------------------------------------------------


def test_mean_of_probabilities(tmp_path, several):
    files = make_files(tmp_path, several)
    runs = make_runs(tmp_path, {use: files[use] for use in ("train", "validation", "test")})
    combined(runs, tmp_path / "out", "--method", "mean")
    for split in ("validation", "test"):
        expected = np.mean([probabilities(saved(run, split), several) for run in runs], axis=0)
        assert np.allclose(probabilities(saved(tmp_path / "out", split), several), expected, atol=1e-6)


def test_columns_are_aligned_by_name(tmp_path, files):
    kept = {use: files[use] for use in ("train", "validation")}
    first = make_run(tmp_path / "a", kept, 0, 1.0)
    second = make_run(tmp_path / "b", kept, 1, 1.0, names=["red", "blue", "green"])
    record = combined([str(first), str(second)], tmp_path / "out", "--method", "mean")
    expected = probabilities(saved(first, "validation"), False)
    expected = (expected + probabilities(saved(second, "validation"), False)[:, [1, 2, 0]]) / 2
    assert record["model"]["label_names"] == NAMES
    assert np.allclose(probabilities(saved(tmp_path / "out", "validation"), False), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["weighted", "greedy"])
def test_test_rows_take_the_weights_that_are_stored(tmp_path, runs, method):
    record = combined(runs, tmp_path / "out", "--method", method)
    weights = np.array([member["weight"] for member in record["ensemble"]["members"]])
    assert weights.sum() == pytest.approx(1)
    expected = mean_logits(np.stack([saved(run, "test") for run in runs]), weights, False)
    assert np.allclose(saved(tmp_path / "out", "test"), expected, atol=1e-5)
    everywhere = mean_logits(np.stack([saved(run, "validation") for run in runs]), weights, False)
    assert not np.allclose(saved(tmp_path / "out", "validation"), everywhere, atol=1e-5)  # in folds


def test_weighted_is_by_f1(tmp_path, runs):
    members = combined(runs, tmp_path / "out", "--method", "weighted")["ensemble"]["members"]
    f1 = np.array([member["value"] for member in members])
    assert np.allclose([member["weight"] for member in members], f1 / f1.sum())


def test_numbers_of_the_rows_that_choose_say_that_they_are_cross_fitted(tmp_path, runs):
    combined(runs, tmp_path / "out", "--method", "stacking")
    told = [
        json.loads((tmp_path / "out" / split / "metrics.json").read_text())
        for split in ("validation", "test")
    ]
    assert told[0]["weights_chosen_on"] == "validation, cross-fitted in 5 folds"
    assert told[1]["weights_chosen_on"].endswith("validation.jsonl, all 60 rows")
    combined(runs, tmp_path / "mean", "--method", "mean")
    assert "weights_chosen_on" not in json.loads((tmp_path / "mean/validation/metrics.json").read_text())


def test_test_rows_choose_nothing(tmp_path, runs):
    before = combined(runs, tmp_path / "one")["ensemble"]
    for run in runs:
        np.save(Path(run) / "test" / "logits.npy", -saved(run, "test"))
    after = combined(runs, tmp_path / "two")["ensemble"]
    assert before["method"] == after["method"]
    assert before["members"] == after["members"]
    assert before["splits"]["test"] != after["splits"]["test"]


def test_calibration_rows_choose_where_all_members_have_them(tmp_path, files):
    runs = make_runs(tmp_path, files)
    record = combined(runs, tmp_path / "out", "--method", "greedy")
    assert record["ensemble"]["chosen_on"] == "calibration"
    weights = np.array([member["weight"] for member in record["ensemble"]["members"]])
    expected = mean_logits(np.stack([saved(run, "validation") for run in runs]), weights, False)
    assert np.allclose(saved(tmp_path / "out", "validation"), expected, atol=1e-5)
    assert saved(tmp_path / "out", "calibration").shape == (55, 3)
    for run in runs:
        np.save(Path(run) / "validation" / "logits.npy", -saved(run, "validation"))
    again = combined(runs, tmp_path / "again", "--method", "greedy")
    assert [m["weight"] for m in again["ensemble"]["members"]] == weights.tolist()


def test_splits_that_not_all_members_have_are_left_out(tmp_path, files, capsys):
    kept = {use: files[use] for use in ("train", "validation")}
    runs = [str(make_run(tmp_path / "a", files, 0, 1.0)), str(make_run(tmp_path / "b", kept, 1, 1.0))]
    record = combined(runs, tmp_path / "out")
    assert set(record["data"]) == {"train", "validation"}
    assert not (tmp_path / "out" / "test").exists()
    assert "do not all have the same test rows" in capsys.readouterr().out


def test_thresholds_are_those_of_the_combined_scores(tmp_path):
    files = make_files(tmp_path, True)
    runs = make_runs(tmp_path, {use: files[use] for use in ("train", "validation", "test")})
    combined(runs, tmp_path / "out", "--method", "mean")
    probs, truth = probabilities(saved(tmp_path / "out", "validation"), True), truth_of(files["validation"])
    stored = json.loads((tmp_path / "out/validation/thresholds.json").read_text())["thresholds"]
    assert list(stored.values()) == best_thresholds(probs, truth).tolist()
    metrics = json.loads((tmp_path / "out/validation/metrics.json").read_text())
    chosen = cross_fitted(probs, truth)
    f1 = 2 * (chosen & truth).sum(axis=0) / (chosen.sum(axis=0) + truth.sum(axis=0))
    assert metrics["macro_f1_tuned"] == pytest.approx(f1.mean())


# -- worth ------------------------------------------------------------------------------------------------------


def test_auto_takes_the_mean_of_members_that_are_alike(tmp_path, files):
    runs = make_runs(tmp_path, {use: files[use] for use in ("train", "validation")}, skills=(0.5, 0.5))
    about = combined(runs, tmp_path / "out")["ensemble"]
    assert set(about["methods"]) == {"mean", "weighted", "greedy", "stacking"}
    others = [told for name, told in about["methods"].items() if name != "mean"]
    assert (about["method"] == "mean") == all(told["gain"] <= told["gain_se"] for told in others)


def test_each_member_is_measured(tmp_path, runs, capsys):
    about = combined(runs, tmp_path / "out", "--method", "mean", "--metric", "accuracy")["ensemble"]
    truth = truth_of(tmp_path / "validation.jsonl").argmax(axis=1)
    probs = np.stack([probabilities(saved(run, "validation"), False) for run in runs])
    alone = (probs.argmax(axis=2) == truth).mean(axis=1)
    whole = (probs.mean(axis=0).argmax(axis=1) == truth).mean()
    without = [(np.delete(probs, m, axis=0).mean(axis=0).argmax(axis=1) == truth).mean() for m in range(3)]
    apart = (probs.argmax(axis=2)[:, None] != probs.argmax(axis=2)[None]).mean(axis=2)
    members = about["members"]
    assert np.allclose([m["value"] for m in members], alone)
    assert np.allclose([m["without"] for m in members], without)
    assert np.allclose([m["worth"] for m in members], whole - np.array(without))
    assert np.allclose(about["disagreement"], apart)
    assert np.allclose([m["disagreement"] for m in members], apart.sum(axis=1) / 2)
    assert about["best_member"] == alone.argmax()
    gain = about["splits"]["validation"]["gains"][alone.argmax()]
    assert gain["difference"] == pytest.approx(whole - alone.max())
    assert gain["low"] <= gain["difference"] <= gain["high"]
    assert "without it" in capsys.readouterr().out


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "loss"])
def test_what_is_compared_is_what_metrics_json_says(tmp_path, several, metric):
    files = make_files(tmp_path, several)
    runs = make_runs(tmp_path, {use: files[use] for use in ("train", "validation", "test")})
    record = combined(runs, tmp_path / "out", "--method", "greedy", "--metric", metric)
    name = record["metric"]
    assert name.endswith("_tuned") == (several and metric != "loss")
    for split, found in record["ensemble"]["splits"].items():
        assert found["ensemble"]["value"] == pytest.approx(record["metrics"][split][name], abs=1e-6)
    assert record["best"]["value"] == pytest.approx(record["metrics"]["validation"][name], abs=1e-6)


def test_names_of_metrics_json_are_understood(tmp_path):
    files = make_files(tmp_path, True)
    runs = make_runs(tmp_path, {use: files[use] for use in ("train", "validation")})
    found = [
        combined(runs, tmp_path / name, "--method", "mean", "--metric", name)["best"]
        for name in ("accuracy", "subset_accuracy_tuned")
    ]
    assert found[0] == found[1]
    assert found[0]["metric"] == "subset_accuracy_tuned"


def test_a_lower_loss_is_worth_something(tmp_path, runs):
    about = combined(runs, tmp_path / "out", "--method", "mean", "--metric", "loss")["ensemble"]
    own = about["splits"]["validation"]
    worst = int(np.argmax([member["value"] for member in own["members"]]))
    assert about["best_member"] == int(np.argmin([member["value"] for member in own["members"]]))
    assert own["gains"][worst]["difference"] == pytest.approx(
        own["members"][worst]["value"] - own["ensemble"]["value"]
    )


# -- the run folder ---------------------------------------------------------------------------------------------


def test_the_folder_is_read_like_any_run(tmp_path, several):
    files = make_files(tmp_path, several)
    runs = make_runs(tmp_path, {use: files[use] for use in ("train", "validation", "test")})
    record = combined(runs, tmp_path / "out", "--method", "greedy")
    scored = read_scored(tmp_path / "out", "test")
    assert scored.label_names == NAMES
    assert np.array_equal(scored.truth, truth_of(files["test"]))
    assert record["metrics"]["test"]["n"] == 40
    for split in ("validation", "test"):
        names = {path.name for path in (tmp_path / "out" / split).iterdir()}
        assert {"metrics.json", "predictions.jsonl", "logits.npy", "calibration.json"} <= names
        assert ("thresholds.json" in names) == several
    assert (tmp_path / "out" / "ensemble.png").stat().st_size > 1000


def test_compare_reads_it_and_costs_are_those_of_all_members(tmp_path, runs):
    combined(runs, tmp_path / "out", "--method", "mean")
    argv = ["--table_only", str(tmp_path / "out"), runs[0], "--output_dir", str(tmp_path / "table")]
    lines = {Path(line["runs"][0]).name: line for line in compare.main(argv)["lines"]}
    probs = np.mean([probabilities(saved(run, "test"), False) for run in runs], axis=0)
    accuracy = (probs.argmax(axis=1) == truth_of(tmp_path / "test.jsonl").argmax(axis=1)).mean()
    assert lines["out"]["accuracy"] == pytest.approx(accuracy)
    assert lines["out"]["minutes"] == pytest.approx(3)
    assert lines["out"]["num_parameters"] == 3000
    assert lines["out"]["peak_mib"] == 102
    assert lines["out"]["rows_per_s"] == pytest.approx(lines["run0"]["rows_per_s"])
    assert lines["out"]["tokens_per_s"] == pytest.approx(400)


def test_rows_are_those_of_all_members(tmp_path, files):
    kept = {use: files[use] for use in ("train", "validation")}
    other = kept | {"train": write_rows(tmp_path / "other.jsonl", 30, 9)}
    runs = [str(make_run(tmp_path / "a", kept, 0, 1.0)), str(make_run(tmp_path / "b", other, 1, 1.0))]
    record = combined(runs, tmp_path / "out")
    uses, own = read_uses(tmp_path / "out"), [read_uses(Path(run)) for run in runs]
    assert set(uses["train"]) == set(own[0]["train"]) | set(own[1]["train"])
    assert np.array_equal(uses["validation"], own[0]["validation"])
    assert record["arguments"]["train_data"] == f"{files['train']}, {other['train']}"


def test_paths_to_the_members_are_relative(tmp_path, runs):
    record = combined(runs, tmp_path / "deep" / "out")
    assert [member["run"] for member in record["ensemble"]["members"]] == [f"../../run{k}" for k in range(3)]


# -- what is refused --------------------------------------------------------------------------------------------


def refused(runs: list[str], folder: Path, *flags: str) -> str:
    with pytest.raises(UserError) as error:
        ensemble.main([*runs, "--output_dir", str(folder / "out"), *flags])
    assert not (folder / "out").exists()
    return str(error.value)


def test_validation_rows_that_are_a_members_test_rows(tmp_path, runs):
    hashes = np.load(Path(runs[1]) / "rows" / "validation.npy")
    np.save(Path(runs[1]) / "rows" / "test.npy", hashes[:7])
    assert f"7 of its 60 rows are test rows of {runs[1]}" in refused(runs, tmp_path)


def test_rows_that_trained_a_member_are_told(tmp_path, runs, capsys):
    hashes = np.load(Path(runs[2]) / "rows" / "validation.npy")
    np.save(Path(runs[2]) / "rows" / "train.npy", hashes[:9])
    combined(runs, tmp_path / "out", "--method", "mean")
    assert f"9 of 60 validation rows are training rows of {runs[2]}" in capsys.readouterr().out


def test_other_validation_rows(tmp_path, files, runs):
    other = {"train": files["train"], "validation": files["calibration"]}
    run = make_run(tmp_path / "other", other, 5, 1.0)
    told = refused([*runs, str(run)], tmp_path)
    assert f"{run}: was scored on other validation rows than {runs[0]}" in told
    assert "--val_data" in told


def test_other_labels(tmp_path, files, runs):
    edit(runs[1], lambda record: record["model"]["label_names"].__setitem__(0, "pink"))
    assert f"{runs[1]}: has other labels than {runs[0]}: blue, pink" in refused(runs, tmp_path)


def test_other_columns(tmp_path, runs):
    edit(runs[2], lambda record: record["model"]["row_format"].__setitem__("text_field", "text,label"))
    assert f"{runs[2]}: reads other columns than {runs[0]}: --text_field text,label, not text" in refused(
        runs, tmp_path
    )


def test_an_ensemble_of_ensembles(tmp_path, runs):
    combined(runs[:2], tmp_path / "first")
    told = refused([str(tmp_path / "first"), runs[2]], tmp_path)
    assert f"{tmp_path / 'first'}: is an ensemble; expected single runs" in told


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--folds", "5", "--method", "mean"], "--folds: is for --method stacking (or auto), not mean"),
        (["--folds", "1"], "--folds 1: expected 0, or at least 2"),
        (["--metric", "recall"], "--metric"),
        (["--gpus", "0"], "no CUDA device is visible"),
    ],
)
def test_flags(tmp_path, runs, flags, told, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert told in refused(runs, tmp_path, *flags)


def test_runs(tmp_path, runs):
    assert "is one run; expected two or more" in refused(runs[:1], tmp_path)
    assert "is given twice" in refused([runs[0], runs[0] + "/."], tmp_path)
    assert "no such folder" in refused([*runs, str(tmp_path / "nowhere")], tmp_path)
    edit(runs[1], lambda record: record.__setitem__("status", "running"))
    assert f"{runs[1]}: is a running run" in refused(runs, tmp_path)


def test_scores_that_are_not_finite(tmp_path, runs):
    logits = saved(runs[1], "validation")
    logits[3, 1] = np.nan
    np.save(Path(runs[1]) / "validation" / "logits.npy", logits)
    assert f"{runs[1]}: its validation scores are not all finite" in refused(runs, tmp_path)


def test_a_member_that_cannot_predict(tmp_path, runs):
    (Path(runs[1]) / "best_model" / "bareloop.json").unlink()
    assert f"{runs[1]}: holds no best_model/" in refused(runs, tmp_path)


def test_a_folder_that_holds_a_run(tmp_path, runs):
    combined(runs, tmp_path / "full")
    with pytest.raises(UserError, match="holds a run already"):
        combined(runs, tmp_path / "full")


def test_a_member_without_its_log(tmp_path, runs):
    (Path(runs[1]) / "training_logs.jsonl").unlink()
    assert f"{runs[1]}: is not whole, train it again" in refused(runs, tmp_path)


def test_team_of_members_with_one_kind_of_labels(tmp_path, files, runs):
    folder = tmp_path / "several"
    folder.mkdir()
    other = make_run(folder / "run", make_files(folder, True), 0, 1.0)
    with pytest.raises(UserError, match=r"has several labels a row, .*run0 one label a row"):
        read_team([*runs, str(other)])
