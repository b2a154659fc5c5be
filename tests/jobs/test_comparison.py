"""jobs/comparison.py and comparison_files.py: the table of finished runs, from their folders alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import train
from core.errors import UserError
from core.statistics import mcnemar
from jobs.comparison import (
    columns,
    compare_pair,
    compare_runs,
    correct_pairs,
    measured_costs,
    name_lines,
    read_run,
    verdict,
)
from jobs.comparison_files import (
    comparison_figure,
    format_p,
    markdown,
    millions,
    side_by_side,
    write_comparison,
)
from tests.conftest import save_tiny, toy_rows, write_jsonl


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Run folders as jobs.compare makes them; one of its files holds less classes than the others."""
    root = tmp_path_factory.mktemp("grid")
    tiny = save_tiny(root / "tiny")
    few = [row for row in toy_rows(120, 3) if row["label"] != "red"]
    files = {"one": toy_rows(96, 0), "few": few, "several": toy_rows(96, 0, "list"), "val": toy_rows(48, 1)}
    files |= {"val_few": few[:30], "val_several": toy_rows(48, 1, "list"), "test": toy_rows(60, 2)}
    paths = {name: write_jsonl(root / f"{name}.jsonl", rows) for name, rows in files.items()}
    flags = [
        "--model_name",
        tiny,
        "--batch_size",
        "16",
        "--epochs",
        "2",
        "--amp",
        "off",
        "--max_tokens",
        "256",
    ]
    flags += ["--cache_dir", str(root / "cache"), "--log_steps", "2"]
    test = ["--test_data", paths["test"]]
    with pytest.MonkeyPatch.context() as patch:  # the runs' own plots are half of their time
        patch.setattr("core.evaluate.save_png", lambda *_: None)
        patch.setattr(SummaryWriter, "add_figure", lambda *_: None)
        for model, rate, seed, name, val, more in (
            ("good", "1e-2", 0, "one", "val", test),
            ("good", "1e-2", 1, "one", "val", test),
            ("poor", "0", 0, "one", "val", test),
            ("good", "1e-2", 0, "few", "val_few", []),
            ("good", "1e-2", 0, "several", "val_several", []),
        ):
            folder = root / "runs" / model / "who" / f"{name}_96" / f"seed{seed}"
            own = ["--train_data", paths[name], "--val_data", paths[val], "--output_dir", str(folder)]
            train.main([*flags, *own, "--seed", str(seed), "--learning_rate", rate, *more])
    return root


def folders(root: Path, name: str) -> list[Path]:
    return sorted(root.glob(f"runs/*/who/{name}_96/seed*"))


def metrics(folder: str | Path, split: str) -> dict:
    return json.loads(Path(folder, split, "metrics.json").read_text())


def test_scores_and_costs_are_those_of_the_runs(root):
    result = compare_runs(folders(root, "one"))
    good, poor = result["lines"]
    assert [good["label"], poor["label"]] == ["good", "poor"]
    assert good["seeds"] == [0, 1]
    assert [Path(run).name for run in good["runs"]] == ["seed0", "seed1"]
    for line in (good, poor):
        for name in ("accuracy", "macro_f1"):
            expected = [metrics(run, "test")[name] for run in line["runs"]]
            assert line[f"{name}_by_seed"] == pytest.approx(expected, rel=1e-12)
            assert line[name] == pytest.approx(np.mean(expected))
            assert line[f"{name}_spread"] == pytest.approx(max(expected) - min(expected))
            assert line[f"{name}_low"] <= line[name] <= line[f"{name}_high"]
        record = json.loads(Path(line["runs"][0], "run.json").read_text())
        assert line["num_parameters"] == line["num_trained"] == record["num_parameters"]
        assert line["peak_mib"] >= record["peak_memory"]["mem/peak_mib"]
    assert result["rows"]["A"] | {"file": ""} == {
        "file": "", "split": "test", "n": 60, "num_classes": 3, "multi_label": False, "classes_differ": False,
        "sha256": record["data"]["test"],
    }  # fmt: skip
    assert result["num_resamples"] == 2000
    json.dumps(result)


