"""Sides of a comparison in turn, each run in a process of its own, so that its peak memory is its own."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from core.errors import UserError


def run_worker(module: str, argv: Sequence[str], side: str, *more: str) -> dict:
    """One run of `python -m module argv --worker side` in a process of its own; its last line is the result.

    Raises: UserError with the end of its error output when it fails.
    """
    command = [sys.executable, "-m", module, *argv, "--worker", side, *more]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    )
    if done.returncode:
        raise UserError(f"{side}: failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def in_turn(module: str, argv: Sequence[str], sides: Sequence[str], repeats: int) -> dict[str, list[dict]]:
    """The results of every side, `repeats` of each, the sides taking turns; each is printed as it comes."""
    found: dict[str, list[dict]] = {side: [] for side in sides}
    for turn in range(repeats):
        for side in sides:
            found[side].append(run_worker(module, argv, side))
            last = found[side][-1]
            print(
                f"turn {turn}  {side}  {last['step_ms']:.0f} ms a step, {last['peak_mib']:.0f} MiB",
                flush=True,
            )
    return found


def medians(runs: list[dict]) -> dict:
    """The median of each number over a side's runs, and the spread (largest less smallest) of its step time."""
    times = [run["step_ms"] for run in runs]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]} | {
        "step_ms_spread": max(times) - min(times)
    }


def ratio(over: list[dict], under: list[dict], name: str) -> float:
    """The median, over the turns, of one side's number divided by the other's."""
    return statistics.median(a[name] / b[name] for a, b in zip(over, under, strict=True))
