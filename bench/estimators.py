"""Side by side: ways to learn from rewards, from one policy, on the same rows and batches, over several seeds.

    python -m bench.estimators --policy RUN --train_data FILE --val_data FILE --test_data FILE --output_dir DIR
    python -m bench.estimators ... --estimators rloo --seeds 20 --flags="--epochs 0.5"           # is it stable?

Each run is ppo.py's, in a process of its own, one after another; a finished run in --output_dir is taken as it is, so a
study that was stopped goes on. Writes estimators.png (validation reward ratio against rewards told, and against
seconds), and prints for each way the scores at the start, at the best step (chosen on validation rows) and at the last
one, how far the last one's differ from the start (lowest, highest, standard deviation over seeds), and how many runs
ended below the start or diverged. The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.results import print_result
from core.errors import UserError, run_main
from core.flags import number
from core.plots import save_png
from core.ppo_plots import estimators_figure, read_logs
from core.results_table import format_table
from losses.ppo import ESTIMATORS

WAYS = (*ESTIMATORS, "supervised")


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--policy", required=True, metavar="RUN", help="a run of rank_train.py, stopped early so that there is room")
    flag("--train_data", required=True, metavar="FILE", help="ranking rows whose rewards are asked for")
    flag("--val_data", required=True, metavar="FILE", help="rows that choose the best step")
    flag("--test_data", default="", metavar="FILE", help="rows scored once, at the end of each run")
    flag("--output_dir", required=True, metavar="DIR", help="runs are written to DIR/WAY-SEED")
    flag("--estimators", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY", help=", ".join(WAYS))
    flag("--seeds", type=number(int, 1), default=3, help="runs of each way: seeds 0, 1, ...")
    flag("--flags", default="", help="more flags of ppo.py, for every way")
    return parser.parse_args(argv)
# fmt: on


def check_study(args) -> None:
    """Write what the study is about into its folder. Raises UserError when the runs there are of another one."""
    about = {name: getattr(args, name) for name in ("policy", "train_data", "val_data", "test_data", "flags")}
    path = Path(args.output_dir, "study.json")
    if path.is_file() and json.loads(path.read_text()) != about:
        raise UserError(f"--output_dir {args.output_dir}: holds runs of another study ({path}); give another")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + "\n")


def run_once(args, way: str, seed: int) -> Path | None:
    """The folder of a finished run, None of one that diverged. Raises UserError where it fails for another reason."""
    folder = Path(args.output_dir) / f"{way}-{seed}"
    record = folder / "run.json"
    if record.is_file() and json.loads(record.read_text())["status"] == "finished":
        return folder
    command = [sys.executable, "ppo.py", "--policy", args.policy, "--train_data", args.train_data]
    command += ["--val_data", args.val_data, *(["--test_data", args.test_data] if args.test_data else [])]
    command += ["--estimator", way, "--seed", str(seed), *args.flags.split()]
    command += ["--resume", str(folder)] if record.is_file() else ["--output_dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "diverged" in done.stderr:
        return None
    if done.returncode:
        raise UserError(f"{way}, seed {seed}: failed:\n{done.stderr[-2000:]}")
    return folder


def measure(folder: Path) -> dict:
    """The numbers of one run."""
    record, logs = json.loads((folder / "run.json").read_text()), read_logs(folder)
    evals = [line for line in logs if "eval/reward_ratio" in line]
    found = {"start": evals[0]["eval/reward_ratio"], "best": record["metrics"]["validation"]["reward_ratio"]}
    found |= {"last": evals[-1]["eval/reward_ratio"], "told": record["rewards_told"]}
    found |= {"seconds": record["timings"]["train_s"], "peak_mib": record["peak_memory"]["mem/peak_mib"]}
    found["skipped"] = max(line.get("train/skipped_steps", 0) for line in logs)
    if "test" in record["metrics"]:
        found["test_start"] = record["baselines"]["start (test)"]["reward_ratio"]
        found["test"] = record["metrics"]["test"]["reward_ratio"]
    return found


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that are numbers; None where there are none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def main(argv=None) -> dict:
    """All runs, the table, the picture; returns what the last line says."""
    args = parse_args(argv)
    check_study(args)
    diverged = dict.fromkeys(args.estimators, 0)
    runs: dict[str, list[dict]] = {}
    logs: dict[str, list[list[dict]]] = {}
    for seed in range(args.seeds):
        for way in args.estimators:
            folder = run_once(args, way, seed)
            if folder is None:
                diverged[way] += 1
                print(f"{way}, seed {seed}: diverged", flush=True)
                continue
            runs.setdefault(way, []).append(measure(folder))
            logs.setdefault(way, []).append(read_logs(folder))
            print(f"{way}, seed {seed}: {json.dumps(runs[way][-1])}", flush=True)
    rows = []
    for way, found in runs.items():
        columns = {name: median_of(run[name] for run in found) for name in found[0]}
        changes = [run["last"] - run["start"] for run in found]
        columns |= {"lowest": min(changes), "highest": max(changes), "spread": statistics.pstdev(changes)}
        columns["below_start"] = sum(change < 0 for change in changes)
        columns["diverged"] = diverged[way]
        rows.append((way, columns))
    shown = ["start", "best", "last", "lowest", "highest", "spread", "below_start", "diverged", "skipped"]
    shown += ["told", "seconds"]
    shown += ["test_start", "test"] if args.test_data else []
    if not runs:
        raise UserError(f"every run diverged: {diverged}; a smaller --learning_rate in --flags")
    print(f"\nmedians over {args.seeds} seeds\n{format_table(rows, shown)}\n")
    first = next(iter(runs.values()))[0]
    save_png(estimators_figure(logs, first["start"]), Path(args.output_dir) / "estimators.png")
    return print_result(args, medians=dict(rows), runs=runs, diverged=diverged)


if __name__ == "__main__":
    run_main(main)
