"""jobs/stages.py: regularisers, folds, thresholds and self-training as stages of jobs.pipeline."""

import json
from pathlib import Path

import pytest

from core.errors import UserError
from jobs import stage_rows, stages
from jobs.pipeline_state import Pipeline, Skip
from tests.conftest import toy_rows, write_jsonl
from tests.jobs.fake_pipeline import combine_anything, fake_run, train_all_of, with_single

# -- regularisers -----------------------------------------------------------------------------------------------


def test_each_regulariser_is_the_single_model_and_one_flag_more(flags, monkeypatch):
    pipe, asked = with_single(flags), {}
    train_all_of(monkeypatch, asked)
    pipe.do("regularisers", stages.regularisers)
    assert {name: own[len(pipe.flags()) :] for name, own in asked.items()} == {
        "ema": ["--ema", "0.99"],
        "neftune": ["--neftune", "5"],
        "rdrop": ["--rdrop", "1"],
        "fgm": ["--fgm", "0.5"],
    }
    assert [line["minutes"] for line in pipe.state["stages"][1:]] == [1.0] * 4


@pytest.mark.parametrize("left, fit", [(3.0, []), (4.0, ["ema"]), (15.0, ["ema", "neftune", "rdrop"])])
def test_regularisers_take_their_share_of_the_time(left, fit, flags, monkeypatch):
    """0.3 of what is left; 1.1, 1.1, 2.1 and 2.1 trainings of a minute."""
    pipe, asked = with_single([*flags, "--hours", "1"]), {}
    train_all_of(monkeypatch, asked)
    monkeypatch.setattr(Pipeline, "minutes_left", lambda self: left)
    pipe.do("regularisers", stages.regularisers)
    assert list(asked) == fit
    assert {line["status"] for line in pipe.state["stages"] if line["key"] not in ("single", *fit)} == {
        "no time"
    }


def test_a_regulariser_that_all_runs_have_is_no_line_of_its_own(flags, monkeypatch):
    pipe, asked = with_single([*flags, "--flags", "--rdrop 2"]), {}
    train_all_of(monkeypatch, asked)
    pipe.do("regularisers", stages.regularisers)
    assert list(asked) == ["ema", "neftune", "fgm"]


@pytest.mark.parametrize("single, added", [(0.4, ["--ema", "0.99"]), (0.6, [])])
def test_members_have_the_regulariser_that_was_better_than_none(single, added, flags, monkeypatch):
    pipe = with_single(flags, single)
    train_all_of(monkeypatch, {}, fails=("neftune", "rdrop", "fgm"))
    pipe.do("regularisers", stages.regularisers)
    assert pipe.best_flags() == [*pipe.flags(), *added]


# -- what is made of the best run -------------------------------------------------------------------------------


@pytest.mark.parametrize("left, folds", [(11.0, ["--folds", "5"]), (10.0, [])])
def test_folds_are_trained_where_there_is_time_for_them(left, folds, flags, monkeypatch):
    """Of two runs, four more trainings of a minute each: 8 minutes."""
    pipe, given = with_single([*flags, "--hours", "1", "--folds", "5", "--members", "1"]), []
    train_all_of(monkeypatch, {})
    combine_anything(monkeypatch)
    combine = stages.ensemble.main
    monkeypatch.setattr(stages.ensemble, "main", lambda argv: given.extend(argv) or combine(argv))
    monkeypatch.setattr(Pipeline, "minutes_left", lambda self: left - 3)
    pipe.do("ensemble", stages.members)
    at = given.index("--folds") if "--folds" in given else len(given)
    assert given[at : at + 2] == folds


def test_thresholds_are_for_several_labels_a_row(pipe):
    pipe.state["multi_label"] = False
    with pytest.raises(Skip, match="the most probable class decides"):
        stages.thresholds(pipe)


@pytest.mark.parametrize("skipped, method", [([], "platt"), (["calibration"], "none")])
def test_thresholds_stand_on_the_probabilities_that_are_there(skipped, method, flags, monkeypatch):
    pipe, given = with_single([*flags, *(["--skip", *skipped] if skipped else [])]), []
    pipe.state["multi_label"] = True
    found = {"method": "platt", "left_at_half": 1}
    monkeypatch.setattr(stages.calibrate, "main", lambda argv: given.append(argv) or found)
    pipe.do("calibration", stages.calibration)
    pipe.do("thresholds", stages.thresholds)
    assert given[-1][-2:] == ["--method", method]
    assert "--no_thresholds" not in given[-1]
    assert ["--no_thresholds" in argv for argv in given[:-1]] == [True] * (not skipped)


# -- self-training ----------------------------------------------------------------------------------------------


def unlabelled(tmp_path, rows: list[dict]) -> list[str]:
    return ["--unlabelled", write_jsonl(tmp_path / "pool.jsonl", [{"text": row["text"]} for row in rows])]


def fake_selftrain(monkeypatch, pipe: Pipeline, given: dict) -> None:
    """Self-training that is over at once; given takes its flags."""

    def main(argv):
        given.update(word.removeprefix("--").split("=", 1) for word in argv if "=" in word)
        run = fake_run(pipe, "student", 0.7)
        return {"run": str(run), "best_round": 1, "gain": {}, "stopped": "", "rounds": [0, 1]}

    monkeypatch.setattr(stages.jobs.selftrain, "main", main)


def test_self_training_sees_no_test_row_and_its_run_is_a_line(flags, tmp_path, monkeypatch):
    pipe, given = with_single([*flags, *unlabelled(tmp_path, toy_rows(9, 8))]), {}
    fake_selftrain(monkeypatch, pipe, given)
    pipe.do("selftrain", stages.selftrain)
    assert [(line["status"], line["run"]) for line in pipe.state["stages"]][-1] == ("done", "runs/student")
    assert pipe.parts["test"] not in " ".join(given.values())
    assert given["rounds"] == "3"


def test_unlabelled_rows_that_are_test_rows_are_refused(flags, files, tmp_path):
    rows = [json.loads(line) for line in Path(files["test_data"]).read_text().splitlines()]
    pipe = with_single([*flags, *unlabelled(tmp_path, rows[:3])])
    pipe.do("split", stage_rows.split_rows)
    with pytest.raises(UserError, match=r"--unlabelled .*: 3 of its 3 rows are test rows"):
        stages.selftrain(pipe)


@pytest.mark.parametrize(("left", "rounds"), [(4.9, None), (5.1, "1"), (8, "2"), (100, "3")])
def test_rounds_of_self_training_are_those_there_is_time_for(left, rounds, flags, tmp_path, monkeypatch):
    """0.4 of what is left, of trainings of a minute, the first of them without pseudo-labels."""
    pipe, given = with_single([*flags, "--hours", "1", *unlabelled(tmp_path, toy_rows(9, 8))]), {}
    fake_selftrain(monkeypatch, pipe, given)
    monkeypatch.setattr(Pipeline, "minutes_left", lambda self: left)
    pipe.do("selftrain", stages.selftrain)
    assert given.get("rounds") == rounds
    assert pipe.state["stages"][-1]["status"] == ("done" if rounds else "no time")
