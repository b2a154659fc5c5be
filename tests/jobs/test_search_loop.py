"""jobs/search_loop.py: trials judged, stopped, put into the study; their trainings are fakes, most in threads."""

import math
import os
import signal
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from core.errors import UserError
from jobs import search_loop
from jobs.search_loop import may_start, tidy, trial_flags
from jobs.search_study import ask
from jobs.trials import start_training
from tests.jobs import fake_training
from tests.jobs.fake_training import good, is_default
from tests.jobs.searches import go, search_of, states


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(search_loop, "POLL_S", 0.02)


def evaluations(search, number: int) -> int:
    path = search.folder / "trials" / f"{number:03}" / "evaluated"
    return len(path.read_text().split()) if path.exists() else 0


# -- the default and the judgement of the others ----------------------------------------------------------------


def bad_default(flags, on_eval):
    """The default learns nothing at all."""

    def judged(step, metrics):
        on_eval(step, metrics | {"macro_f1": 0.01} if is_default(flags) else metrics)

    return good(flags, judged) | ({"macro_f1": 0.01} if is_default(flags) else {})


@pytest.mark.parametrize("pruner", ["halving", "hyperband", "median", "none"])
def test_the_default_comes_first_and_is_never_pruned(tmp_path, tiny_bert, pruner):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "12", "--pruner", pruner), bad_default)
    first = search.trials()[0]
    assert first.state == TrialState.COMPLETE
    assert first.value == 0.01
    assert first.params == {"learning_rate": 1e-4, "batch_size": 16}
    assert first.user_attrs["changed"] == {}
    assert evaluations(search, 0) == 8
    assert [trial.user_attrs.get("default", False) for trial in search.trials()] == [True] + [False] * 11
    assert len(search.trials()) == 12


def test_a_default_that_others_overtake_is_not_pruned(tmp_path, tiny_bert):
    """Of two trials at once the other passes the first rung first, with a better value."""
    search = search_of(tmp_path, tiny_bert, "--trials", "3", "--workers", "2")

    def at_step(step, flags):
        while is_default(flags) and step == 1 and evaluations(search, 1) < 2:
            time.sleep(0.01)

    def fit(flags, on_eval):
        def judged(step, metrics):
            on_eval(step, metrics | {"macro_f1": -9.0} if is_default(flags) else metrics)

        return good(flags, judged, at_step)

    go(search, fit)
    assert search.trials()[0].intermediate_values[12] < search.trials()[1].intermediate_values[12]
    assert search.trials()[0].state == TrialState.COMPLETE


def test_the_hopeless_are_pruned_at_the_first_rung(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "20"))
    pruned = [trial for trial in search.trials(TrialState.PRUNED) if trial.last_step == 12]
    complete = search.trials(TrialState.COMPLETE)
    assert len(pruned) > 6
    assert all(evaluations(search, trial.number) == 1 for trial in pruned)
    assert all(evaluations(search, trial.number) == 8 for trial in complete)
    assert search.study.best_value > 0.9  # the fake's best rate is 3e-4
    assert search.study.best_value == max(trial.value for trial in complete)
    spent = sum(evaluations(search, k) for k in range(20)) / (20 * 8)
    assert spent < 0.45


def test_without_a_pruner_all_are_complete(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "6", "--pruner", "none"))
    assert states(search) == ["COMPLETE"] * 6


def test_values_are_reported_in_percent_of_a_trials_own_steps(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "6", "--pruner", "none"))
    sizes = {trial.params["batch_size"]: list(trial.intermediate_values) for trial in search.trials()}
    assert sizes == {size: [12, 25, 37, 50, 62, 75, 87, 100] for size in (8, 16)}  # 8: twice the steps


def falling(flags, on_eval):
    """Its second evaluation is its best."""
    values = iter([0.2, 0.9, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1])
    return good(flags, lambda step, metrics: on_eval(step, {"macro_f1": next(values)})) | {"macro_f1": 0.9}


def test_what_is_reported_is_the_best_so_far(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "1"), falling)
    assert list(search.trials()[0].intermediate_values.values()) == [0.2] + [0.9] * 7


def test_a_loss_is_searched_downwards(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "12", "--metric", "loss"))
    complete = search.trials(TrialState.COMPLETE)
    assert search.study.best_value == min(trial.value for trial in complete)
    assert search.study.best_value < complete[0].value
    reported = [list(trial.intermediate_values.values()) for trial in search.trials()]
    assert all(values == sorted(values, reverse=True) for values in reported)
    worst = max(search.trials(), key=lambda trial: abs(math.log10(trial.params["learning_rate"] / 3e-4)))
    assert worst.state == TrialState.PRUNED


