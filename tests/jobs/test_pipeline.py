"""jobs/pipeline.py: which stages run, what each may see, the clock, a second start, and one small run of all of it."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.spent import read_uses
from jobs import pipeline, stage_rows, stages
from jobs.pipeline import parse_args
from jobs.pipeline_state import Pipeline, Skip
from tests.conftest import toy_rows, write_jsonl
from tests.jobs.fake_pipeline import combine_anything, existing, fake_run, train_all_of

# -- lines ------------------------------------------------------------------------------------------------------


def test_a_stage_that_is_done_is_not_done_again(pipe, flags):
    calls = []

    def stage(pipe):
        calls.append(1)
        return {"what": "a run", "run": fake_run(pipe, "single", 0.5)}

    pipe.do("single", stage)
    again = Pipeline(parse_args(flags), ["python"])
    again.do("single", stage)
    assert calls == [1]
    assert [line["validation"] for line in again.state["stages"]] == [{"macro_f1": 0.5}]


@pytest.mark.parametrize(
    "raised, status",
    [
        (Skip("no"), "skipped"),
        (Skip("no", no_time=True), "no time"),
        (UserError("no"), "failed"),
    ],
)
def test_a_stage_that_gives_nothing_says_why_and_is_tried_again(raised, status, pipe, flags):
    def stage(pipe):
        raise raised

    pipe.do("search", stage)
    assert [(line["status"], line["why"]) for line in pipe.state["stages"]] == [(status, "no")]
    again = Pipeline(parse_args(flags), ["python"])
    again.do("search", lambda pipe: {"what": "now it works", "run": None})
    assert [line["status"] for line in again.state["stages"]] == ["done"]


def test_what_all_others_stand_on_must_not_fail(pipe):
    def stage(pipe):
        raise UserError("no such model")

    with pytest.raises(UserError, match="no such model"):
        pipe.do("single", stage)


def test_a_stage_of_several_lines_is_tried_again_while_one_is_missing(flags):
    for status in ("no time", "done", "done"):
        lines = [
            {"key": name, "name": name, "what": "", "run": None, "status": status, "why": "w"}
            for name in "ab"
        ]
        pipe, calls = Pipeline(parse_args(flags), ["python"]), []
        pipe.do("architectures", lambda pipe, lines=lines, calls=calls: calls.append(1) or lines)
        found = [(line["key"], line["stage"]) for line in pipe.state["stages"]]
        assert found == [("a", "architectures"), ("b", "architectures")]
    assert calls == []


def test_the_best_line_is_that_of_validation_rows_and_of_ties_the_first(pipe):
    for key, score in (("single", 0.6), ("search", 0.7), ("ensemble", 0.7)):
        pipe.do(key, lambda pipe, key=key, score=score: {"what": "", "run": fake_run(pipe, key, score)})
    assert pipe.best_of(["single", "search", "ensemble"])["key"] == "search"
    assert pipe.best_run() == pipe.folder / "runs" / "search"
    assert "preset" in pipe.best_flags()[0]


def test_no_run_is_given_test_rows(pipe, files):
    for found in (pipe.flags(), pipe.row_flags(), pipe.shared_flags()):
        assert files["test_data"] not in found
    assert "--test_data" not in pipe.flags()


# -- the clock --------------------------------------------------------------------------------------------------


def test_time_of_earlier_starts_counts(flags):
    pipe = Pipeline(parse_args([*flags, "--hours", "0.5"]), ["python"])
    pipe.spent_before = 12.0
    assert 12 <= pipe.minutes() < 12.1
    assert pipe.minutes_left() == pytest.approx(0.9 * 30 - 12, abs=0.1)
    pipe.write()
    assert Pipeline(parse_args([*flags, "--hours", "0.5"]), ["python"]).spent_before == pytest.approx(
        12, abs=0.1
    )


def test_without_hours_there_is_no_end(pipe):
    assert pipe.minutes_left() == math.inf


@pytest.mark.parametrize("left, begins", [(9.0, False), (11.0, True)])
def test_a_search_wants_time_for_four_trainings(left, begins, flags, monkeypatch):
    """0.4 of what is left, of trainings of a minute."""
    pipe = Pipeline(parse_args([*flags, "--hours", "1"]), ["python"])
    pipe.do("single", lambda pipe: {"what": "", "run": fake_run(pipe, "single", 0.5), "minutes": 1.0})
    monkeypatch.setattr(Pipeline, "minutes_left", lambda self: left)
    given = []
    result = {
        "cost": {},
        "preset": "p",
        "best": 0.6,
        "default": 0.5,
        "run": str(pipe.folder / "runs" / "single"),
    }
    monkeypatch.setattr(stages.tune, "main", lambda flags: given.extend(flags) or result)
    pipe.do("search", stages.search)
    assert [line["status"] for line in pipe.state["stages"]] == ["done", "done" if begins else "no time"]
    if begins:
        hours = next(word for word in given if word.startswith("--hours="))
        assert float(hours.partition("=")[2]) == pytest.approx(0.4 * left / 60, rel=1e-3)


@pytest.mark.parametrize(
    "left, members, wanted", [(5.0, "auto", 5), (50.0, "auto", 8), (5.0, "2", 2), (1.5, "4", 1)]
)
def test_as_many_members_as_there_is_time_for(left, members, wanted, flags, monkeypatch):
    pipe = Pipeline(parse_args([*flags, "--hours", "1", "--members", members]), ["python"])
    pipe.do("single", lambda pipe: {"what": "", "run": fake_run(pipe, "single", 0.5)})
    monkeypatch.setattr(Pipeline, "minutes_left", lambda self: left)
    asked = {}
    train_all_of(monkeypatch, asked)
    combine_anything(monkeypatch)
    pipe.do("ensemble", stages.members)
    assert len(asked) == wanted
    seeds = [own[len(own) - 1 - own[::-1].index("--seed") + 1] for own in asked.values()]
    assert seeds == [str(k) for k in range(1, wanted + 1)]


def test_an_ensemble_of_other_runs_is_made_again(pipe):
    runs = [fake_run(pipe, name, 0.5) for name in ("single", "member1")]
    folder = fake_run(pipe, "ensemble", 0.6)
    members = [{"run": "../single"}, {"run": "../member1"}]
    (folder / "run.json").write_text(json.dumps({"ensemble": {"members": members}}))
    assert stages.is_of(folder, runs)
    assert not stages.is_of(folder, runs[:1])
    assert not stages.is_of(pipe.folder / "runs" / "nowhere", runs)


def test_new_runs_have_the_ensemble_and_the_calibration_done_again(pipe, flags):
    done = []

    def stage(key):
        return lambda pipe: done.append(key) or {"what": "", "run": fake_run(pipe, f"{key}{len(done)}", 0.5)}

    for key in ("single", "ensemble", "calibration"):
        pipe.do(key, stage(key))
    again = Pipeline(parse_args(flags), ["python"])
    for key in ("single", "search", "ensemble", "calibration"):
        again.do(key, stage(key))
    assert done == ["single", "ensemble", "calibration", "search", "ensemble", "calibration"]


def test_a_later_start_with_a_search_combines_all_runs_and_keeps_the_old_ensemble_until_then(
    pipe, flags, monkeypatch
):
    """Members of the flags before stay members; those of the search's flags have names of their own."""
    asked = {}
    train_all_of(monkeypatch, asked)
    combine_anything(monkeypatch)
    monkeypatch.setattr(stages.calibrate, "main", lambda argv: {"method": "temperature"})

    def run_all(own, searched):
        own.do("single", lambda pipe: {"what": "", "run": existing(pipe, "single", 0.5)})
        if searched:
            (own.folder / "search").mkdir()
            (own.folder / "search" / "preset").write_text("--epochs 2\n")
            own.do("search", lambda pipe: {"what": "", "run": existing(pipe, "best", 0.55)})
        own.do("ensemble", stages.members)
        own.do("calibration", stages.calibration)
        return [line["status"] for line in own.state["stages"]]

    assert run_all(pipe, False) == ["done"] * 3
    before = set(asked)
    again = Pipeline(parse_args(flags), ["python"])
    assert run_all(again, True) == ["done"] * 4
    members = json.loads((pipe.folder / "runs" / "ensemble" / "run.json").read_text())["ensemble"]["members"]
    assert {Path(m["run"]).name for m in members} == {"single", "best"} | set(asked)
    assert len(set(asked) - before) == len(before) == 3
    assert again.best_run().name == "ensemble"


