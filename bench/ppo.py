"""Side by side: what a PPO step costs, and what it needs beside the ranker's own training on the same rows.

    python -m bench.ppo --policy RUN --data rows/reports/train.jsonl --max_tokens 8192

All sides start from the same policy and rows, in turn, each in a process of its own, one pass a rollout: ppo (with its
value head), rloo with four choices a question, and supervised, which is the ranker's own training step (cross-entropy,
no rollout, no value head) in the same loop. Prints candidates scored and updated a second, choices drawn, the share of
time in rollouts, and peak memory over the ranker's. The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.results import print_result
from core.errors import UserError, run_main
from core.flags import number
from core.ppo_plots import read_logs
from core.results_table import format_table

SIDES = {"ppo": ["--estimator", "ppo"], "rloo": ["--estimator", "rloo", "--samples", "4"],
         "supervised": ["--estimator", "supervised"]}  # fmt: skip


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--policy", required=True, metavar="RUN", help="a run of rank_train.py")
    flag("--data", required=True, metavar="FILE", help="ranking rows, JSONL: as many as --steps need")
    flag("--max_tokens", type=number(int, 1), default=8192, help="tokens a micro-batch, the same on both sides")
    flag("--batch_size", type=number(int, 1), default=16, help="questions a step")
    flag("--steps", type=number(int, 2), default=8, help="optimiser steps; rollouts are of four steps")
    flag("--repeats", type=number(int, 1), default=3, help="processes of each side, in turn")
    flag("--flags", default="", help="more flags of ppo.py, for every side")
    return parser.parse_args(argv)
# fmt: on


def run_side(args, side: str) -> dict:
    """One process: times in seconds, rates, and the peak in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        out, count = Path(folder, "run"), args.steps * args.batch_size
        rows = Path(args.data).read_text(encoding="utf-8").splitlines(keepends=True)
        if len(rows) < count:
            raise UserError(f"--data {args.data}: {len(rows)} rows, {count} are needed: lower --steps")
        for name, part in (("train", rows[:count]), ("val", rows[: args.batch_size])):
            Path(folder, f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
        command = [sys.executable, "ppo.py", "--policy", args.policy, "--train_data", f"{folder}/train.jsonl"]
        command += ["--val_data", f"{folder}/val.jsonl", "--cache_dir", f"{folder}/cache"]
        command += ["--output_dir", str(out)]
        command += ["--max_tokens", str(args.max_tokens), "--batch_size", str(args.batch_size)]
        command += ["--rollout_size", str(4 * args.batch_size), "--ppo_epochs", "1", "--log_steps", "1"]
        command += ["--max_steps", str(args.steps), *SIDES[side], *args.flags.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{side}: failed:\n{done.stderr[-2000:]}")
        record, logs = json.loads((out / "run.json").read_text()), read_logs(out)
    last = [line for line in logs if "perf/rollout_frac" in line][-1]
    seconds, questions = last["perf/train_s"], args.steps * args.batch_size
    rollout_s = seconds * last["perf/rollout_frac"]
    found = {"questions_per_s": questions / seconds, "rollout_frac": last["perf/rollout_frac"]}
    samples = record["arguments"]["samples"]
    found["choices_drawn_per_s"] = questions * samples / rollout_s if samples else 0.0
    # every pass scores all K candidates of a question, whatever is drawn
    width = statistics.mean(len(json.loads(row)["candidates"]) for row in rows[:count])
    found["candidates_scored_per_s"] = questions * width / rollout_s if samples else 0.0
    found["candidates_updated_per_s"] = questions * width / (seconds - rollout_s)
    return found | {"peak_mib": record["peak_memory"]["mem/peak_mib"]}


def main(argv=None) -> dict:
    """All sides in turn, the table of medians, the ratios."""
    args = parse_args(argv)
    found: dict[str, list[dict]] = {side: [] for side in SIDES}
    for turn in range(args.repeats):
        for side in SIDES:
            found[side].append(run_side(args, side))
            print(f"turn {turn}  {side}  {json.dumps(found[side][-1])}", flush=True)
    rows = [(side, {name: statistics.median(run[name] for run in runs) for name in runs[0]})
            for side, runs in found.items()]  # fmt: skip
    print(f"\n{format_table(rows, list(rows[0][1]))}\n")
    over = {}
    for side in ("ppo", "rloo"):
        pairs = list(zip(found[side], found["supervised"], strict=True))
        over[side] = {
            "peak_mib": statistics.median(a["peak_mib"] / b["peak_mib"] for a, b in pairs),
            "time": statistics.median(b["questions_per_s"] / a["questions_per_s"] for a, b in pairs),
        }
        print(
            f"{side} over supervised: {over[side]['peak_mib']:.3f} in memory, {over[side]['time']:.2f} in time"
        )
    return print_result(args, runs=found, over_supervised=over)


if __name__ == "__main__":
    run_main(main)
