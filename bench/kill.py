"""Runs that are killed with SIGKILL at random instants and started again, until they end: is anything lost?

    python -m bench.kill --times 200
    python -m bench.kill --times 40 --loops train,ppo --ranks 2 --minutes 20

Tiny models on the CPU, the real loops. A run is killed again and again; what is left at its end (weights, optimiser,
logs, metrics, predictions, TensorBoard) must be bitwise what an undisturbed run leaves, but for times and memory. Each
instant is aimed at something: any moment of a run, a save (the first sight of its unfinished files), an evaluation, the
set-up, the final evaluation. Where it hit is read off the folder (bench/kill_sight.py). With --ranks 2 one of two
processes is killed and the other is ended as torchrun would; every so often (--fresh) a start is a command of its own,
python or torchrun, and no fork. The last line is one JSON object.
"""

import argparse
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import torch

from bench.kill_compare import differences, records
from bench.kill_sight import Sight, changed, instant, status_of, where_hit
from bench.kill_starts import Start, begin, end_others, ranks_of, wait
from bench.results import print_result
from bench.tiny import LOOPS, flags_of, policy_of, write_inputs
from core.errors import UserError, run_main
from core.flags import number
from core.results_table import format_table

AIMS = {"any": 3, "save": 3, "step": 2, "evaluation": 2, "set-up": 1, "final": 1}  # and how often
WHERE = ("set-up", "step", "evaluation", "save", "final")
MOST_KILLS = 12  # of one run; then it is left alone


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--times", type=number(int, 1), default=200, help="kills, over all loops")
    flag("--loops", default=",".join(LOOPS), help="of train, rank, ppo, feedback")
    flag("--ranks", type=number(int, 1, 8), default=1, help="processes a run, over gloo")
    flag("--seed", type=int, default=0, help="of the instants")
    flag("--minutes", type=number(float, 0.1), default=60.0, help="begin no other run after so long")
    flag("--fresh", type=number(float, 0, 1), default=0.1, help="share of starts that are commands, not forks")
    flag("--output_dir", default="runs/bench-kill", metavar="DIR", help="emptied first; runs that differ stay")
    return parser.parse_args(argv)
# fmt: on


def strike(start: Start, codes: dict, rng: random.Random, number: int = signal.SIGKILL) -> bool:
    """Send one rank a signal, now and then all, and wait for their end; whether there was one to send it to.

    codes: see instant.
    """
    found = [pid for pid in ranks_of(start) if pid not in codes]
    if not found:
        return False
    for pid in found if rng.random() < 0.2 else [rng.choice(found)]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
    if number == signal.SIGKILL:
        end_others(start, codes)
    else:
        wait(start, codes)
    return True


class Case:
    """A loop at a number of ranks, with the undisturbed run that all others are compared with."""

    def __init__(
        self, loop: str, folder: Path, ranks: int = 1, before=None, is_run: bool = True, name="", **values
    ):
        """folder: of bench.tiny's inputs | values: flags | before: see forked | is_run: make the undisturbed run |
        name: of its folder."""
        self.loop, self.folder, self.ranks, self.before = loop, folder, ranks, before
        self.flags = flags_of(loop, folder, **values)
        self.straight = folder / (name or f"{loop}-{ranks}")
        if not is_run:
            return
        began = time.time()
        self.run_to_end(self.straight, self.start(self.straight))
        self.whole_s, self.setup_s = time.time() - began, changed(self.straight / "lock") - began
        self.steps = {r["step"] for r in records(self.straight) if any(n.startswith("eval/") for n in r)}

    def argv(self, run: Path) -> list[str]:
        """Of the start that is to come: a begun run is resumed. A run's cache is its own, and is killed with it."""
        if (run / "run.json").exists():
            return ["--resume", str(run)]
        flags = [*self.flags, "--output_dir", str(run)]
        flags[flags.index("--cache_dir") + 1] = str(run) + "-cache"
        return flags

    def start(self, run: Path, fresh: bool = False) -> Start:
        return begin(self.loop, self.argv(run), self.said(run), self.ranks, fresh, self.before)

    @staticmethod
    def said(run: Path) -> Path:
        return run.with_name(run.name + ".txt")

    def run_to_end(self, run: Path, start: Start, codes: dict | None = None) -> None:
        """Raises UserError when it does not end well."""
        try:
            found = wait(start, codes or {})
        except TimeoutError as error:
            found = {0: str(error)}
        if set(found.values()) != {0} or status_of(run) != "finished":
            text = self.said(run).read_text(errors="replace")[-4000:]
            raise UserError(
                f"{run}: a start ended with {found}, {status_of(run) or 'nothing written'}:\n{text}"
            )

    def trial(
        self, name: str, rng: random.Random, most: int, fresh: float = 0.0, number: int = signal.SIGKILL
    ) -> tuple[list[str], list[str]]:
        """One run, killed at most so many times, to its end. number: the signal.

        Returns: where each kill hit, and what differs from the undisturbed run in the end.
        """
        run, hits = self.folder / name, []
        while status_of(run) != "finished":
            is_fresh = rng.random() < fresh
            sight, start, codes = Sight(run, self.steps), self.start(run, is_fresh), {}
            if len(hits) < min(most, MOST_KILLS):
                aim = rng.choices(list(AIMS), list(AIMS.values()))[0]
                imports_s = 6.0 if is_fresh else 0.0
                limits_s = self.whole_s + imports_s, self.setup_s + imports_s
                if instant(sight, start, codes, aim, limits_s, rng) and strike(start, codes, rng, number):
                    if status_of(run) != "finished":
                        hits.append(where_hit(sight))
                    if number != signal.SIGKILL and set(codes.values()) - {0, -number, 128 + number}:
                        return hits, [f"{signal.Signals(number).name} ended it with {codes}"]
                    continue
            try:
                self.run_to_end(run, start, codes)
            except UserError as error:
                return hits, [str(error)]
        found = differences(self.straight, run)
        if not found:
            self.remove(run)
        return hits, found

    def remove(self, run: Path) -> None:
        """What a run has left."""
        for path in (run, run.with_name(run.name + "-cache")):
            shutil.rmtree(path, ignore_errors=True)
        self.said(run).unlink(missing_ok=True)


