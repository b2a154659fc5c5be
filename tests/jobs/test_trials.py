"""jobs/trials.py: a training in a process of its own, and its messages."""

import os
from multiprocessing import Pipe

import pytest

from core.errors import UserError
from jobs import trials
from jobs.trials import how_ended, last_message, numbers, start_training
from tests.jobs import fake_training

FLAGS = ["--learning_rate", "3e-4", "--eval_steps", "5"]


def flags_of(folder) -> list[str]:
    return [*FLAGS, "--output_dir", str(folder)]


def messages(training, answers):
    """All messages of a training, evaluations answered as told."""
    found = []
    while True:
        found.append(training.receive())
        if found[-1][0] != "evaluated":
            training.end()
            return found
        training.pipe.send(answers.pop(0))


def test_a_training_tells_its_evaluations_and_its_end(tmp_path):
    training = start_training(fake_training.good, flags_of(tmp_path / "a"), tmp_path / "a")
    found = messages(training, [True] * 8)
    assert [message[1] for message in found[:-1]] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert found[0][2] == {"macro_f1": 1 / 8, "loss": 2 - 1 / 8}  # no tables
    assert found[-1] == ("finished", {"macro_f1": 1.0, "loss": 1.0})
    assert training.process.exitcode == 0


def test_a_training_that_is_told_to_stop_is_pruned(tmp_path):
    training = start_training(fake_training.good, flags_of(tmp_path / "a"), tmp_path / "a")
    assert [message[0] for message in messages(training, [True, False])] == [
        "evaluated",
        "evaluated",
        "pruned",
    ]
    assert (tmp_path / "a" / "evaluated").read_text().split() == ["5", "10"]


@pytest.mark.parametrize(
    "number, why",
    [
        (0, "ended by SIGKILL, memory perhaps"),
        (1, "ended with status 7, see its train.log"),
        (2, "MemoryError: no room"),
    ],
)
def test_however_it_dies_it_is_one_failure(tmp_path, number, why):
    folder = tmp_path / f"{number:03}"
    training = start_training(fake_training.dying, flags_of(folder), folder)
    assert messages(training, [True])[-1] == ("failed", why)
    log = (folder / "train.log").read_text()
    assert "it prints" in log
    assert ("Traceback" in log) == (number == 2)


def test_a_training_can_be_stopped(tmp_path):
    flags = ["--learning_rate", "1e-3", *flags_of(tmp_path / "a")[2:]]
    training = start_training(fake_training.sleeping, flags, tmp_path / "a")
    assert training.receive()[0] == "evaluated"
    training.pipe.send(True)
    training.end(at_once=True)
    assert training.process.exitcode == -15


def seen(flags, on_eval) -> dict:
    """Tells what it sees of the environment."""
    return {"gpu": int(os.environ["CUDA_VISIBLE_DEVICES"]), "threads": int(os.environ["OMP_NUM_THREADS"])}


def test_a_training_sees_its_device_alone(tmp_path, monkeypatch):
    told = {}

    class Process:
        def __init__(self, target, args, daemon):
            told["flags"] = args[1]

        def start(self):
            told.update(seen([], None))

    monkeypatch.setattr(trials.SPAWN, "Process", Process, raising=False)
    before = dict(os.environ)
    start_training(seen, ["--x"], tmp_path / "a", gpu="3", num_threads=2)
    assert told == {"flags": ["--x"], "gpu": 3, "threads": 2}
    assert dict(os.environ) == before


def test_a_bad_input_is_told_in_its_own_words(capsys):
    def fit(flags, on_eval):
        raise UserError("--val_data x: no such file")

    assert last_message(fit, [], None) == ("failed", "--val_data x: no such file")
    assert "error: --val_data x" in capsys.readouterr().err


def test_a_training_whose_search_is_gone_ends():
    def fit(flags, on_eval):
        on_eval(1, {})
        raise AssertionError("it went on")

    ours, theirs = Pipe()
    ours.close()
    with pytest.raises(SystemExit):
        last_message(fit, [], theirs)


def test_numbers_and_ends_in_words():
    assert numbers({"a": 1, "b": 0.5, "c": None, "d": True, "e": "x", "f": {}}) == {"a": 1, "b": 0.5}
    assert how_ended(None) == "does not end"
    assert how_ended(-15) == "ended by SIGTERM"
