"""Audit training rows: labels that are probably wrong, near-duplicates with other labels, rows near test or validation.

    python -m jobs.audit runs/minilm/trec/20260101-120000-seed0                # writes RUN/audit
    python -m jobs.audit --train_data train.jsonl --val_data val.jsonl --flags="--epochs 3" --output_dir audit
    python -m jobs.audit --train_data train.jsonl --test_data test.jsonl --folds 0 --output_dir audit  # trains nothing
    python -m jobs.audit --apply audit/audit.csv                               # filled in: writes audit/cleaned.jsonl

The run is trained again --folds times, each time without a part of its rows (jobs/folds.py; a command that was stopped
goes on where it was), so that every row is judged by a model that has not seen it; confident learning
(core/confident_learning.py) says from these probabilities which labels are probably wrong, and how many.
Written: audit.html, a page to work through; audit.csv, the same for a spreadsheet; audit.jsonl; summary.json;
probabilities.npy, (rows, labels), NaN where no fold held a row out; noise.png. In the page, or in the CSV's column
"verdict", a person says of each row keep, drop, fix (the suggestion) or fix/LABEL; --apply makes new training rows of
that. The input is never changed, a row that is a test row is never written; of test rows no label is read.
"""

import json
from pathlib import Path

import numpy as np

from core.confident_learning import METHODS, RANKINGS, confident_joint, noise_matrix, one_vs_rest, wrong_share
from core.errors import UserError, disk_errors, run_main
from core.files import save_array, write_json, write_text
from core.flags import Parser, number
from core.plots import save_png
from core.results_table import format_table
from core.runs import slug
from data.splits import NEAR
from jobs.audit_page import audit_page, count_kinds, noise_figure, noise_table
from jobs.audit_rows import (
    Audited,
    Others,
    find_conflicts,
    find_leaks,
    known_test_rows,
    out_of_fold_probabilities,
    read_audited,
    read_others,
)
from jobs.audit_table import as_csv, as_jsonl, suspect_labels, table_rows
from jobs.audit_verdicts import apply_verdicts, has_verdicts
from jobs.compare import check_gpus


# fmt: off
def parse_args(argv=None):
    parser = Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", default="", metavar="RUN", help="a classifier's run, whose training rows are audited")
    flag("--train_data", default="", metavar="FILE", help="without RUN: the rows to audit")
    flag("--val_data", default="", metavar="FILE", help="with --train_data: rows that choose each fold's best step")
    flag("--flags", default="", help="with --train_data: train.py's flags, in quotes: --flags=\"--model_name X\"")
    flag("--test_data", default="", metavar="FILE",
         help="rows that must not be among the training rows; default: RUN's own; their labels are not read")
    flag("--folds", type=number(int, 0, 20), default=5,
         help="trainings, each without a part of the rows (default: 5); 0: none, duplicates and leaks alone")
    flag("--method", choices=METHODS, default=METHODS[0], help="which rows are listed; see core/confident_learning.py")
    flag("--ranking", choices=RANKINGS, default=RANKINGS[0], help="the score that orders them, the lowest first")
    flag("--near", type=number(float, 0.01, 1), default=NEAR,
         help=f"share of words in common from which two texts are near-duplicates (default: {NEAR:g})")
    flag("--output_dir", default="", metavar="DIR", help="default: RUN/audit; with --apply: the folder of its FILE")
    flag("--gpus", default="", metavar="0,1", help="one training at a time on each; default: one at a time")
    flag("--seed", type=number(int, 0), default=0, help="of the folds")
    flag("--apply", default="", metavar="FILE", help="a filled-in table (.csv, .jsonl): write the cleaned rows")
    flag("--cleaned", default="", metavar="FILE", help="of --apply: the rows to write (default: DIR/cleaned.jsonl)")
    args = parser.parse_args(argv)
    if bool(args.run) + bool(args.train_data) + bool(args.apply) != 1:
        raise UserError("expected one of RUN, --train_data FILE and --apply FILE (--help lists the flags)")
    if args.folds == 1:
        raise UserError("--folds 1: expected 0, or at least 2")
    if args.run and (args.flags or args.val_data):
        raise UserError("--flags, --val_data: are for --train_data; RUN has its own")
    args.gpus = args.gpus.split(",") if args.gpus else []
    check_gpus(args.gpus)
    if args.apply and not args.output_dir:
        args.output_dir = str(Path(args.apply).parent)
    elif not args.output_dir:
        path = Path(args.train_data).resolve()
        own = Path("runs/audit", slug(path.parent.name), slug(path.stem))
        args.output_dir = str(Path(args.run, "audit") if args.run else own)
    if Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise UserError(f"--output_dir {args.output_dir}: is a file; expected a folder")
    return args
# fmt: on


def read_leaks(args, audited: Audited) -> list[Others]:
    """Validation and test rows to compare with. A file of the run's that is not there any more is passed over."""
    arguments, made = audited.team.records[0]["arguments"], []
    paths = {"validation": ("--val_data", args.val_data, "val_data")}
    paths["test"] = ("--test_data", args.test_data, "test_data")
    for use, (flag, given, name) in paths.items():
        path = given or (arguments.get(name) if args.run else "")
        if path and (given or Path(path).is_file()):
            made.append(read_others(use, path, flag, audited.team.row_format))
        elif path:
            print(f"note: {path} is not there: training rows are not compared with the {use} rows")
    return made


