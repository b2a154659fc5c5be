"""Ten thousand steps of a tiny model on the CPU: are memory, file handles and step time flat?

    python -m bench.soak --steps 10000
    python -m bench.soak --steps 10000 --loop ppo --output_dir runs/bench-soak-ppo

One run of a real loop as a command, with evaluations and checkpoints all along; its resident memory (without mapped
files) and open files are read from /proc while it runs, its step times are those of its log. By quarters of the steps,
the first of which holds what is allocated once: the last is compared with the second. Exit status 1 when memory grew by
more than --most_mib or a handle stayed open; the time is reported alone, other work on the machine shows in it.
Writes soak.png to --output_dir; the last line is one JSON object.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import time
from pathlib import Path

from matplotlib.figure import Figure

from bench.kill import cases
from bench.kill_compare import records
from bench.kill_sight import status_of
from bench.kill_starts import begin, exited
from bench.results import print_result
from bench.tiny import LOOPS
from core.errors import UserError, run_main
from core.flags import number
from core.plots import save_png
from core.results_table import format_table

QUARTERS = ("first", "second", "third", "last")
EVERY_S = 0.1


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--steps", type=number(int, 100), default=10_000, help="optimiser steps")
    flag("--loop", choices=LOOPS, default="train")
    flag("--most_mib", type=number(float, 0), default=8.0, help="that memory may grow by, second quarter to last")
    flag("--output_dir", default="runs/bench-soak", metavar="DIR", help="emptied first")
    return parser.parse_args(argv)
# fmt: on


def look(pid: int) -> tuple[float, float, int]:
    """Time in seconds, memory of a process's own in MiB, number of its open files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return time.time(), kib / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def watch(pid: int) -> tuple[list[tuple[float, float, int]], int]:
    """What was seen of a child until it ended, and its exit status."""
    seen = []
    while (code := exited(pid)) is None:
        with contextlib.suppress(OSError, StopIteration):  # it is ending
            seen.append(look(pid))
        time.sleep(EVERY_S)
    return seen, code


def by_step(seen: list, found: list[dict]) -> list[tuple[float, float, int]]:
    """(step, MiB, handles) of what was seen between the first and the last record of steps, by their times."""
    marks = [(record["perf/time_s"], record["step"]) for record in found if "train/loss" in record]
    out, k = [], 0
    for when, mib, handles in seen:
        while k < len(marks) and marks[k][0] < when:
            k += 1
        if 0 < k < len(marks):
            (t0, s0), (t1, s1) = marks[k - 1], marks[k]
            out.append((s0 + (s1 - s0) * (when - t0) / max(t1 - t0, 1e-9), mib, handles))
    return out


def quarters(points: list[tuple], steps: int) -> list[list[tuple]]:
    """Divided by their first number."""
    parts = [[] for _ in QUARTERS]
    for point in points:
        parts[min(3, int(4 * point[0] / steps))].append(point)
    return parts


def figure_of(points: list[tuple], times: list[tuple]) -> Figure:
    """Memory, handles and step time over the steps."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    steps = [point[0] for point in points]
    axes[0].plot(steps, [point[1] for point in points], linewidth=1)
    axes[0].set_ylabel("own memory (MiB)")
    axes[0].set_ylim(0, 1.2 * max(point[1] for point in points))
    axes[1].plot(steps, [point[2] for point in points], linewidth=1)
    axes[1].set_ylabel("open files")
    axes[1].set_ylim(0, 1.2 * max(point[2] for point in points))
    axes[2].plot(*zip(*times), ".", markersize=2)
    axes[2].set_ylabel("step time (ms)")
    axes[2].set_ylim(0, 3 * statistics.median(time for _, time in times))
    axes[2].set_xlabel("optimiser step")
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def soak(folder: Path, loop: str, steps: int, most_mib: float) -> dict:
    """One run of so many steps. Raises UserError when it does not end well."""
    every = max(20, steps // 20)
    more = {"max_steps": steps, "epochs": steps, "log_steps": 10, "save_steps": every, "eval_steps": every}
    (case,) = cases(folder, [loop], is_run=False, **more)
    run = folder / "soak"
    start = begin(loop, case.argv(run), case.said(run), fresh=True)
    seen, code = watch(start.pids[0])
    if code or status_of(run) != "finished":
        raise UserError(f"{run}: ended with {code}:\n{case.said(run).read_text()[-1500:]}")
    found = records(run)
    points = by_step(seen, found)
    times = [(record["step"], record["perf/step_ms"]) for record in found if "train/loss" in record]
    rows = []
    for name, part, timed in zip(QUARTERS, quarters(points, steps), quarters(times, steps), strict=True):
        row = {"memory_mib": statistics.median(mib for _, mib, _ in part)}
        row |= {"most_mib": max(mib for _, mib, _ in part)}
        row |= {"handles": statistics.median(count for _, _, count in part)}  # one more during a save
        row |= {"step_ms": statistics.median(ms for _, ms in timed)}
        rows.append((name, row))
    save_png(figure_of(points, times), folder / "soak.png")
    second, last = rows[1][1], rows[3][1]
    grown = {"memory_mib": last["memory_mib"] - second["memory_mib"]}
    grown |= {"handles": last["handles"] - second["handles"]}
    grown |= {"step_ms_ratio": last["step_ms"] / second["step_ms"]}
    is_flat = grown["memory_mib"] <= most_mib and grown["handles"] <= 0
    return {"loop": loop, "steps": steps, "quarters": dict(rows), "grown": grown, "is_flat": is_flat}


def main(argv=None) -> dict:
    args = parse_args(argv)
    folder = Path(args.output_dir).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    found = soak(folder, args.loop, args.steps, args.most_mib)
    print(f"\n{format_table(list(found['quarters'].items()), list(found['quarters']['first']))}\n")
    print(f"from the second quarter to the last: {found['grown']}\nplot: {folder / 'soak.png'}")
    return print_result(args, **found)


if __name__ == "__main__":
    run_main(lambda: exit(not main()["is_flat"]))
