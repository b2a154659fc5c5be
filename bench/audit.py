"""Planted label noise: precision and recall of jobs.audit's suspects and of cleanlab's, on the same probabilities.

    python -m bench.audit --data ../shared/data/trec/train.jsonl --model_name weights/minilm --noise 0.1 --seeds 0 1 2

For each seed a share of the rows gets another label, uniformly of the others; a tenth of these rows, wrong labels
included, chooses each training's best step, the rest is audited: out-of-fold probabilities once (jobs/audit_rows.py),
then both. "at planted" is the share of wrong labels among as many rows as have one, the lowest scores first: precision
and recall are the same there. "found" is what each lists by itself. A command that was stopped goes on where it was.
Writes to --output_dir; the last line is one JSON object.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

from bench.results import print_result
from core.confident_learning import METHODS, RANKINGS, confident_joint, find_issues, label_scores, wrong_share
from core.errors import UserError, run_main
from core.files import write_text
from core.flags import number
from core.results_table import format_table
from core.rows import BadRows, RowFormat, read_rows, sort_names
from jobs.audit_rows import out_of_fold_probabilities, read_audited

THEIR_METHODS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning")
THEIR_RANKINGS = ("self_confidence", "normalized_margin")
VAL_SHARE = 0.1


# fmt: off
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", required=True, metavar="FILE", help="rows with one label each, taken to be right")
    flag("--model_name", required=True, help="what train.py starts from")
    flag("--flags", default="", help="more flags of train.py, in quotes")
    flag("--noise", type=number(float, 0.001, 0.9), default=0.1, help="share of rows whose label is made wrong")
    flag("--rows", type=number(int, 0), default=0, help="only so many rows, drawn by the seed; 0: all")
    flag("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of noise, parts and folds")
    flag("--folds", type=number(int, 2, 20), default=5, help="trainings a seed")
    flag("--gpus", default="", metavar="0,1", help="one training at a time on each; default: one at a time")
    flag("--output_dir", default="runs/bench-audit", metavar="DIR", help="rows and trainings: DIR/noise<N>-seed<S>")
    return parser.parse_args(argv)
# fmt: on


def plant(labels: np.ndarray, num_classes: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) int labels of which a share, rounded to rows, is another class, uniformly. labels: (n,) int."""
    made = labels.copy()
    rows = rng.choice(len(labels), round(noise * len(labels)), replace=False)
    made[rows] = (labels[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return made


def write_noisy(args, folder: Path, seed: int) -> np.ndarray:
    """Write train.jsonl and val.jsonl with planted noise; returns (n,) bool, which training rows are wrong."""
    rng, row_format = np.random.default_rng(seed), RowFormat()
    rows = [row for _, row in read_rows(args.data, BadRows(args.data), "--data")]
    given = [row_format.labels(row) for row in rows]
    if not all(isinstance(name, str) for name in given):
        raise UserError(f"--data {args.data}: has several labels a row; expected one")
    names = sort_names(set(given))
    order = rng.permutation(len(rows))[: args.rows or None]
    right = np.array([names.index(given[n]) for n in order])
    noisy = plant(right, len(names), args.noise, rng)
    made = [
        {"text": row_format.text(rows[n])[0], "label": names[k]} for n, k in zip(order, noisy, strict=True)
    ]
    num_val = round(VAL_SHARE * len(made))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("val", made[:num_val]), ("train", made[num_val:])):
        write_text(
            folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        )
    return (noisy != right)[num_val:]


def measure(found: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Precision and recall of (n,) bool against (n,) bool."""
    hits = (found & wrong).sum()
    return {
        "found": int(found.sum()),
        "precision": hits / max(found.sum(), 1),
        "recall": hits / max(wrong.sum(), 1),
    }


def at_planted(scores: np.ndarray, wrong: np.ndarray) -> float:
    """The share of wrong labels among as many rows as have one, the lowest scores first."""
    return float(wrong[np.argsort(scores, kind="stable")[: wrong.sum()]].mean())


def compare(probs: np.ndarray, labels: np.ndarray, wrong: np.ndarray) -> dict[str, dict]:
    """The table of one seed: what each implementation's methods and rankings come to, from the same (n, C) probs."""
    table = {}
    for ours, theirs in zip(METHODS, THEIR_METHODS, strict=True):
        table[f"ours, {ours}"] = measure(find_issues(probs, labels, ours), wrong)
        issues = find_label_issues(labels, probs, filter_by=theirs, n_jobs=1)
        table[f"cleanlab, {theirs}"] = measure(issues, wrong)
    for ours, theirs in zip(RANKINGS, THEIR_RANKINGS, strict=True):
        scores = get_label_quality_scores(labels, probs, method=theirs)
        table[f"ours, {ours}"] = {"at planted": at_planted(label_scores(probs, labels, ours), wrong)}
        table[f"cleanlab, {theirs}"] = {"at planted": at_planted(scores, wrong)}
    return table


def main(argv=None) -> dict:
    """All seeds, the table; returns what the last line says."""
    args = parse_args(argv)
    tables, facts = [], []
    for seed in args.seeds:
        folder = Path(args.output_dir) / f"noise{args.noise:g}-seed{seed}"
        wrong = write_noisy(args, folder, seed)
        flags = f"--model_name={args.model_name} {args.flags}"
        files = {"train_data": str(folder / "train.jsonl"), "val_data": str(folder / "val.jsonl")}
        audited = read_audited(argparse.Namespace(run="", flags=flags, folds=args.folds, **files))
        gpus = args.gpus.split(",") if args.gpus else []
        probs = out_of_fold_probabilities(audited, folder, args.folds, seed, gpus)
        judged = np.isfinite(probs).all(axis=1)
        probs, labels, wrong = probs[judged], audited.labels[judged], wrong[judged]
        tables.append(compare(probs, labels, wrong))
        about = {"seed": seed, "rows": len(labels), "planted": int(wrong.sum())}
        about["estimated"] = round(wrong_share(confident_joint(probs, labels)) * len(labels))
        about["accuracy"] = float((probs.argmax(axis=1) == labels)[~wrong].mean())
        facts.append(about)
        print(json.dumps(about), flush=True)
    columns = ("found", "precision", "recall", "at planted")
    medians = {
        name: {key: statistics.median(table[name][key] for table in tables) for key in columns if key in row}
        for name, row in tables[0].items()
    }
    print(f"medians over {len(tables)} seeds")
    print(format_table(list(medians.items()), list(columns)))
    return print_result(args, medians=medians, seeds=facts, tables=tables)


if __name__ == "__main__":
    run_main(main)