def joint_of(audited: Audited, probs: np.ndarray) -> np.ndarray:
    """(C, C) confident joint of the judged rows; with several labels a row (C, 2, 2), one for each label."""
    judged = np.isfinite(probs).all(axis=1)
    if audited.team.multi_label:
        return np.stack(
            [confident_joint(*problem) for problem in one_vs_rest(probs[judged], audited.truth[judged])]
        )
    return confident_joint(probs[judged], audited.labels[judged])


def audit(args, folder: Path) -> dict:
    """Judge, compare, write; returns summary.json's content."""
    if has_verdicts(folder):
        raise UserError(
            f"--output_dir {folder}: holds a table with verdicts, which it would replace; give another"
        )
    audited = read_audited(args)
    leaks = read_leaks(args, audited)
    probs = np.full(audited.truth.shape, np.nan)
    if args.folds:
        probs = out_of_fold_probabilities(audited, folder, args.folds, args.seed, args.gpus)
    judged = np.isfinite(probs).all(axis=1)
    issues, scores = suspect_labels(probs, audited, args.method, args.ranking)
    texts, test = audited.table.texts, known_test_rows(args.run, audited.path, leaks)
    conflicts = find_conflicts(texts, audited.truth, args.near)
    found = [(others, find_leaks(audited.table, others, args.near)) for others in leaks]
    is_test = np.isin(np.array(audited.table.hashes, np.uint64), test)
    rows = table_rows(audited, probs, issues, scores, conflicts, found, is_test)
    joint = joint_of(audited, probs) if judged.any() else None
    summary = {
        "run": args.run, "train_data": audited.path, "sha256": audited.sha256, "rows": len(texts),
        "judged": int(judged.sum()), "found": count_kinds(rows), "listed": len(rows),
        "folds": args.folds, "seed": args.seed, "method": args.method, "ranking": args.ranking, "near": args.near,
        "compared_with": {others.use: others.path for others in leaks},
        "label_names": audited.team.label_names, "multi_label": audited.team.multi_label,
        "row_format": vars(audited.team.row_format),
    }  # fmt: skip
    if joint is not None:
        summary["estimated_wrong_frac"] = estimated_wrong(joint)
        summary["confident_joint"] = joint.tolist()
        noise = noise_matrix(joint) if joint.ndim == 2 else np.stack(list(map(noise_matrix, joint)))
        summary["noise_matrix"] = noise.round(6).tolist()
    with disk_errors(folder, "--output_dir"):
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        save_array(
            folder / "rows" / "test.npy", test
        )  # train.py refuses them beside this folder's cleaned rows
        if joint is not None:
            save_array(folder / "probabilities.npy", probs)
            save_png(noise_figure(joint, audited.team.label_names), folder / "noise.png")
        write_text(folder / "audit.jsonl", as_jsonl(rows))
        write_text(folder / "audit.csv", as_csv(rows, bool(audited.team.row_format.pair_field)))
        write_text(folder / "audit.html", audit_page(audited, rows, summary, joint))
        write_json(folder / "summary.json", summary)
    if joint is not None:
        head, lines = noise_table(joint, audited.team.label_names)
        print(
            format_table(
                [(line[0], dict(zip(head[1:], line[1:], strict=True))) for line in lines[:20]], head[1:]
            )
        )
    return summary


def estimated_wrong(joint: np.ndarray) -> float:
    """The estimated share of rows with a wrong label; with several a row, of labels (rows times labels)."""
    return wrong_share(joint) if joint.ndim == 2 else float(np.mean([wrong_share(own) for own in joint]))


def clean_rows(args, folder: Path) -> dict:
    """Apply a filled-in table; returns how many rows were kept, fixed, dropped and left as they were."""
    output = Path(args.cleaned or folder / "cleaned.jsonl")
    if output.suffix.lower() != ".jsonl":
        raise UserError(f"--cleaned {output}: expected a file that ends in .jsonl")
    rows, counts = apply_verdicts(args.apply, folder)
    source = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["train_data"]
    if output.resolve() in (
        Path(source).resolve(),
        Path(args.apply).resolve(),
        (folder / "audit.jsonl").resolve(),
    ):
        raise UserError(f"--cleaned {output}: is an input; give another file")
    with disk_errors(output, "--cleaned"):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, as_jsonl(rows))
    print(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items()))
    print(f"written: {output}, {len(rows)} rows of {source}")
    return {"cleaned": str(output), "rows": len(rows), **counts}


def main(argv=None) -> dict:
    """Audit, or apply a filled-in table; returns what the last line of the output says."""
    args = parse_args(argv)
    folder = Path(args.output_dir)
    if args.apply:
        result = clean_rows(args, folder)
    else:
        summary = audit(args, folder)
        found = summary["found"]
        print(f"to look at: {folder / 'audit.html'} or {folder / 'audit.csv'}, {summary['listed']} rows: "
              + ", ".join(f"{kind} {count}" for kind, count in found.items()))  # fmt: skip
        result = {"audit": str(folder), "rows": summary["rows"], "judged": summary["judged"], "found": found}
        result["estimated_wrong_frac"] = summary.get("estimated_wrong_frac")
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