def cases(
    folder: Path, loops: list[str], ranks: int = 1, before=None, is_run: bool = True, **values
) -> list[Case]:
    """Of these loops, with all their inputs, which are made where they are not there; the policies are runs of one
    process."""
    if not (folder / "tiny").exists():
        write_inputs(folder)
    for loop in sorted({policy_of(loop) for loop in loops} - {""}):
        if not (folder / f"policy-{loop}").exists():
            Case(loop, folder, 1, before, name=f"policy-{loop}", max_steps=4)
    return [Case(loop, folder, ranks, before, is_run, **values) for loop in loops]


def kill_all(made: list[Case], times: int, seed: int, minutes: float, fresh: float, say=print) -> dict:
    """Kill until there are so many; returns {"hits": {loop: {where: times}}, "lost": the same, "differ": lines}."""
    hits, lost = ({case.loop: Counter() for case in made} for _ in range(2))
    differ, until, trial = [], time.monotonic() + 60 * minutes, 0
    while time.monotonic() < until and (left := times - sum(map(Counter.total, hits.values()))) > 0:
        case = min(made, key=lambda case: hits[case.loop].total())
        name = f"{case.loop}-{case.ranks}-trial{trial}"
        found, odd = case.trial(name, random.Random(f"{seed} {name}"), left, fresh)
        hits[case.loop].update(found)
        if odd:
            lost[case.loop].update(found)
            differ += [f"{name}: {line}" for line in odd]
        trial += 1
        say(
            f"{name}: killed {len(found)} times ({', '.join(found)}), {'LOST: ' + odd[0] if odd else 'the same'}"
        )
    return {"runs": trial, "hits": hits, "lost": lost, "differ": differ}


def table_of(found: dict) -> str:
    """A row a loop and place; a run that differs in the end counts against each of its kills."""
    rows = [
        (f"{loop}, {where}", {"times": hits[where], "survived": hits[where] - lost, "lost": lost})
        for loop, hits in found["hits"].items()
        for where in WHERE
        for lost in [found["lost"][loop][where]]
    ]
    total = {name: sum(row[name] for _, row in rows) for name in ("times", "survived", "lost")}
    return format_table([*rows, ("all", total)], ["times", "survived", "lost"])


def main(argv=None) -> dict:
    """All of it; exit status 1 when something was lost."""
    args = parse_args(argv)
    loops = args.loops.split(",")
    if odd := set(loops) - set(LOOPS):
        raise UserError(f"--loops {sorted(odd)[0]}: expected some of {', '.join(LOOPS)}, with commas between")
    folder = Path(args.output_dir).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    torch.set_num_threads(1)  # what a fork inherits
    began = time.monotonic()
    found = kill_all(cases(folder, loops, args.ranks), args.times, args.seed, args.minutes, args.fresh)
    print("\n".join(["", *found["differ"], table_of(found), ""]))
    return print_result(args, seconds=round(time.monotonic() - began), **found)


if __name__ == "__main__":
    run_main(lambda: exit(bool(main()["differ"])))
