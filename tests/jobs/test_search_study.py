"""jobs/search_study.py: where a study is kept, who joins it, what is asked of it next, and the dead."""

import os
import subprocess
import sys
import time
import zlib

import optuna
import pytest
from optuna.trial import TrialState

from core.errors import UserError
from jobs import search_study
from jobs.search_space import suggest
from jobs.search_study import ask, bury_dead, is_dead, open_storage, queue_default
from tests.jobs.searches import go, search_of, states

KINDS = ["journal:{}/one.journal", "sqlite:///{}/db/one.db"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_goes_on(tmp_path, tiny_bert, kind):
    study = ["--study", kind.format(tmp_path)]
    first = go(search_of(tmp_path, tiny_bert, *study, "--trials", "4"))
    before = [(trial.params, trial.state) for trial in first.trials()]
    second = go(search_of(tmp_path, tiny_bert, *study, "--trials", "8"))
    assert [(trial.params, trial.state) for trial in second.trials()][:4] == before
    rates = [trial.params["learning_rate"] for trial in second.trials()]
    assert len(set(rates)) == len(rates) == 8  # nothing is drawn a second time
    third = go(search_of(tmp_path, tiny_bert, *study, "--trials", "8"))
    assert len(third.trials()) == 8


def test_a_search_in_two_parts_is_the_search_in_one(tmp_path, tiny_bert):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir()
    halves.mkdir()
    straight = go(search_of(whole, tiny_bert, "--trials", "12"))
    go(search_of(halves, tiny_bert, "--trials", "7"))
    twice = go(search_of(halves, tiny_bert, "--trials", "12"))
    told = [[(trial.params, trial.state, trial.value) for trial in one.trials()] for one in (straight, twice)]
    assert told[0] == told[1]


def test_another_seed_is_another_search(tmp_path, tiny_bert):
    rates = []
    for seed in ("0", "0", "1"):
        folder = tmp_path / str(len(rates))
        folder.mkdir()
        search = go(search_of(folder, tiny_bert, "--trials", "6", "--seed", seed))
        rates.append([trial.params["learning_rate"] for trial in search.trials()])
    assert rates[0] == rates[1]
    assert rates[0][1:] != rates[2][1:]


@pytest.mark.parametrize(
    "more, message",
    [
        (
            ["--seed", "1"],
            r"holds another search: --seed was 0, now 1\. Give another --output_dir or --study",
        ),
        (["--metric", "loss"], r"--metric was auto, now loss"),
        (["--flags=--batch_size 8 --learning_rate 1e-4"], r"--batch_size was 16, now 8"),
        (["--fix", "batch_size"], r"batch_size was searched"),
        (["--space", "default"], r"dropout was not searched"),
    ],
)
def test_a_study_of_another_search_is_refused(tmp_path, tiny_bert, more, message):
    search_of(tmp_path, tiny_bert)
    with pytest.raises(UserError, match=message):
        search_of(tmp_path, tiny_bert, *more)


def test_a_study_of_other_rows_is_refused(tmp_path, tiny_bert):
    search_of(tmp_path, tiny_bert)
    with open(tmp_path / "val.jsonl", "a") as file:
        file.write('{"text": "a", "label": "red"}\n')
    with pytest.raises(UserError, match=r"validation rows was [0-9a-f]{64}, now"):
        search_of(tmp_path, tiny_bert)


@pytest.mark.parametrize(
    "text, message",
    [
        ("mine.db", r"--study mine\.db: cannot be opened: expected journal:FILE or a database's URL"),
        ("nosql://x", r"cannot be opened"),
        ("sqlite:///{}/text.txt", r"cannot be opened: .*not a database"),
        ("journal:{}/text.txt", r"cannot be opened"),
    ],
)
def test_a_study_that_cannot_be_opened(tmp_path, text, message):
    (tmp_path / "text.txt").write_text("this is no study\n" * 20)
    with pytest.raises(UserError, match=message):
        open_storage(text.format(tmp_path), tmp_path)


# -- several workers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_share_a_study(tmp_path, tiny_bert, kind, monkeypatch):
    study = ["--study", kind.format(tmp_path), "--trials", "6"]
    one, two = (search_of(tmp_path, tiny_bert, *study) for _ in range(2))
    asked = []
    for k in range(6):  # in turn, all under way at once, each as a process of its own
        monkeypatch.setattr(search_study, "worker", lambda k=k: {"host": f"host{k % 2}", "pid": 1})
        monkeypatch.setattr(search_study, "HOST", f"host{k % 2}")
        search = (one, two)[k % 2]
        trial = ask(search)
        trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        asked.append(trial)
    assert [trial.number for trial in asked] == [0, 1, 2, 3, 4, 5]
    assert [trial.user_attrs.get("default", False) for trial in asked] == [True] + [False] * 5
    assert len({trial.params["learning_rate"] for trial in asked}) == 6
    assert not search_study_may_start(one)
    assert not search_study_may_start(two)


def search_study_may_start(search) -> bool:
    from jobs.search_loop import may_start

    return may_start(search, range(6))


def test_a_default_that_two_workers_queued_is_trained_once(tmp_path, tiny_bert):
    search = search_of(tmp_path, tiny_bert, "--trials", "3", "--pruner", "none")
    search.study.enqueue_trial({"learning_rate": 1e-4, "batch_size": 16}, user_attrs={"default": True})
    go(search)
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert search.trials()[1].user_attrs["why"] == "the default is there already"
    queue_default(search)
    assert len(search.trials()) == 4


@pytest.mark.slow  # it loads torch a second time
@pytest.mark.parametrize("kind", KINDS)
def test_two_commands_on_one_study(tmp_path, tiny_bert, kind):
    from jobs.trials import SPAWN
    from tests.jobs.fake_training import second_worker
    from tests.jobs.searches import argv_of

    more = ["--study", kind.format(tmp_path), "--trials", "40", "--pruner", "none"]
    argv = argv_of(tmp_path, tiny_bert, *more)
    others = [SPAWN.Process(target=second_worker, args=(argv,)) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(300)
        assert other.exitcode == 0
    search = search_of(tmp_path, tiny_bert, *more)
    done = search.trials(TrialState.COMPLETE)
    assert 40 <= len(done) <= 41  # both may begin the last one
    assert len({trial.user_attrs["worker"]["pid"] for trial in done}) == 2
    assert sum(bool(trial.user_attrs.get("default")) for trial in done) == 1
    assert len({trial.params["learning_rate"] for trial in done}) == len(done)


# -- the dead ---------------------------------------------------------------------------------------------------


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def under_way(search, host: str, pid: int, beat_ago: float = 0.0) -> int:
    """A running trial of another worker; its number."""
    trial = search.study.ask()
    trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
    trial.set_user_attr("worker", {"host": host, "pid": pid})
    trial.set_user_attr("beat", time.time() - beat_ago)
    return trial.number


def test_who_is_dead(tmp_path, tiny_bert):
    search, here = search_of(tmp_path, tiny_bert), search_study.HOST
    dead = {
        "ended": under_way(search, here, ended_pid()),
        "mine": under_way(search, here, os.getpid()),
        "an earlier one's": under_way(search, here, os.getpid()),
        "another's": under_way(search, here, os.getppid()),
        "elsewhere": under_way(search, "elsewhere", 1, beat_ago=60),
        "silent": under_way(search, "elsewhere", 1, beat_ago=3600),
        "just asked": search.study.ask().number,
    }
    trials = search.trials()
    found = {name: is_dead(trials[number], [dead["mine"]]) for name, number in dead.items()}
    assert [name for name, is_so in found.items() if is_so] == ["ended", "an earlier one's", "silent"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_dead_do_not_block(tmp_path, tiny_bert, kind):
    more = ["--study", kind.format(tmp_path), "--trials", "3", "--pruner", "none"]
    search = go(search_of(tmp_path, tiny_bert, *more, "--trials", "1"))
    number = under_way(search, search_study.HOST, ended_pid())
    rate = search.trials()[number].params["learning_rate"]
    search = go(search_of(tmp_path, tiny_bert, *more))
    assert states(search) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert search.trials()[2].params["learning_rate"] == rate  # what the dead had begun is trained


def test_what_kills_its_worker_is_not_begun_for_ever(tmp_path, tiny_bert):
    search = go(search_of(tmp_path, tiny_bert, "--trials", "1"))
    under_way(search, search_study.HOST, ended_pid())
    attempts = 1
    while True:
        bury_dead(search)
        waiting = search.trials(TrialState.WAITING)
        if not waiting:
            break
        attempts += 1
        trial = ask(search)
        trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True)
        trial.set_user_attr("worker", {"host": search_study.HOST, "pid": ended_pid()})
    assert attempts == search_study.MOST_ATTEMPTS


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_sampler_is_optunas_own_seeded_by_the_trials_number(tmp_path, tiny_bert):
    """The same draws as Optuna's TPE gives for the same trials, once its random start is over."""
    search = go(search_of(tmp_path, tiny_bert, "--trials", "12", "--pruner", "none"))
    last = search.trials()[-1]
    study = optuna.create_study(direction="maximize")
    study.add_trials(search.trials()[:-1])
    seed = zlib.crc32(b"0 11")
    kept = {"multivariate": True, "group": True, "constant_liar": True, "n_startup_trials": 4}
    study.sampler = optuna.samplers.TPESampler(seed=seed, **kept)
    trial = study.ask()
    assert suggest(trial, search.space, search.base) == last.params
