"""jobs/search_report.py: costs, importance, table, pictures, HParams of a search."""

import random

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.search_report import (
    cost_of,
    cost_text,
    differences,
    importance,
    table_lines,
    table_text,
    trial_row,
    write_board,
    write_search,
)

SPACE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "dropout": {"low": 0.0, "high": 0.3}}
SPACE |= {"focal_gamma": {"low": 0.5, "high": 4.0, "if": {"loss": ["focal"]}}}
RANGES = {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True), "dropout": FloatDistribution(0.0, 0.3)}


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def study_of(*trials) -> list:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study.trials


def complete(minutes: float, value: float = 0.5, **about):
    return create_trial(value=value, user_attrs={"minutes": minutes} | about)


def pruned(minutes: float, step: int = 12, value: float = 0.3):
    kept = {"intermediate_values": {step: value}, "user_attrs": {"minutes": minutes}}
    return create_trial(state=TrialState.PRUNED, value=value, **kept)


def test_the_cost_by_hand():
    failed = create_trial(state=TrialState.FAIL, user_attrs={"minutes": 2.0, "why": "no room"})
    found = cost_of(study_of(complete(4.0), complete(8.0), complete(6.0), pruned(1.0), pruned(3.0), failed))
    assert found == {
        **{"n": 5, "complete": 3, "pruned": 2, "failed": 1},
        **{"minutes": 24.0, "minutes_pruned": 4.0, "full_minutes": 6.0, "share": 24 / 30},
    }
    told = cost_text(found)
    assert told == (
        "cost: 24.0 minutes of trials (3 complete, 2 pruned, 1 failed; 4.0 in pruned ones), "
        "0.80 of 5 full trainings of 6.0 minutes (median)"
    )


def test_a_cost_without_a_complete_trial():
    found = cost_of(study_of(pruned(1.0)))
    assert (found["full_minutes"], found["share"]) == (None, None)
    assert "full trainings" not in cost_text(found)


def sampled(num_trials: int) -> list:
    """Trials whose value hangs on the rate alone; every third is pruned."""
    rng, trials = random.Random(0), []
    for k in range(num_trials):
        params = {"learning_rate": 10 ** rng.uniform(-5, -3), "dropout": rng.uniform(0, 0.3)}
        kept = {"params": params, "distributions": RANGES, "value": params["learning_rate"]}
        state = TrialState.COMPLETE if (k + 1) % 3 else TrialState.PRUNED
        trials.append(create_trial(state=state, intermediate_values={12: 0.5}, **kept))
    return study_of(*trials)


def test_importance_finds_what_the_value_hangs_on():
    found = importance(sampled(30), SPACE, "maximize", 0)
    assert set(found) == {"learning_rate", "dropout"}  # nothing of a flag with a condition
    assert found["learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1)


def test_importance_with_too_few_trials_is_none():
    assert importance(sampled(9), SPACE, "maximize", 0) is None
    assert importance(sampled(10), SPACE, "maximize", 0) is not None


def test_trials_that_leave_out_a_flag_do_not_count_for_importance():
    kept = {"params": {"learning_rate": 1e-4}, "distributions": {"learning_rate": RANGES["learning_rate"]}}
    assert importance([*sampled(9), *study_of(create_trial(value=0.5, **kept))], SPACE, "maximize", 0) is None


def rows_of(*trials) -> list[dict]:
    return [trial_row(trial) for trial in study_of(*trials)]


def test_rows_and_table():
    failed = create_trial(state=TrialState.FAIL, user_attrs={"minutes": 0.25, "why": "no | room"})
    best = complete(4.0, 0.75, changed={"learning_rate": 2.13456e-4, "head": "mlp"})
    rows = rows_of(complete(2.0, 0.5, default=True), pruned(1.0), best, failed, complete(1.0, 0.6))
    assert [row["is_default"] for row in rows] == [True, False, False, False, False]
    lines = table_lines(rows, lower_is_better=False)
    assert lines == [
        ["2", "0.7500", "complete", "4.0", "learning_rate 0.000213, head mlp"],
        ["4", "0.6000", "complete", "1.0", "as the default"],
        ["0", "0.5000", "complete", "2.0", "the default"],
        ["1", "0.3000", "pruned at 12 %", "1.0", "as the default"],
        ["3", "-", "fail: no | room", "0.2", "as the default"],
    ]
    assert [line[0] for line in table_lines(rows, lower_is_better=True)] == ["0", "4", "2", "1", "3"]
    text = table_text(lines, 2)
    assert text.splitlines()[1:] == [
        "    2  0.7500  complete  4.0  learning_rate 0.000213, head mlp",
        "    4  0.6000  complete  1.0  as the default",
        "... and 3 more in trials.md",
    ]
    assert differences(rows[0]) == "the default"


def result_of(rows: list[dict], **more) -> dict:
    result = {"name": "mine", "command": "python -m jobs.tune", "study": "journal:x", "commit": "abc"}
    result |= {"metric": "macro_f1", "lower_is_better": False, "trials": rows, "told": ["one", "two"]}
    result |= {"data": {"train": {"path": "a.jsonl", "sha256": "0" * 64}}, "default": rows[0]}
    return result | {"importance": None, "table": table_lines(rows, False)} | more


@pytest.mark.parametrize("num_trials", [1, 12])
def test_what_is_written(tmp_path, num_trials):
    trials = sampled(num_trials)
    rows = [trial_row(trial) for trial in trials]
    shares = importance(trials, SPACE, "maximize", 0)
    for _ in range(2):  # again: what is there is replaced
        write_search(tmp_path / "out", result_of(rows, importance=shares), SPACE, "--epochs 3\n")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"search.json", "trials.md", "preset", "search.png", "flags.png", "tensorboard"}
    text = (tmp_path / "out" / "trials.md").read_text()
    assert text.count("\n| ") == num_trials + 1
    assert "- one\n- two" in text
    assert (tmp_path / "out" / "preset").read_text() == "--epochs 3\n"
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == num_trials


def test_a_bar_in_a_message_does_not_break_the_table(tmp_path):
    failed = create_trial(state=TrialState.FAIL, user_attrs={"why": "no | room"})
    rows = rows_of(complete(1.0), failed)
    write_search(tmp_path, result_of(rows), SPACE, "")
    line = next(line for line in (tmp_path / "trials.md").read_text().splitlines() if "room" in line)
    assert line.count("|") == 6


def test_hparams(tmp_path):
    rows = rows_of(complete(4.0, 0.75), create_trial(state=TrialState.FAIL))
    rows[0]["params"] = {"learning_rate": 1e-4, "head": "mlp"}
    write_board(tmp_path / "board", rows)
    assert [path.name for path in (tmp_path / "board").iterdir()] == ["000"]
    board = EventAccumulator(str(tmp_path / "board" / "000")).Reload()
    assert board.Scalars("search/value")[0].value == 0.75
    assert board.Scalars("search/minutes")[0].value == 4.0
