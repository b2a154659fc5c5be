"""predict.py: the same rows from the shell, from Python and from the run itself; order kept; nothing half-written."""

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import predict
import train
from core.calibration import apply_calibration
from core.errors import UserError
from core.metrics import probabilities
from jobs import calibrate
from tests.conftest import save_tiny, toy_rows, write_jsonl

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run with one label a row on the model's own head, and one with several on ours."""
    folder = tmp_path_factory.mktemp("runs")
    model = save_tiny(folder / "tiny")
    found = {}
    for name, kind, head in (("one", "one", "model"), ("several", "list", "mlp")):
        data = {split: write_jsonl(folder / f"{name}-{split}.jsonl", toy_rows(60, seed, kind))
                for seed, split in enumerate(("train", "val"))}  # fmt: skip
        flags = [
            "--model_name",
            model,
            "--train_data",
            data["train"],
            "--val_data",
            data["val"],
            "--head",
            head,
        ]
        flags += [
            "--cache_dir",
            str(folder / "cache"),
            "--output_dir",
            str(folder / name),
            "--max_length",
            "32",
        ]
        train.main([*flags, "--epochs", "1", "--learning_rate", "1e-2", "--amp", "off", "--batch_size", "16"])
        found[name], found[f"{name}-val"] = folder / name, Path(data["val"])
    return found


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def close(a: list[dict], b: list[dict]) -> bool:
    """Same labels, probabilities to 1e-5 (cuts of other shapes sum in another order)."""
    return all(
        x["label"] == y["label"]
        and x.get("labels") == y.get("labels")
        and np.allclose(list(x["probabilities"].values()), list(y["probabilities"].values()), atol=1e-5)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", ["one", "several"])
def test_shell_python_and_the_run_agree(runs, tmp_path, name):
    out = tmp_path / "out.jsonl"
    predict.main([str(runs[name]), "--data", str(runs[f"{name}-val"]), "--output", str(out)])
    rows = read_jsonl(out)
    texts = [row["text"] for row in read_jsonl(runs[f"{name}-val"])]
    assert predict.load(runs[name])(texts) == rows
    assert close(rows, read_jsonl(runs[name] / "validation" / "predictions.jsonl"))
    assert (
        close(predict.load(runs[name] / "best_model")(texts), rows) or name == "several"
    )  # 0.5 without a run


def test_order_is_kept_over_windows(runs, tmp_path, monkeypatch):
    source, out = runs["one-val"], tmp_path / "out.jsonl"
    texts = [row["text"] for row in read_jsonl(source)]
    predictor = predict.load(runs["one"])
    one_by_one = [predictor([text])[0] for text in texts]
    monkeypatch.setattr(predict, "WINDOW", 7)
    predict.main([str(runs["one"]), "--data", str(source), "--output", str(out), "--max_tokens", "40"])
    assert close(read_jsonl(out), one_by_one)
    assert not close(read_jsonl(out)[::-1], one_by_one)  # the check itself bites


def test_csv_in_and_out_and_kept_columns(runs, tmp_path):
    rows = read_jsonl(runs["several-val"])[:10]
    data, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    with open(data, "w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"])
        writer.writeheader()
        writer.writerows({"id": k, "text": row["text"]} for k, row in enumerate(rows))
    predict.main([str(runs["several"]), "--data", str(data), "--output", str(out), "--keep", "id"])
    found = list(csv.DictReader(io.StringIO(out.read_text())))
    expected = predict.load(runs["several"])([row["text"] for row in rows])
    assert list(found[0]) == ["id", "label", "labels", "p_blue", "p_green", "p_red"]
    assert [row["id"] for row in found] == [str(k) for k in range(10)]
    assert [row["labels"] for row in found] == [";".join(row["labels"]) for row in expected]
    assert [float(row["p_red"]) for row in found] == [row["probabilities"]["red"] for row in expected]


def test_standard_input_and_output(runs):
    command = [sys.executable, "predict.py", str(runs["one"]), "--data", "-", "--output", "-", "--evaluate"]
    text = runs["one-val"].read_text()
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert "macro_f1" in done.stderr  # the table goes where it does not mix with rows


@pytest.mark.parametrize("name", ["one", "several"])
def test_evaluate_gives_the_metrics_of_the_run(runs, tmp_path, name):
    out = tmp_path / "out.jsonl"
    call = [str(runs[name]), "--data", str(runs[f"{name}-val"]), "--output", str(out), "--evaluate"]
    found = predict.main(call)
    expected = json.loads((runs[name] / "validation" / "metrics.json").read_text())
    for metric in ("accuracy", "macro_f1", "roc_auc", "loss", "n"):
        assert found[metric] == pytest.approx(expected[metric], abs=1e-5)


def test_thresholds_of_the_run_are_used(runs):
    thresholds = json.loads((runs["several"] / "validation" / "thresholds.json").read_text())["thresholds"]
    for row in predict.load(runs["several"])(["the rose is red", "sea of ink", "at it"]):
        assert row["labels"] == [n for n, p in row["probabilities"].items() if p >= thresholds[n]]


