"""Everything that can happen to a run, in a few minutes: what was tried, how often, and whether anything was lost.

    python -m bench.chaos
    python -m bench.chaos --only kill,full_disk --seed 3

Short versions of bench.kill and bench.soak and the faults of bench/chaos_faults.py, on tiny models and the CPU. Prints
a table: kind of fault, times tried, survived, what was lost; exit status 1 when anything was that RELIABILITY.md
promises. The last line is one JSON object.
"""

import argparse
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from bench import chaos_faults as faults
from bench.kill import Case, cases
from bench.results import print_result
from bench.soak import soak
from bench.tiny import LOOPS
from core.errors import UserError, run_main
from core.results_table import format_table

KILLS = {1: 6, 2: 3}  # by ranks, a loop
MOST = 3  # signals a run


def signalled(made: list[Case], times: int, number: int, rng: random.Random) -> faults.Found:
    """Runs of each case, until it has been struck so many times; a fault is a strike, told where it hit."""
    for case in made:
        left, trial = times, 0
        while left > 0 and trial < 10 * times:  # a strike can come too late
            name = f"chaos-{case.loop}-{case.ranks}-{number}-{trial}"
            hits, lost = case.trial(name, rng, min(left, MOST), number=number)
            left, trial = left - len(hits), trial + 1
            for k, where in enumerate(hits or ["never"] * bool(lost)):
                yield f"{case.loop}: {where}", lost if k == len(hits) - 1 or not hits else []


def short_soak(case: Case, rng: random.Random) -> faults.Found:
    found = soak(case.folder, case.loop, 1000, 8.0)
    yield "1000 steps", [] if found["is_flat"] else [f"grew by {found['grown']}"]


def plan(folder: Path, rng: random.Random) -> dict[str, Callable[[], Iterator]]:
    """The kinds of faults by name; what they need is made when they are begun, and once."""
    made = {}

    def case(loop: str, ranks: int = 1) -> Case:
        if (loop, ranks) not in made:
            (made[loop, ranks],) = cases(folder, [loop], ranks)
        return made[loop, ranks]

    def on(fault: Callable, *loops: str, ranks: int = 1) -> Callable[[], Iterator]:
        return lambda: (found for loop in loops for found in fault(case(loop, ranks), rng))

    def by(number: int, times: int, *loops: str, ranks: int = 1) -> Callable[[], Iterator]:
        return lambda: signalled([case(loop, ranks) for loop in loops], times, number, rng)

    return {
        "kill": by(signal.SIGKILL, KILLS[1], *LOOPS),
        "kill_one_of_two_ranks": by(signal.SIGKILL, KILLS[2], "train", "ppo", ranks=2),
        "sigterm": by(signal.SIGTERM, 2, *LOOPS),
        "sigint": by(signal.SIGINT, 2, "train"),
        "damaged_checkpoint": on(faults.damaged_checkpoints, "train"),
        "full_disk": on(faults.full_disk, "train"),
        "not_a_number": on(faults.not_a_number, *LOOPS),
        "two_processes": on(faults.two_processes, "train"),
        "bad_rows": on(faults.bad_rows, "train"),
        "other_world_sizes": on(faults.other_world_sizes, "train"),
        "rank_dies_restarts": on(faults.rank_dies, "train", ranks=2),
        "two_agents": on(faults.two_agents, "train", ranks=2),
        "soak": on(short_soak, "train"),
    }


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--only", default="", metavar="KIND,...", help=f"of {', '.join(plan(Path(), random.Random()))}; default: all")
    flag("--seed", type=int, default=0, help="of instants, ranks and files")
    flag("--output_dir", default="runs/bench-chaos", metavar="DIR", help="emptied first; runs that lost stay")
    return parser.parse_args(argv)
# fmt: on


def main(argv=None) -> dict:
    """All kinds, the table."""
    args = parse_args(argv)
    folder = Path(args.output_dir).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kinds = plan(folder, random.Random(args.seed))
    wanted = args.only.split(",") if args.only else list(kinds)
    if odd := set(wanted) - set(kinds):
        raise UserError(f"--only {sorted(odd)[0]}: no such kind; expected some of {', '.join(kinds)}")
    torch.set_num_threads(1)  # what a fork inherits
    rows, lost, began = [], [], time.monotonic()
    for kind in (bar := tqdm(wanted, unit=" kind", disable=None)):
        bar.set_postfix_str(kind)
        since, tried, bad = time.monotonic(), [], []
        try:
            for what, odd in kinds[kind]():
                tried.append(what)
                bad += [f"{kind}, {what}: {line}" for line in odd[:3]] if odd else []
                tqdm.write(f"{kind}: {what}: {'LOST: ' + odd[0] if odd else 'survived'}")
        except (UserError, TimeoutError) as error:  # the fault could not be tried to its end
            tried.append("stopped")
            bad.append(f"{kind}: {error}")
        num_lost = len({line.split(": ")[0] for line in bad}) if bad else 0
        row = {"tried": len(tried), "survived": len(tried) - num_lost, "seconds": time.monotonic() - since}
        rows.append((kind, row | {"lost": bad[0][:60] if bad else "nothing"}))
        lost += bad
    print("\n".join(["", *lost, format_table(rows, ["tried", "survived", "seconds", "lost"]), ""]))
    return print_result(args, seconds=round(time.monotonic() - began), kinds=dict(rows), lost=lost)


if __name__ == "__main__":
    run_main(lambda: exit(bool(main()["lost"])))
