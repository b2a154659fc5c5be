"""What can be seen of a run from outside: what it is doing, when to kill it, what it did when it was killed."""

import contextlib
import json
import random
import time
from pathlib import Path

from bench.kill_starts import Start, exited

POLL_S = 0.0005


class Sight:
    """What can be seen of a run from outside while one start of it is under way."""

    def __init__(self, run: Path, steps: set[int]):
        """steps: those that an undisturbed run evaluates after."""
        self.run, self.steps, self.began, self.starts_before = run, steps, time.time(), starts(run)

    def is_set_up(self) -> bool:
        return starts(self.run) > self.starts_before

    def parts(self) -> set[str]:
        """Unfinished files and folders that this start is writing."""
        found = []
        with contextlib.suppress(OSError):  # a folder that is gone before it was looked into
            found = [
                *self.run.glob("checkpoint/.part_*"),
                *self.run.glob("*.part"),
                *self.run.glob("*/*.part"),
            ]
        return {path.name for path in found if changed(path) >= self.began}

    def last(self) -> tuple[int, bool, int]:
        """Step of the last record, whether it is an evaluation's, and how many there are."""
        try:
            lines = (self.run / "training_logs.jsonl").read_text().splitlines()
            record = json.loads(lines[-1])
            return record["step"], any(name.startswith("eval/") for name in record), len(lines)
        except (OSError, ValueError, IndexError):
            return 0, False, 0

    def is_evaluating(self) -> bool:
        step, is_evaluation, _ = self.last()
        return self.is_set_up() and step in self.steps and not is_evaluation

    def is_final(self) -> bool:
        names = ("final_model", "final_model.part")
        return self.is_set_up() and any(changed(self.run / name) >= self.began for name in names)


def changed(path: Path) -> float:
    """When, 0 for what is not there."""
    try:
        return path.stat().st_mtime + 0.02  # the kernel's clock of files is a tick behind
    except OSError:
        return 0.0


def status_of(run: Path) -> str:
    path = run / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else ""


def starts(run: Path) -> int:
    """How many starts of a run have got as far as its record."""
    path = run / "run.json"
    return 1 + len(json.loads(path.read_text()).get("resumed", [])) if path.exists() else 0


def where_hit(sight: Sight) -> str:
    """What a run was doing when it was killed, by what it left: the record without this start is set-up, unfinished
    files are a save, a step's record without its evaluation is an evaluation, the last model's folder is the end."""
    if sight.parts():
        return "save"
    if not sight.is_set_up():
        return "set-up"
    if sight.is_final():
        return "final"
    return "evaluation" if sight.is_evaluating() else "step"


def instant(sight: Sight, start: Start, codes: dict, aim: str, limits_s: tuple, rng: random.Random) -> bool:
    """Wait for the instant to kill; False when the start ended before.

    limits_s: what an undisturbed run takes, whole and to its set-up's end | codes: takes the exit status of a child
    that ended.
    """
    whole_s, setup_s = limits_s
    began, seen, before = time.monotonic(), 0, set()
    wanted = {"save": rng.randint(1, 12), "step": rng.randint(1, 8)}.get(aim, 1)
    after_s = {"save": 0.002, "evaluation": 0.02, "step": 0.03, "final": 0.3 * whole_s}.get(
        aim, 0
    ) * rng.random()
    until = began + {"any": whole_s, "set-up": setup_s}.get(aim, 1e9) * rng.random()
    most = sight.last()[2] + wanted
    while time.monotonic() < until:
        for pid in start.children:
            code = None if pid in codes else exited(pid)
            if code is not None:
                codes[pid] = code
                return False
        if aim == "save":
            parts = sight.parts()
            seen, before = seen + len(parts - before), parts
            is_due = seen >= wanted
        elif aim == "step":
            is_due = sight.is_set_up() and sight.last()[2] >= most
        else:
            is_due = {"evaluation": sight.is_evaluating, "final": sight.is_final}.get(aim, lambda: False)()
        if is_due:
            break
        time.sleep(POLL_S)
    time.sleep(after_s)
    return True
