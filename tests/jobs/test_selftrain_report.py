"""jobs/selftrain_report.py, and real scores of a real tiny run: gains by hand, what the table and the picture hold."""

import json
from pathlib import Path

import numpy as np
import pytest

import train
from core.files import save_array
from core.plots import save_png
from core.rows import file_sha256
from jobs.selftrain_report import gain_lines, gain_over, markdown, report_text, rounds_figure, score_test
from jobs.selftrain_rounds import score_files
from tests.conftest import write_jsonl

GAIN = {"macro_f1": 0.02, "interval": [0.01, 0.03], "accuracy": 0.02, "accuracy_interval": [0.0, 0.04]}
GAIN |= {"over": "round0/m", "on": "test", "n": 500}


def line(number: int, scores: tuple[float, float], names: list[str]) -> dict:
    """An invented student's line."""
    made = {"run": f"round{number}/m", "temperature": 1.5, "fitted_on": "validation"}
    made |= {"audit": {"macro_f1": scores[0], "n": 80}, "validation": {"macro_f1": scores[1]}}
    if number:
        interval = [0.9 - 0.05 * number, 0.99 - 0.03 * number]
        counts = {name: 40 * number + 7 * k for k, name in enumerate(names)}
        made |= {"num_added": sum(counts.values()), "per_class": counts, "confidence": 0.9}
        made["selection"] = {"audit_rows": 20, "accuracy": sum(interval) / 2, "interval": interval}
    return made


def invented(models: tuple[str, ...] = ("m",), names: tuple[str, ...] = ("0", "1")) -> dict:
    """What main would return."""
    rounds = [
        {
            "round": k,
            "models": {
                m: line(k, (0.7 + 0.03 * k - 0.02 * j, 0.71 + 0.02 * k), names) for j, m in enumerate(models)
            },
        }
        for k in range(4)
    ]
    parts = {"labelled": 277, "audit": 69, "pool": 6218, "left_out": {"twice": 8, "labelled already": 0}}
    return {
        "run": "round3/m", "best_round": 3, "multi_label": False, "gain": GAIN, "parts": parts, "rounds": rounds,
        "gain_over_all_labelled": GAIN | {"over": "all_labelled/m"}, "teach": "self", "models": list(models),
        "stopped": "3 rounds were asked for", "command": "python -m jobs.selftrain", "commit": "abc",
    }  # fmt: skip


def scored_run(folder: Path, labels: list[int], said: list[int]) -> Path:
    """A run folder with the scores of validation rows."""
    rows = write_jsonl(folder.with_suffix(".jsonl"), [{"text": "t", "label": label} for label in labels])
    (folder / "validation").mkdir(parents=True)
    save_array(folder / "validation" / "logits.npy", np.eye(2, dtype=np.float32)[said])
    about = {"label_names": ["0", "1"], "multi_label": False, "row_format": {}}
    record = {"status": "finished", "model": about, "arguments": {"val_data": rows}}
    (folder / "run.json").write_text(json.dumps(record | {"data": {"validation": file_sha256(rows)}}))
    return folder


def test_a_gain_is_paired_over_rows(tmp_path):
    labels = [0, 1] * 50
    run = scored_run(tmp_path / "a", labels, [0, 1] * 48 + [1, 0, 1, 0])  # 4 wrong
    rival = scored_run(tmp_path / "b", labels, [0, 1] * 45 + [1, 0] * 5)  # the same 4 and 6 more
    found = gain_over(run, rival, "validation", 2000, 0)
    assert found["accuracy"] == pytest.approx(0.06)
    low, high = found["accuracy_interval"]
    # 6 of 100 rows differ, all one way: the number of them in a resample is binomial(100, 0.06)
    assert (low, high) == (pytest.approx(0.02, abs=0.011), pytest.approx(0.11, abs=0.011))
    assert (found["over"], found["on"], found["n"]) == (str(rival), "validation", 100)


def test_a_run_gains_nothing_over_itself(tmp_path):
    run = scored_run(tmp_path / "a", [0, 1, 1], [0, 1, 0])
    assert gain_over(run, run, "validation", 100, 0)["interval"] == [0, 0]


def test_the_verdict_follows_the_interval():
    shown = invented()
    none = shown | {"gain": GAIN | {"interval": [-0.01, 0.03]}}
    first = none | {"best_round": 0}
    assert gain_lines(shown)[-1].endswith(": a gain is shown")
    assert gain_lines(none)[-1].endswith(": no gain is shown")
    assert gain_lines(first)[-1].endswith(": none: round 0 is the best")


def test_the_table_has_a_line_a_student():
    text = report_text(invented(("one", "two")))
    first, *_ = text.strip().split("\n\n")
    assert [first.count(f"round {k} {m} ") for k in range(4) for m in ("one", "two")] == [1] * 8
    assert first.count("0.905 (0.850 to 0.960)") == 2


def test_the_summary_tells_classes_and_what_was_left_out():
    text = markdown(invented(names=tuple(f"class{k}" for k in range(12))))
    assert "left out of the pool: 8 twice." in text
    assert "class7 89 and 4 more" in text


@pytest.mark.parametrize("num_classes", [2, 12])
def test_the_picture_is_drawn(tmp_path, num_classes):
    names = tuple(f"cost in $ of {k}" for k in range(num_classes))
    save_png(rounds_figure(invented(("one", "two"), names)), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_the_picture_of_no_round(tmp_path):
    found = invented()
    found["rounds"] = found["rounds"][:1]
    save_png(rounds_figure(found), str(tmp_path / "a.png"))


def test_a_real_run_scores_the_pool_and_test_rows_once(toy_flags, toy_files, tmp_path, monkeypatch):
    train.main([*toy_flags, "--epochs", "1"])
    run = tmp_path / "run"
    bare = tmp_path / "bare.jsonl"
    texts = [json.loads(row)["text"] for row in Path(toy_files["val"]).read_text().splitlines()]
    write_jsonl(bare, [{"text": text} for text in texts])
    first, again = score_files(run, [str(bare), toy_files["val"]], None)
    wanted = np.load(run / "validation" / "logits.npy")
    np.testing.assert_allclose(first, wanted, rtol=1e-4, atol=1e-5)
    assert np.array_equal(first, again)
    score_test([run], toy_files["test"], None)
    assert json.loads((run / "run.json").read_text())["data"]["test"] == file_sha256(toy_files["test"])
    monkeypatch.setattr("jobs.final_scores.FinalRows.write", lambda *args: pytest.fail("scored twice"))
    score_test([run], toy_files["test"], None)