def test_killed_before_the_ensemble_was_made_again_it_is_made_at_the_next_start(pipe, flags):
    done = []

    def stage(key):
        return lambda pipe: done.append(key) or {"what": "", "run": existing(pipe, key, 0.5)}

    for key in ("single", "ensemble", "calibration"):
        pipe.do(key, stage(key))
    second = Pipeline(parse_args(flags), ["python"])
    for key in ("single", "search"):  # and here it is killed
        second.do(key, stage(key))
    third = Pipeline(parse_args(flags), ["python"])
    for key in ("single", "search", "ensemble", "calibration"):
        third.do(key, stage(key))
    assert done == ["single", "ensemble", "calibration", "search", "ensemble", "calibration"]


def test_one_model_that_fails_leaves_the_others_their_lines(flags, monkeypatch):
    models = ["good=bert:a", "bad=bert:b"]
    pipe = Pipeline(parse_args([*flags, "--models", *models]), ["python"])
    pipe.state["metric"] = "macro_f1"
    train_all_of(monkeypatch, {}, fails=("bad",))
    monkeypatch.setattr(Pipeline, "model_of", lambda self, run: "a model")
    pipe.do("architectures", stages.architectures)
    assert [(line["key"], line["status"]) for line in pipe.state["stages"]] == [
        ("good", "done"),
        ("bad", "failed"),
    ]