def test_flags_of_a_trial(tmp_path, tiny_bert):
    search = search_of(tmp_path, tiny_bert)
    flags = trial_flags(search, {"learning_rate": 1.23456e-3, "batch_size": 8}, tmp_path / "run")
    assert flags[-12:] == [
        *(
            "--learning_rate",
            "0.00123",
            "--batch_size",
            "8",
            "--eval_steps",
            "15",
            "--save_steps",
            "1000000000",
        ),
        *("--seed", "0", "--output_dir", str(tmp_path / "run")),
    ]  # 96 rows, 10 epochs of 12 steps, an eighth of them
    search.base.eval_steps = 7
    assert "--eval_steps" not in trial_flags(search, {}, tmp_path / "run")
    search.base.eval_steps, search.args.evaluations = 0, 0
    assert "--eval_steps" not in trial_flags(search, {}, tmp_path / "run")


# -- failures ---------------------------------------------------------------------------------------------------


def test_a_trial_that_dies_is_one_failed_trial(tmp_path, tiny_bert):
    search = search_of(tmp_path, tiny_bert, "--trials", "9", "--pruner", "none")
    go(search, fake_training.dying, start_training)  # in processes: five failures in a row, and it stops
    assert states(search)[0] == "COMPLETE"
    failed = search.trials(TrialState.FAIL)
    assert {trial.user_attrs["why"] for trial in failed} == {
        "ended by SIGKILL, memory perhaps",
        "ended with status 7, see its train.log",
        "MemoryError: no room",
    }
    assert len(failed) == len(search.failures) == 5
    assert not may_start(search, [])


def sometimes(flags, on_eval):
    """The second trial fails, the fourth is undefined."""
    number = int(fake_training.folder_of(flags).name)
    if number == 1:
        raise RuntimeError("CUDA out of memory")
    return good(flags, on_eval) | ({"macro_f1": math.nan} if number == 3 else {})


def test_failed_trials_do_not_count(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "6", "--pruner", "none"), sometimes)
    assert len(search.trials(TrialState.COMPLETE)) == 6
    whys = {trial.number: trial.user_attrs["why"] for trial in search.trials(TrialState.FAIL)}
    assert whys == {1: "RuntimeError: CUDA out of memory", 3: "macro_f1 is undefined"}
    assert all(trial.user_attrs["minutes"] > 0 for trial in search.trials())


def test_a_default_that_fails_ends_the_search(tmp_path, tiny_bert):
    def fit(flags, on_eval):
        raise UserError("--val_data x: 3 of its 9 rows are test rows")

    search = search_of(tmp_path, tiny_bert)
    with pytest.raises(
        UserError, match=r"the default flags themselves fail: --val_data x: 3 of .*train\.log"
    ):
        go(search, fit)
    assert states(search) == ["FAIL"]


# -- time, Ctrl-C, and going on ---------------------------------------------------------------------------------


def test_no_trial_starts_that_is_not_expected_to_finish(tmp_path, tiny_bert):
    search = search_of(tmp_path, tiny_bert, "--hours", "1")
    for minutes in (4.0, 50.0, 6.0):
        search.study.add_trial(optuna.trial.create_trial(value=0.5, user_attrs={"minutes": minutes}))
    starts = {}
    for left, num_seeds in [(5, 0), (7, 0), (17, 1), (19, 1), (25, 9), (27, 9)]:
        search.args.retrain_seeds, search.deadline = num_seeds, time.monotonic() + 60 * left
        starts[left] = may_start(search, [])
    # the median takes 6 minutes, a pair of retrainings 12, and all of them get a third of the hour at the most
    assert starts == {5: False, 7: True, 17: False, 19: True, 25: False, 27: True}


def test_no_trial_starts_beyond_their_number(tmp_path, tiny_bert):
    search = search_of(tmp_path, tiny_bert, "--trials", "4")
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL):
        value = 0.5 if state == TrialState.COMPLETE else None
        search.study.add_trial(optuna.trial.create_trial(state=state, value=value))
    under_way = [ask(search).number]
    assert may_start(search, under_way)
    under_way.append(ask(search).number)
    assert not may_start(search, under_way)