def test_speed_is_that_of_the_step_clock_without_its_first_record(root, tmp_path):
    (folder, *_) = folders(root, "one")
    record = json.loads((folder / "run.json").read_text())
    logs = [(2, 900.0, 1.0), (4, 100.0, 2000.0), (5, 50.0, 1000.0)]  # step, ms a step, tokens/s
    lines = [{"step": s, "perf/step_ms": ms, "perf/tokens_per_s": speed} for s, ms, speed in logs]
    lines.insert(2, {"step": 4, "eval/loss": 1.0})
    (tmp_path / "training_logs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record["timings"]["train_s"] = 90.0
    found = measured_costs(tmp_path, record)
    assert found["rows_per_s"] == pytest.approx(
        16 * 3 / 0.25
    )  # 96 rows are 6 steps of 16; 2 x 0.1 s + 1 x 0.05 s
    assert found["tokens_per_s"] == pytest.approx((0.2 * 2000 + 0.05 * 1000) / 0.25)
    assert found["minutes"] == 1.5


def test_a_pair_on_the_same_rows(root):
    result = compare_runs(folders(root, "one"))
    (pair,) = result["pairs"]
    good, poor = (read_run(result["lines"][k]["runs"][0]) for k in (0, 1))
    rights = [(run.chosen == run.truth).all(axis=1) for run in (good, poor)]
    assert pair["mcnemar"] == mcnemar(*rights) | {"seeds": [0, 0]}
    accuracy, f1 = pair["accuracy"], pair["macro_f1"]
    assert f1["difference"] == result["lines"][0]["macro_f1"] - result["lines"][1]["macro_f1"]
    assert f1["low"] <= f1["difference"] <= f1["high"]
    assert accuracy["p"] == max(accuracy["bootstrap_p"], pair["mcnemar"]["p"])
    assert accuracy["p_holm"] == accuracy["p"]  # one pair: nothing to correct
    assert f1["is_shown"] == (f1["p_holm"] < 0.05)


def test_runs_on_other_rows_are_not_tested_against_each_other(root):
    result = compare_runs([*folders(root, "one"), *folders(root, "few")])
    assert [line["rows"] for line in result["lines"]] == ["A", "A", "B"]
    assert result["rows"]["B"]["split"] == "validation"
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [(1, 2)]
    result |= {"name": "x", "failed": {}, "command": "c", "commit": "0"}
    text = markdown(result)
    assert "Rows of different letters are not comparable" in text
    assert "Validation rows also chose each run's best step" in text
    assert [line["label"] for line in result["lines"]] == ["good / one_96", "poor / one_96", "good / few_96"]


def test_models_that_know_other_classes_are_scored_over_all(root):
    few, one = read_run(folders(root, "few")[0]), read_run(folders(root, "one")[0])
    assert few.label_names == ["blue", "green"]
    assert one.label_names == ["blue", "green", "red"]
    wide = columns(few.chosen, few.label_names, ["blue", "red", "green"])
    assert wide.shape == (30, 3)
    assert not wide[:, 1].any()
    assert np.array_equal(wide[:, [0, 2]], few.chosen)


def test_which_runs_are_one_setting(root):
    run, other = (read_run(folder) for folder in folders(root, "one")[:2])
    assert run.setting == other.setting
    for one in (run, other):
        one.folder = Path("runs/model/data") / f"20260101-12000{one.folder.name[-1]}-{one.folder.name}"
    assert run.setting == other.setting  # the seed alone differs
    assert run.place == ["model", "data", "20260101-120000"]
    other.record["arguments"]["epochs"] = 9
    assert run.setting != other.setting


def test_several_labels_a_row(root):
    result = compare_runs(folders(root, "several"))
    for line in result["lines"]:
        found = metrics(line["runs"][0], "validation")
        assert line["macro_f1"] == pytest.approx(found["macro_f1_tuned"], rel=1e-12)
        assert line["accuracy"] == pytest.approx(found["subset_accuracy_tuned"], rel=1e-12)
    result |= {"name": "x", "failed": {}, "command": "c", "commit": "0"}
    assert "accuracy is subset_accuracy_tuned" in markdown(result)


def test_files(root, tmp_path):
    result = compare_runs(folders(root, "one"))
    result |= {"name": "tiny", "failed": {"runs/x": "error: no room"}, "command": "c", "commit": "0"}
    for _ in range(2):  # a second time in the place of the first
        write_comparison(tmp_path / "out", result)
    out = tmp_path / "out"
    assert json.loads((out / "comparison.json").read_text()) == result
    assert (out / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "comparison.png").stat().st_size > 10_000
    text = (out / "comparison.md").read_text()
    assert text.isascii()
    assert "- `runs/x`: error: no room" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:4]}) == 1
    assert "| 1 | good | who | one_96 | 0 1 |" in table[2]
    boards = sorted((out / "tensorboard").iterdir())
    assert [board.name for board in boards] == ["1-good-seed0", "1-good-seed1", "2-poor-seed0"]
    board = EventAccumulator(str(boards[0])).Reload()
    (event,) = board.Scalars("compare/macro_f1")
    assert event.value == pytest.approx(result["lines"][0]["macro_f1_by_seed"][0], rel=1e-6)
    assert "_hparams_/session_start_info" in board.summary_metadata


def test_files_without_a_finished_run(tmp_path):
    result = compare_runs([]) | {"name": "none", "failed": {"r": "why"}, "command": "c", "commit": None}
    write_comparison(tmp_path / "out", result)
    assert "No run has finished." in (tmp_path / "out" / "comparison.md").read_text()


