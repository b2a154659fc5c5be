"""Rows are spent once: a file's rows to train, validation, calibration and test, divided once and before anything else.

    python -m data.split --input rows.jsonl --output_dir rows/mine                           # 70, 10, 10, 10 %
    python -m data.split --input rows.jsonl --output_dir rows/mine --group_field author --shares 0.6,0.1,0.1,0.2
    python -m data.split --input train.csv --test_data dev.csv --output_dir rows/mine        # dev.csv is the test part
    python -m data.split --input ranking.jsonl --output_dir rows/mine --group_field page     # ranking rows, recognised

Writes to OUTPUT_DIR: train.jsonl, validation.jsonl, calibration.jsonl, test.jsonl, the rows with all their fields in
the order of the input; rows/<use>.npy, their hashes, by which the loops know a test row again (core/spent.py); and
split.json: what is printed here, and the lines that contradict each other, are near-duplicates or were dropped.

Rows stay together that have the same value in a --group_field, the same text, or at least --near of their words in
common (of both texts, of question and context; by way of a third row, too). In scripts without spaces between words
a whole run of letters counts as one, so that there little but copies is found. The number of rows and each label's
(of ranking rows: those with as many candidates) are kept level over the parts: data/splits.py, stratify. Every label
has a row in train; where the rarest have none elsewhere, a warning and split.json say so.

Which row goes where depends on the rows and on --seed, not on their order in the file; the same file and flags give
the same bytes. With --test_data shares are of the rows of --input that remain.
"""

import argparse
import hashlib
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from core.errors import UserError, disk_errors, run_main
from core.files import write_folder
from core.flags import Parser, number
from core.rows import file_sha256, sort_names
from core.spent import USES, refuse_test_rows, row_hash, write_uses
from data.split_rows import drop_near_test, group_rows, read_tables
from data.split_summary import describe, find_warnings, print_summary
from data.splits import NEAR, stratify

SEVERAL = "several labels a row"
KINDS = {"one": "one label a row", "list": SEVERAL, "dict": SEVERAL, "ranking": "ranking rows"}
WRITTEN = ["split.json", *(f"{use}.jsonl" for use in USES), *(f"rows/{use}.npy" for use in USES)]


# fmt: off
def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked; group_fields is a list, asked the share of each part that is divided."""
    parser = Parser(__doc__)
    parser.prog = "python -m data.split"
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="rows: JSON, JSONL, CSV or TSV")
    add("--output_dir", required=True, metavar="DIR", help="folder to write to; one that holds a split is refused")
    add("--test_data", default="", metavar="FILE", help="the test part; rows of --input near to its rows are dropped")
    add("--shares", default="", metavar="A,B,C,D",
        help="of train, validation, calibration and test; with --test_data of the first three")
    for part in USES[1:]:
        add(f"--{part}", type=number(float, 0, 1), metavar="SHARE",
            help="of the rows, where there is no --shares; default: 0.1; 0: no such part")
    add("--group_field", default="", metavar="NAME", help="rows with the same value stay together; a,b: in one of both")
    add("--near", type=number(float, 0.3, 1), default=NEAR, metavar="SHARE",
        help="of words in common from which rows stay together; default: 0.7; 1: the same words")
    add("--text_field", default="text", help="column of the text; a,b joins columns as lines `name: value`")
    add("--pair_field", default="", help="column of a second text")
    add("--label_field", default="", help="column of the label or labels; default: label or labels")
    add("--seed", type=number(int, 0), default=0, help="which rows go where")
    add("--overwrite", action="store_true", help="replace a split; what it trained has seen test rows of the new one")
    args = parser.parse_args(argv)
    args.group_fields = [name for name in args.group_field.split(",") if name]
    args.asked = parse_shares(args)
    return args
# fmt: on


def parse_shares(args: argparse.Namespace) -> dict[str, float]:
    """The share of each part that is divided; those of 0 left out. Raises UserError."""
    parts = USES[:3] if args.test_data else USES
    given = {part: value for part in USES[1:] if (value := getattr(args, part)) is not None}
    if args.test_data and "test" in given:
        raise UserError("--test: the test rows are those of --test_data; give one of the two")
    if args.shares:
        if given:
            raise UserError(f"--shares {args.shares}: says all shares; leave out --{next(iter(given))}")
        try:
            shares = [float(text) for text in args.shares.split(",")]
        except ValueError:
            shares = []
        wrong = len(shares) != len(parts) or not all(0 <= share <= 1 for share in shares)
        if wrong or not math.isclose(sum(shares), 1, abs_tol=1e-6):
            what = f"{len(parts)} numbers that sum to 1: {', '.join(parts)}"
            raise UserError(f"--shares {args.shares}: expected {what}")
    else:
        held_out = [given.get(part, 0.1) for part in parts[1:]]
        shares = [round(1 - sum(held_out), 9), *held_out]
    if shares[0] <= 0:
        raise UserError("no share is left for train; give smaller ones for the other parts")
    return {part: share for part, share in zip(parts, shares, strict=True) if share > 0}


# Out


def check_output(args: argparse.Namespace) -> None:
    """Raise UserError when the output folder holds a split already, or a file that is read."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; expected a folder")
    there = [folder / name for name in WRITTEN if (folder / name).exists()]
    for flag in ("input", "test_data"):
        path = getattr(args, flag)
        if path and Path(path).resolve() in [own.resolve() for own in there]:
            raise UserError(f"--{flag} {path}: is in --output_dir and would be replaced; give another folder")
    if there and not args.overwrite:
        raise UserError(
            f"--output_dir {folder}: holds a split already ({there[0].name}). A second one would let runs train on or "
            "choose by rows that tested the first, so it is made once; give another folder, or --overwrite"
        )


