"""What augmentation gains: train.py on the rows alone and with made ones, over seeds, with an interval.

    D=../shared/data/stressors
    python -m bench.augment --train_data $D/train.jsonl --dev_data $D/dev.jsonl --output_dir runs/augment/stressors \
        --make="--methods drop,swap,nearest --model_name builtin:minilm" \
        --flags="--head linear --pooling mean_max --label_smoothing 0.1 --epochs 4 --learning_rate 1e-4"
    python -m bench.augment ... --num_rows 500                               # where labels are few

data.split holds a tenth of --train_data out as validation rows, which choose each run's best step; --dev_data is scored
once, at the end of each run, and its near-duplicates leave the training rows. data.augment makes new rows of the train
part (of --num_rows of it). Four ways, each with every seed, evaluated after as many steps:

plain              the rows, --epochs of --flags
augmented          rows and made rows, for as many optimiser steps as plain: fewer passes over each row
plain, longer      the rows, for as many steps as the next one
augmented, longer  rows and made rows, --epochs of --flags

Augmentation is compared with the plain rows at the same number of optimiser steps, so that training longer is not taken
for it. Differences are those of the means over seeds, intervals a paired bootstrap over
the dev rows: the runs are taken as trained. Runs are train.py's (jobs/cells.py), in DIR/WAY/seed<k>; the same command
goes on where it was stopped. Writes DIR/augment.md; the last line is one JSON object.
"""

import argparse
import json
import math
import shlex
from pathlib import Path

import numpy as np

import train
from bench.results import print_result
from core.errors import UserError, disk_errors, run_main
from core.files import write_text
from core.flags import Parser, number
from core.rows import BadRows, RowFormat, file_sha256, read_rows
from core.runs import RunRecord
from core.spent import row_hash
from core.statistics import bootstrap_p, bootstrap_scores, percentile_interval, score_decisions
from data import augment, split
from jobs.cells import Cell, check_cell, train_all
from jobs.comparison import read_run

WAYS = {  # name: folder; the made rows, and whether it is as long as "augmented, longer"
    "plain": ("plain", False, False),
    "augmented": ("augmented", True, False),
    "plain, longer": ("plain-longer", False, True),
    "augmented, longer": ("augmented-longer", True, True),
}
PAIRS = (("augmented", "plain"), ("augmented, longer", "plain, longer"))
SCORES = ("accuracy", "macro_f1")