def test_the_minutes_of_a_killed_stage_count_up_to_its_last_file(flags):
    pipe = Pipeline(parse_args([*flags, "--hours", "1"]), ["python"])

    def killed(pipe):
        path = pipe.folder / "log"
        path.write_text("a step")
        os.utime(path, (time.time() + 300, time.time() + 300))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.do("single", killed)
    again = Pipeline(parse_args([*flags, "--hours", "1"]), ["python"])
    assert again.minutes() == pytest.approx(5, abs=0.1)
    again.write()
    assert Pipeline(parse_args([*flags, "--hours", "1"]), ["python"]).minutes() == pytest.approx(5, abs=0.2)


def test_a_single_model_that_does_not_fit_the_hours_is_refused_before_it_is_trained(flags, monkeypatch):
    pipe = Pipeline(parse_args([*flags, "--hours", "0.1"]), ["python"])
    monkeypatch.setattr(Pipeline, "forecast_minutes", lambda self, flags: 6.0)
    with pytest.raises(UserError, match=r"--hours 0.1: the single model alone .* 6.0 min, and 5.4 are left"):
        stages.single(pipe)


def test_feedback_wants_time_for_a_training(flags, files, monkeypatch):
    pipe = Pipeline(parse_args([*flags, "--hours", "1", "--feedback", files["val_data"]]), ["python"])
    pipe.do("single", lambda pipe: {"what": "", "run": fake_run(pipe, "single", 0.5, minutes=3)})
    monkeypatch.setattr(Pipeline, "minutes_left", lambda self: 2.0)
    pipe.do("feedback", stages.feedback)
    assert [line["status"] for line in pipe.state["stages"]] == ["done", "no time"]


# -- rows -------------------------------------------------------------------------------------------------------


def test_parts_whose_test_rows_choose_are_refused(pipe, files):
    rows = [json.loads(line) for line in Path(files["test_data"]).read_text().splitlines()]
    write_jsonl(Path(files["val_data"]), [*toy_rows(5, 7), rows[0]])
    with pytest.raises(UserError, match=r"--val_data .*: 1 of its 6 rows are test rows of"):
        stage_rows.split_rows(pipe)


def test_feedback_on_test_rows_is_refused(flags, files, tmp_path):
    rows = [json.loads(line) for line in Path(files["test_data"]).read_text().splitlines()][:2]
    given = write_jsonl(tmp_path / "said.jsonl", [{"text": row["text"], "feedback": 1} for row in rows])
    pipe = Pipeline(parse_args([*flags, "--feedback", given]), ["python"])
    pipe.do("split", stage_rows.split_rows)
    pipe.do("single", lambda pipe: {"what": "", "run": fake_run(pipe, "single", 0.5)})
    with pytest.raises(UserError, match=r"--feedback .*: 2 of its 2 rows are test rows"):
        stages.feedback(pipe)