def waiting_fit(release: threading.Event):
    """Trainings that wait at their second evaluation, but for the default."""

    def at_step(step, flags):
        if step == 2 and not is_default(flags):
            release.wait(60)

    return lambda flags, on_eval: good(flags, on_eval, at_step)


def test_when_the_time_is_over_a_trial_is_stopped_and_queued_again(tmp_path, tiny_bert):
    release = threading.Event()
    search = search_of(tmp_path, tiny_bert, "--trials", "4", "--pruner", "none", "--hours", "1")
    threading.Thread(target=set_deadline_when_waiting, args=(search,)).start()
    go(search, waiting_fit(release))
    release.set()
    default, stopped, again = search.trials()
    assert default.state == TrialState.COMPLETE
    assert (stopped.state, stopped.user_attrs["why"]) == (TrialState.FAIL, "no time left")
    assert again.state == TrialState.WAITING
    search = go(search_of(tmp_path, tiny_bert, "--trials", "2", "--pruner", "none"))
    assert search.trials()[2].params == stopped.params
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE"]


def set_deadline_when_waiting(search):
    """Once the trial behind the default has evaluated, there is no time left."""
    while evaluations(search, 1) < 1:
        time.sleep(0.01)
    search.deadline = time.monotonic()


def test_ctrl_c_stops_the_trials_and_the_same_command_goes_on(tmp_path, tiny_bert):
    search = search_of(tmp_path, tiny_bert, "--trials", "4", "--pruner", "none")

    def interrupt():
        while evaluations(search, 1) < 1:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        go(search, fake_training.sleeping, start_training)  # a process: it would sleep for ten minutes
    assert states(search) == ["COMPLETE", "FAIL", "WAITING"]
    stopped = search.trials()[1].params
    search = go(search_of(tmp_path, tiny_bert, "--trials", "4", "--pruner", "none"))
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert search.trials()[2].params == stopped
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupted_default_is_the_default_again(tmp_path, tiny_bert):
    release, search = threading.Event(), search_of(tmp_path, tiny_bert, "--hours", "1")
    threading.Thread(target=lambda: (time.sleep(0.3), setattr(search, "deadline", 0.0))).start()

    def fit(flags, on_eval):
        release.wait(60)

    go(search, fit)
    release.set()
    search = go(search_of(tmp_path, tiny_bert, "--trials", "3"))
    assert states(search)[:2] == ["FAIL", "COMPLETE"]
    assert search.trials()[1].user_attrs["default"]
    assert search.trials()[1].params == {"learning_rate": 1e-4, "batch_size": 16}


def test_several_trials_at_once(tmp_path, tiny_bert):
    both = threading.Barrier(2, timeout=30)

    def fit(flags, on_eval):
        return good(flags, on_eval, lambda step, flags: both.wait() if step == 2 else None)

    search = go(search_of(tmp_path, tiny_bert, "--trials", "4", "--workers", "2", "--pruner", "none"), fit)
    assert states(search) == ["COMPLETE"] * 4


# -- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["best", "all", "none"])
def test_whose_weights_stay(tmp_path, tiny_bert, keep):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "8", "--keep", keep))
    best = search.study.best_trial.number
    kept = {path.parent.name for path in search.folder.glob("trials/*/best_model")}
    assert kept == {"best": {f"{best:03}"}, "none": set(), "all": {f"{k:03}" for k in range(8)}}[keep]
    checkpoints = len(list(search.folder.glob("trials/*/checkpoint")))
    assert checkpoints == (8 if keep == "all" else 0)


def test_weights_of_a_trial_under_way_are_left_alone(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "1"))
    number = search.study.ask().number
    (search.folder / "trials" / f"{number:03}" / "best_model").mkdir(parents=True)
    tidy(search)
    assert (search.folder / "trials" / f"{number:03}" / "best_model").exists()
    search.study.tell(number, state=TrialState.FAIL)
    tidy(search)
    assert not (search.folder / "trials" / f"{number:03}" / "best_model").exists()


def test_a_trial_that_another_worker_took_for_dead_is_dropped(tmp_path, tiny_bert, capsys):
    search = search_of(tmp_path, tiny_bert, "--trials", "3", "--pruner", "none")

    def fit(flags, on_eval):
        number = int(fake_training.folder_of(flags).name)
        if number == 1:
            search.study.tell(1, state=TrialState.FAIL)
        return good(flags, on_eval)

    go(search, fit)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "took this one for dead" in capsys.readouterr().out