def test_what_a_comparison_cannot_use(root, tmp_path):
    folder = folders(root, "one")[0]
    with pytest.raises(UserError, match="holds no run"):
        compare_runs([root])
    copy = tmp_path / "copy"
    (copy / "test").mkdir(parents=True)
    record = json.loads((folder / "run.json").read_text())

    def told(**changes) -> str:
        (copy / "run.json").write_text(json.dumps(record | changes))
        with pytest.raises(UserError) as error:
            read_run(copy)
        return str(error.value)

    assert "is a running run; expected a finished one" in told(status="running")
    assert "test.jsonl, which has changed since" in told(data=record["data"] | {"test": "0"})
    assert "none.jsonl, which is not there" in told(
        arguments=record["arguments"] | {"test_data": "none.jsonl"}
    )
    assert "logits.npy: is not whole" in told()
    np.save(copy / "test" / "logits.npy", np.zeros((3, 3)))
    (copy / "training_logs.jsonl").write_text((folder / "training_logs.jsonl").read_text())
    assert "scores are (3, 3), the labels in" in told()


# -- by hand ----------------------------------------------------------------------------------------------------


def line(number: int, label: str, rights: list[int], samples: list[float], seeds: list[int]) -> dict:
    right = np.array([rights] * len(seeds), bool)
    scores = {"accuracy": right.mean(), "macro_f1": float(np.mean(samples))}
    return scores | {"number": number, "label": label, "seeds": seeds, "_right": right,
                     "_samples": {name: np.array(samples) for name in scores}}  # fmt: skip


def test_sentences_by_hand():
    a = line(1, "roberta", [1] * 90 + [0] * 10, [0.8 + 0.001 * (k % 7) for k in range(999)], [3, 0])
    b = line(2, "bert", [1] * 60 + [0] * 40, [0.75] * 999, [0, 3])
    c = line(3, "tiny", [1] * 60 + [0] * 40, [0.75 - 0.01 * (-1) ** k for k in range(999)], [5])
    pairs = [compare_pair(a, b), compare_pair(b, c)]
    correct_pairs(pairs)
    assert pairs[0]["mcnemar"]["seeds"] == [0, 0]  # the first that both have
    assert pairs[1]["mcnemar"]["seeds"] == [0, 5]
    lines = [a, b, c]
    assert verdict(pairs[0], lines, "macro_f1") == (
        "roberta is better than bert by 5.3 points (95 % interval 5.0 to 5.6, p = 0.004)"  # 2 x 2 / 1000
    )
    assert verdict(pairs[1], lines, "macro_f1").startswith(
        "no difference shown between bert and tiny: 0.0 points"
    )
    turned = compare_pair(b, a)
    correct_pairs([turned])
    assert verdict(turned, lines, "macro_f1").startswith(
        "roberta is better than bert by 5.3 points (95 % interval 5.0"
    )


def test_labels_name_what_varies():
    places = [["bert", "g", "a_10"], ["bert", "h", "a_10"], ["t5", "g", "a_10"], ["t5", "g", "a_10"]]
    lines = [{"place": place, "number": k} for k, place in enumerate(places, 1)]
    name_lines(lines)
    assert [line["label"] for line in lines] == ["bert / g", "bert / h", "t5 / g (3)", "t5 / g (4)"]
    name_lines(lines[:1])
    assert lines[0]["label"] == "bert"


def test_numbers_as_text():
    assert [millions(n) for n in (3120, 22_571_536, 1.24e9)] == ["3,120", "22.6 M", "1,240.0 M"]
    assert [format_p(p) for p in (0.0004, 0.0125, 1.0)] == ["<0.001", "0.013", "1.000"]


def test_equal_costs_stand_side_by_side_and_others_stay():
    assert side_by_side([1.0, 5.0, 11.0], False) == [1.0, 5.0, 11.0]
    moved = side_by_side([1.0, 1.0, 11.0], False)
    assert moved == pytest.approx([0.9, 1.1, 11.0])
    assert side_by_side([10.0, 1000.0, 10.0], True)[1] == pytest.approx(1000)
    assert all(map(math.isfinite, side_by_side([3.0], True)))


def test_the_picture_names_every_line(root):
    result = compare_runs([*folders(root, "one"), *folders(root, "few")])
    figure = comparison_figure(result["lines"], result["rows"])
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["1  good / one_96", "2  poor / one_96", "3  good / few_96"]
    headers = [text.get_text() for text in figure.axes[0].texts]
    assert headers[0].startswith("A: 60 rows of test.jsonl")
    assert headers[1].startswith("B: 30 rows of val_few.jsonl")
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes[1:]] == [["1", "2", "3"]] * 2
