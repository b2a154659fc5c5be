"""A training in a process of its own that asks, after each evaluation, whether it is to go on.

The process is a fresh one, so that a crash, an end of memory or a kill is one failed training, and its GPU memory is
given back. It ends by itself, at its next evaluation, when the process that started it is gone.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna

from core.errors import UserError

SPAWN = multiprocessing.get_context("spawn")
LONGEST_END_S = 60  # of a process that has told its result


@dataclass
class Training:
    """A training that runs. Its messages: ("evaluated", step, metrics), to be answered with send(bool: go on), and as
    the last ("finished", metrics), ("pruned",) or ("failed", why)."""

    folder: Path
    gpu: str
    started: float  # time.monotonic()
    process: BaseProcess
    pipe: Connection

    @property
    def minutes(self) -> float:
        """Since it was started: what it costs."""
        return (time.monotonic() - self.started) / 60

    def receive(self) -> tuple:
        """The next message; where the process died without a word, how it ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(LONGEST_END_S)
            return ("failed", how_ended(self.process.exitcode))

    def end(self, at_once: bool = False) -> None:
        """Wait for the process; one that does not end, or with at_once, is stopped."""
        self.pipe.close()
        if at_once:
            self.process.terminate()
        self.process.join(LONGEST_END_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def start_training(
    fit: Callable, flags: list[str], folder: Path, gpu: str = "", num_threads: int = 0
) -> Training:
    """Start fit(flags, on_eval) in a process of its own; what it prints goes to folder/train.log.

    Args: fit: train.main, or what takes its place: importable by name | gpu: the device that it sees; "": all |
          num_threads: of the CPU; 0: as it likes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours, theirs = SPAWN.Pipe()
    log = str(folder / "train.log")
    process = SPAWN.Process(target=run_training, args=(fit, flags, log, theirs), daemon=True)
    env = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
    env |= {"OMP_NUM_THREADS": str(num_threads)} if num_threads else {}
    with environment(env):  # inherited: both are read when torch is loaded
        process.start()
    theirs.close()  # so that the process's end is the pipe's end
    return Training(folder, gpu, time.monotonic(), process, ours)


@contextlib.contextmanager
def environment(env: dict[str, str]) -> Iterator[None]:
    """Environment variables for the block."""
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_training(fit: Callable, flags: list[str], log: str, pipe: Connection) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it, which stops it
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    pipe.send(last_message(fit, flags, pipe))


def last_message(fit: Callable, flags: list[str], pipe: Connection) -> tuple:
    """Call fit, tell its evaluations, and return what it came to."""

    def on_eval(step: int, metrics: dict) -> None:
        pipe.send(("evaluated", step, numbers(metrics)))
        if not pipe.recv():
            raise optuna.TrialPruned

    try:
        return ("finished", numbers(fit(flags, on_eval)))
    except optuna.TrialPruned:
        return ("pruned",)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return ("failed", str(error))
    except (EOFError, BrokenPipeError):  # nobody is there to tell
        raise SystemExit(1) from None
    except Exception as error:
        traceback.print_exc()
        return ("failed", f"{type(error).__name__}: {error}".splitlines()[0][:300])


def numbers(metrics: dict) -> dict:
    """The flat numbers of metrics: without tables and what is undefined."""
    return {k: v for k, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def how_ended(code: int | None) -> str:
    """A process's end in words."""
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}" + ", memory perhaps" * (code == -signal.SIGKILL)
    return "does not end" if code is None else f"ended with status {code}, see its train.log"
