"""Trainings that train nothing, for the tests of searches; without torch, so that a process of them starts soon.

The value rises with the steps to 1 less the distance of the learning rate from 3e-4, in decades.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

from jobs.trials import Training, last_message


def value_of(flags: list[str]) -> float:
    """What a run of these flags comes to."""
    rates = [flags[k + 1] for k, flag in enumerate(flags) if flag == "--learning_rate"]
    return 1 - abs(math.log10(float(rates[-1])) - math.log10(3e-4))


def folder_of(flags: list[str]) -> Path:
    """--output_dir, the last one given."""
    return Path([flags[k + 1] for k, flag in enumerate(flags) if flag == "--output_dir"][-1])


def good(flags: list[str], on_eval: Callable, at_step: Callable = lambda step, flags: None) -> dict:
    """Evaluate each --eval_steps, leave weights behind, finish. at_step: called before each evaluation."""
    folder, value = folder_of(flags), value_of(flags)
    eval_steps = int(flags[flags.index("--eval_steps") + 1])
    num_steps = eval_steps * 8
    metric = "loss" if "--metric" in flags else "macro_f1"
    record = {"status": "running", "num_steps": num_steps, "metric": metric}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    for name in ("best_model", "final_model", "checkpoint"):
        (folder / name).mkdir()
    for step in range(eval_steps, num_steps + 1, eval_steps):
        at_step(step // eval_steps, flags)
        with open(folder / "evaluated", "a") as file:
            print(step, file=file)
        now = value * step / num_steps
        on_eval(step, {"macro_f1": now, "loss": 2 - now, "per_class": {}})
    found = {"macro_f1": value, "loss": 2 - value}
    finished = {"status": "finished", "metrics": {"validation": found}}
    (folder / "run.json").write_text(json.dumps(record | finished))
    return found | {"run": str(folder)}


def is_default(flags: list[str]) -> bool:
    """Whether these are the flags of a trial that adds nothing: the tests' default has a rate of 1e-4."""
    return value_of(flags) == value_of(["--learning_rate", "1e-4"])


def dying(flags: list[str], on_eval: Callable) -> dict:
    """Dies of another cause in each trial but the default: by its number."""

    def at_step(step: int, flags: list[str]) -> None:
        if step == 2 and not is_default(flags):
            kind = int(folder_of(flags).name) % 3
            if kind == 0:
                os.kill(os.getpid(), 9)
            if kind == 1:
                os._exit(7)
            raise MemoryError("no room\nfor it")

    print("it prints")
    return good(flags, on_eval, at_step)


def sleeping(flags: list[str], on_eval: Callable) -> dict:
    """Never ends, but for the default."""

    def at_step(step: int, flags: list[str]) -> None:
        if step == 2 and not is_default(flags):
            time.sleep(600)

    return good(flags, on_eval, at_step)


class FakeProcess:
    """A thread in a process's clothes; it cannot be stopped from outside, but ends at its next evaluation."""

    exitcode = 1

    def __init__(self, thread: threading.Thread):
        self.thread = thread

    def terminate(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return False


def in_thread(fit: Callable, flags: list[str], folder: Path, gpu: str = "", num_threads: int = 0) -> Training:
    """As jobs.trials.start_training, in a thread: quick, for what is not about processes."""
    ours, theirs = Pipe()

    def run() -> None:
        try:
            theirs.send(last_message(fit, flags, theirs))
        except (OSError, SystemExit):
            pass
        finally:
            theirs.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Training(folder, gpu, time.monotonic(), FakeProcess(thread), ours)


def second_worker(argv: list[str]) -> None:
    """Another command on the same study: for a process of its own."""
    from jobs import tune  # heavy: other processes of this module do without

    tune.main(argv, fit=good, start=in_thread)