BAD = {
    "no text": ('{"text": "red"}\n{"content": "red"}\n', "line 2: no field 'text'"),
    "not json": ('{"text": "red"}\n\n{"text": \n', "line 3: invalid JSON"),
    "empty": ("", "has no rows"),
    "empty text": ('{"text": "  "}\n', "line 1: field 'text' is empty"),
    "unknown label": ('{"text": "red", "label": "pink"}\n', "labels that the run does not know: pink"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_leave_no_output(runs, tmp_path, case):
    text, message = BAD[case]
    (tmp_path / "rows.jsonl").write_text(text)
    call = [str(runs["one"]), "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        predict.main([*call, *(["--evaluate"] if case == "unknown label" else [])])
    assert not list(tmp_path.glob("out.jsonl*")) or case == "unknown label"


def test_what_is_no_run_is_refused(tmp_path, runs):
    with pytest.raises(UserError, match="no such folder"):
        predict.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no best_model"):
        predict.load(tmp_path)
    call = [str(runs["one"]), "--data", str(runs["one-val"]), "--output", str(tmp_path / "no" / "out.jsonl")]
    with pytest.raises(UserError, match="cannot be written"):
        predict.main(call)
    with pytest.raises(UserError, match="single texts"):
        predict.load(runs["one"])(["red"], ["blue"])
    with pytest.raises(UserError, match="empty after tokenisation"):
        predict.load(runs["one"])(["red", ""])


def test_pairs_end_to_end(tmp_path, tiny_bert):
    rows = [row | {"second": f"{row['label']} is it"} for row in toy_rows(40, 3)]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    flags = ["--model_name", tiny_bert, "--train_data", data, "--val_data", data, "--pair_field", "second"]
    flags += [
        "--cache_dir",
        str(tmp_path / "cache"),
        "--output_dir",
        str(tmp_path / "run"),
        "--max_length",
        "32",
    ]
    train.main([*flags, "--epochs", "1", "--amp", "off"])
    predictor = predict.load(tmp_path / "run")
    found = predictor([row["text"] for row in rows], [row["second"] for row in rows])
    assert close(found, read_jsonl(tmp_path / "run" / "validation" / "predictions.jsonl"))


# -- what jobs.calibrate found ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated(runs, tmp_path_factory) -> dict[str, Path]:
    """Copies of the runs, calibrated on their validation rows."""
    found = {}
    for name, method in (("one", "isotonic"), ("several", "platt")):
        found[name] = tmp_path_factory.mktemp("calibrated") / name
        shutil.copytree(runs[name], found[name])
        calibrate.main([str(found[name]), "--method", method, "--resamples", "100"])
    return found


@pytest.mark.parametrize("name", ["one", "several"])
def test_calibrated_probabilities_are_those_of_the_job(runs, calibrated, name):
    texts = [row["text"] for row in read_jsonl(runs[f"{name}-val"])]
    held = json.loads((calibrated[name] / "validation" / "calibration.json").read_text())
    logits = np.load(calibrated[name] / "validation" / "logits.npy")
    expected = probabilities(
        apply_calibration(held["method"], held["parameters"], logits, name == "several"), name == "several"
    )
    predictor = predict.load(calibrated[name])
    rows = predictor(texts)
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in rows], expected, atol=1e-5)
    np.testing.assert_allclose(predictor.scores(texts), logits, atol=1e-5)  # the model's own
    raw = predict.load(runs[name])(texts)
    assert not np.allclose([list(row["probabilities"].values()) for row in raw], expected, atol=1e-3)
    assert predict.load(calibrated[name], raw=True)(texts) == raw


def test_labels_fit_the_calibrated_probabilities(runs, calibrated):
    texts = [row["text"] for row in read_jsonl(runs["one-val"])]
    for row in predict.load(calibrated["one"])(texts):
        assert row["probabilities"][row["label"]] == max(row["probabilities"].values())
    tuned = json.loads((calibrated["several"] / "validation" / "thresholds.json").read_text())["thresholds"]
    for row in predict.load(calibrated["several"])(texts):
        assert row["labels"] == [n for n, p in row["probabilities"].items() if p >= tuned[n]]


@pytest.mark.parametrize("name", ["one", "several"])
def test_the_shell_uses_the_calibration_unless_it_is_told_not_to(runs, calibrated, tmp_path, name):
    out = tmp_path / "out.jsonl"
    call = [str(calibrated[name]), "--data", str(runs[f"{name}-val"]), "--output", str(out), "--evaluate"]
    texts = [row["text"] for row in read_jsonl(runs[f"{name}-val"])]
    found = predict.main(call)
    assert read_jsonl(out) == predict.load(calibrated[name])(texts)
    raw = predict.main([*call, "--raw"])
    assert read_jsonl(out) == predict.load(runs[name])(texts)
    own = json.loads((runs[name] / "validation" / "metrics.json").read_text())
    assert raw["loss"] == pytest.approx(own["loss"], abs=1e-5)
    assert found["loss"] < raw["loss"]  # on the rows that it was fitted on


def test_a_calibration_without_its_thresholds_is_refused(calibrated, tmp_path):
    run = shutil.copytree(calibrated["several"], tmp_path / "run")
    (run / "validation" / "thresholds.json").write_text(
        (run / "validation" / "thresholds.uncalibrated.json").read_text()
    )
    with pytest.raises(UserError, match="are not of one fit"):
        predict.load(run)
    assert predict.load(run, raw=True).thresholds is not None