def write_split(folder: Path, files: dict[str, bytes], hashes: dict[str, list[int]]) -> None:
    """Write files and rows/<use>.npy, the old split's removed: a new folder whole, else split.json goes first and
    comes last, so that what a kill leaves is no split."""

    def fill(part: Path) -> None:
        write_uses(part, {use: SimpleNamespace(hashes=own, meta={}) for use, own in hashes.items()})
        for name, content in files.items():
            (part / name).write_bytes(content)

    with disk_errors(folder, "--output_dir"):
        if not folder.exists():
            return write_folder(folder, fill)
        staged = folder / ".split"
        try:
            write_folder(staged, fill)
            for name in WRITTEN:
                (folder / name).unlink(missing_ok=True)
            (folder / "rows").mkdir(exist_ok=True)
            for name in (*(f"rows/{use}.npy" for use in hashes), *files):
                (staged / name).replace(folder / name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def as_line(row: dict) -> bytes:
    """A row as a line of JSONL. Half a surrogate pair, which no UTF-8 can hold, stays an escape."""
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()


def main(argv: list[str] | None = None) -> dict:
    """Divide, write, print; returns what the last line says."""
    args = parse_args(argv)
    check_output(args)
    folder = Path(args.output_dir)
    table, test, kind = read_tables(args)
    source = {"path": args.input, "sha256": file_sha256(args.input), "rows": len(table)}
    if kind and not kind.index:
        raise UserError(f"--input {args.input}: no row has a label")
    if (
        Path(args.input).resolve().parent != folder.resolve()
    ):  # else it is this split that --overwrite replaces
        refuse_test_rows(np.array(table.hashes, np.uint64), "--input", args.input)
    table, dropped = drop_near_test(table, test, args) if test else (table, [])
    groups = group_rows(table, args.near)
    keys = [row_hash(f"{args.seed} {value}") for value in table.hashes]
    parts = stratify(groups[1], table.labels, keys, args.asked)
    empty = [part for part in args.asked if part not in parts]
    if empty:
        told = f"{len(table)} rows in {len(set(groups[1]))} indivisible groups leave {', '.join(empty)} empty"
        told += f" ({len(dropped)} rows dropped for the test rows)" if dropped else ""
        raise UserError(f"--input {args.input}: {told}; give more rows, fewer parts, or raise --near")
    named = kind.index if kind else {name for own in table.labels for name in own}
    rows = {part: table.only([i for i, own in enumerate(parts) if own == part]) for part in args.asked}
    rows |= {"test": test} if test else {}
    summary = {
        "input": source,
        "test_data": {"path": args.test_data, "sha256": file_sha256(args.test_data)} if test else None,
        "kind": KINDS[kind.kind if kind else "ranking"],
        "fields": {name: getattr(args, name) for name in ("text_field", "pair_field", "label_field")},
        "seed": args.seed,
        **describe(args, table, test, sort_names(named), groups, parts),
        "dropped": dropped,
    }
    summary["warnings"] = find_warnings(summary, kind is None)
    files = {f"{part}.jsonl": b"".join(map(as_line, own.rows)) for part, own in rows.items()}
    summary["files"] = {
        part: {"file": f"{part}.jsonl", "sha256": hashlib.sha256(files[f"{part}.jsonl"]).hexdigest()}
        for part in rows
    }
    files["split.json"] = (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode()
    write_split(folder, files, {part: own.hashes for part, own in rows.items()})
    print_summary(summary)
    print(f"written to {folder}: {', '.join(files)}")
    result = {"output_dir": str(folder), "rows": summary["rows"], "groups": summary["groups"]["all"]}
    result |= {"near_duplicates": summary["near_duplicates"]["rows"], "dropped": len(dropped)}
    result |= {"warnings": summary["warnings"]}
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