def test_a_label_of_the_test_rows_alone_is_refused_before_anything_is_trained(pipe, files):
    write_jsonl(Path(files["test_data"]), [*toy_rows(5, 7), {"text": "x", "label": "purple"}])
    with pytest.raises(UserError, match=r"--test_data .*: labels without a training row: purple"):
        stage_rows.split_rows(pipe)


# -- bad flags --------------------------------------------------------------------------------------------------


def test_other_flags_in_the_same_folder_are_refused(flags):
    Pipeline(parse_args(flags), ["python"]).write()
    Pipeline(parse_args([*flags, "--hours", "3", "--skip", "search"]), ["python"])  # these may change
    with pytest.raises(UserError, match="holds another pipeline: --seed was 0, now 1"):
        Pipeline(parse_args([*flags, "--seed", "1"]), ["python"])


def test_rows_that_have_changed_are_refused(flags, files):
    Pipeline(parse_args(flags), ["python"]).write()
    write_jsonl(Path(files["train_data"]), toy_rows(20, 9))
    with pytest.raises(UserError, match=r"--train_data .* has changed since"):
        Pipeline(parse_args(flags), ["python"])


@pytest.mark.parametrize(
    "more, message",
    [
        (["--data", "all.jsonl"], "expected --data, or the parts"),
        (["--skip", "single"], "invalid choice"),
        (["--flags", "--seed 3"], "--seed is given by the grid"),
        (["--flags", "--text_field title"], "--text_field is a flag of the pipeline itself"),
        (["--flags", "--metric accuracy"], "--metric is a flag of the pipeline itself"),
        (["--models", "single=bert:x"], "--models single: is the name of a stage"),
        (["--gpus", "0"], "no CUDA device"),
    ],
)
def test_bad_flags(more, message, flags):
    with pytest.raises(UserError, match=message):
        parse_args([*flags, *more])


def test_parts_must_be_whole(files, tmp_path):
    with pytest.raises(UserError, match="--test_data: not given"):
        parse_args(
            [
                "--train_data",
                files["train_data"],
                "--val_data",
                files["val_data"],
                "--output_dir",
                str(tmp_path),
            ]
        )


# -- all of it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "list"])
def test_from_one_file_to_a_report(kind, tiny_bert, tmp_path):
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows(300, 0, kind))
    own = f"--model_name {tiny_bert} --epochs 4 --learning_rate 1e-2 --max_length 32 --cache_dir {tmp_path / 'cache'}"
    flags = [
        "--data",
        data,
        "--flags",
        own,
        "--members",
        "1",
        "--skip",
        "search",
        "regularisers",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    found = pipeline.main(flags)
    out = tmp_path / "out"
    state = json.loads((out / "pipeline.json").read_text())
    assert state["status"] == "finished"
    done = {line["key"]: line for line in state["stages"] if line["status"] == "done"}
    last = "calibration" if kind == "one" else "thresholds"
    assert set(done) == {"split", "baselines", "single", "ensemble", "calibration", last}
    assert (done["ensemble"]["gain"]["over"], done["single"]["gain"]) == ("single", None)
    final = out / done["calibration"]["run"]
    others = [run for run in (out / "runs").iterdir() if run != final]
    assert len(others) == 2
    for run in others:
        assert "test" not in json.loads((run / "run.json").read_text())["data"]
    assert found["run"] == str(final)
    assert found["gain"]["over"] == "single"
    assert state["final"] == last
    if kind == "list":  # calibrated probabilities decide as the raw ones did; the thresholds do not
        assert done["calibration"]["gain"]["macro_f1"] == 0
    num_rows = len((out / "split" / "test.jsonl").read_text().splitlines())
    assert done["calibration"]["test"]["n"] == len(np.load(final / "test" / "logits.npy")) == num_rows
    assert np.array_equal(np.sort(read_uses(final)["test"]), np.sort(read_uses(out / "split")["test"]))
    assert {"report.html", "report.md"} <= {path.name for path in out.iterdir()}
    stamps = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/best_model/*")}
    pipeline.main(flags)  # again: nothing is trained
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/best_model/*")}