# fmt: off
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags, checked against train.py's."""
    parser = Parser(__doc__)
    parser.prog = "python -m bench.augment"
    flag = parser.add_argument
    flag("--train_data", required=True, metavar="FILE", help="rows to train on; a tenth of them chooses the best step")
    flag("--dev_data", required=True, metavar="FILE", help="rows that all runs are scored on, once")
    flag("--output_dir", required=True, metavar="DIR", help="the split, the made rows and the runs")
    flag("--num_rows", type=number(int, 0), default=0, help="training rows, chosen by their hash; 0: all")
    flag("--make", default="", metavar="FLAGS", help="more flags of data.augment (with the = sign)")
    flag("--flags", default="--epochs 4", help="more flags of train.py for all runs; --epochs is needed")
    flag("--seeds", nargs="+", type=number(int, 0), default=[0, 1, 2], help="of the runs (default: 0 1 2)")
    flag("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help="default: all four")
    flag("--gpus", nargs="+", default=[], help="one run at a time on each; default: one run at a time")
    args = parser.parse_args(argv)
    args.trained = train.parse_args([*shlex.split(args.flags), "--train_data", "-", "--val_data", "-"])
    if args.trained.epochs == "auto":
        raise UserError(f"--flags {args.flags!r}: give --epochs: steps are counted from it")
    return args
# fmt: on


def text_flags(args: argparse.Namespace) -> list[str]:
    """The columns, as train.py is told."""
    return [f"--{name}={getattr(args.trained, name)}" for name in ("text_field", "pair_field", "label_field")]


def make_files(args: argparse.Namespace) -> dict[bool, Path]:
    """The split, made once, and in its folder the training rows without and with made ones, by whether they have such.

    Raises: UserError when the folder's split is of other rows.
    """
    folder = Path(args.output_dir, "rows")
    about = folder / "split.json"
    if not about.is_file():
        paths = ["--input", args.train_data, "--test_data", args.dev_data, "--output_dir", str(folder)]
        split.main([*paths, "--shares", "0.9,0.1,0", *text_flags(args)])
    stored = json.loads(about.read_text(encoding="utf-8"))
    for name, path in (("input", args.train_data), ("test_data", args.dev_data)):
        if stored[name]["sha256"] != file_sha256(path):
            raise UserError(
                f"--output_dir {args.output_dir}: was divided from another file than {path}; give another"
            )
    plain, made = folder / "train.jsonl", folder / "augmented.jsonl"
    if args.num_rows:
        row_format, bad = RowFormat(args.trained.text_field, args.trained.pair_field), BadRows(plain)
        rows = [row for _, row in read_rows(plain, bad, "--train_data")]
        if args.num_rows > len(rows):
            raise UserError(f"--num_rows {args.num_rows}: the train part has {len(rows)} rows")
        rows.sort(key=lambda row: row_hash("num_rows", *row_format.text(row)))
        plain = folder / "some.jsonl"
        write_text(plain, "".join(json.dumps(row) + "\n" for row in rows[: args.num_rows]))
    augment.main(["--input", str(plain), "--output", str(made), *text_flags(args), *shlex.split(args.make)])
    return {False: plain, True: made}


def make_cells(args: argparse.Namespace, files: dict[bool, Path]) -> dict[str, list[Cell]]:
    """The runs of each way: made rows are paid for with fewer passes, or plain rows get more."""
    folder = Path(args.output_dir)
    per_pass = {  # optimiser steps of one pass over a file
        kind: math.ceil(sum(1 for _ in read_rows(path, BadRows(path), "--input")) / args.trained.batch_size)
        for kind, path in files.items()
    }
    found = {}
    for way in args.ways:
        name, is_made, is_long = WAYS[way]
        steps = math.ceil(args.trained.epochs * per_pass[is_long])
        flags = [*shlex.split(args.flags), "--max_steps", str(steps), "--eval_steps", str(per_pass[False])]
        flags += [
            "--epochs",
            f"{steps / per_pass[is_made] + 0.01:.4f}",
        ]  # enough for them: --max_steps ends it
        flags += [
            "--train_data",
            str(files[is_made]),
            "--val_data",
            str(folder / "rows" / "validation.jsonl"),
        ]
        flags += ["--test_data", str(folder / "rows" / "test.jsonl")]
        found[way] = [
            Cell(own, (*flags, "--seed", str(seed), "--output_dir", str(own)))
            for seed in args.seeds
            for own in [folder / name / f"seed{seed}"]
        ]
    return found


def score(cells: dict[str, list[Cell]]) -> tuple[dict[str, dict], list[dict]]:
    """Each way's scores on the dev rows, and the differences of PAIRS with 95 % intervals."""
    lines, samples = {}, {}
    for way, own in cells.items():
        runs = [read_run(cell.folder) for cell in own]
        truth, chosen = runs[0].truth, np.stack([run.chosen for run in runs])
        by_seed, samples[way] = score_decisions(truth, chosen), bootstrap_scores(truth, chosen)
        lines[way] = {"num_dev": len(truth), "num_steps": RunRecord.read(own[0].folder).record["num_steps"]}
        for name in SCORES:
            low, high = percentile_interval(samples[way][name])
            lines[way][name] = {"mean": float(by_seed[name].mean()), "low": low, "high": high}
            lines[way][name]["by_seed"] = [float(value) for value in by_seed[name]]
    pairs = []
    for a, b in PAIRS:
        for name in SCORES if a in lines and b in lines else ():
            apart = samples[a][name] - samples[b][name]
            low, high = percentile_interval(apart)
            found = {"a": a, "b": b, "score": name, "low": low, "high": high, "p": bootstrap_p(apart)}
            pairs.append(found | {"difference": lines[a][name]["mean"] - lines[b][name]["mean"]})
    return lines, pairs


def markdown(lines: dict[str, dict], pairs: list[dict]) -> str:
    """The scores of each way, and a sentence for each difference."""
    out = ["| way | steps | accuracy, % | by seed | macro F1, % | by seed |", "|---|--:|--:|---|--:|---|"]
    for way, line in lines.items():
        cells = [way, str(line["num_steps"])]
        for name in SCORES:
            own = line[name]
            cells.append(f"{100 * own['mean']:.1f} ({100 * own['low']:.1f} to {100 * own['high']:.1f})")
            cells.append(", ".join(f"{100 * value:.1f}" for value in own["by_seed"]))
        out.append(f"| {' | '.join(cells)} |")
    out.append("")
    for pair in pairs:
        word = (
            "no difference shown"
            if pair["low"] <= 0 <= pair["high"]
            else "gain"
            if pair["low"] > 0
            else "loss"
        )
        numbers = f"{100 * pair['difference']:+.1f} points (95 % interval {100 * pair['low']:+.1f} to "
        numbers += f"{100 * pair['high']:+.1f})"
        out.append(f"- {pair['a']} against {pair['b']}, {pair['score'].replace('_', ' ')}: {word}, {numbers}")
    return "\n".join(out) + "\n"


def main(argv: list[str] | None = None) -> dict:
    """Make the rows, train what is not trained yet, score; returns what the last line says. Raises UserError."""
    args = parse_args(argv)
    files = make_files(args)
    cells = make_cells(args, files)
    todo = [cell for own in cells.values() for cell in own if check_cell(cell) != "finished"]
    failed = train_all(todo, args.gpus) if todo else {}
    if failed:
        told = "; ".join(f"{folder}: {why}" for folder, why in failed.items())
        raise UserError(
            f"{len(failed)} of {len(todo)} runs failed: {told}. The same command goes on from here"
        )
    lines, pairs = score(cells)
    table = markdown(lines, pairs)
    with disk_errors(args.output_dir, "--output_dir"):
        write_text(Path(args.output_dir, "augment.md"), table)
    print(f"\n{table}\nwritten: {Path(args.output_dir, 'augment.md')}")
    del args.trained
    return print_result(args, ways=lines, differences=pairs)


if __name__ == "__main__":
    run_main(main)
