"""What people have labelled joins the training rows: checked, each text once, no row that is held out.

m new rows.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np

from core.cache import LabelColumn
from core.errors import UserError
from core.rows import BadRows, RowError, RowFormat, show
from core.spent import count_common, refuse_test_rows
from jobs.active_rows import MOST_NAMED, SHOWN, Rows, label_names_of, read_texts, write_rows

WORDS = {"one": "one label", "list": 'a list of labels like ["a", "b"]', "dict": "0/1 for each label"}


def as_trained(value: str | list | dict, kind: str, names: list[str]) -> str | list[str] | dict[str, int]:
    """A person's labels in the form of the training rows. Raises RowError for another kind, or an unknown label.

    Args: value: of RowFormat.labels | kind: one, list or dict, see LabelColumn | names: the known labels.
    """
    if isinstance(value, str) != (kind == "one"):
        raise RowError(f"the label is {show(value)}; the training rows have {WORDS[kind]}")
    given = [value] if kind == "one" else list(value)
    given = [name if name in names else name.strip() for name in given]
    unknown = [name for name in given if name not in names]
    if unknown:
        more = ", ..." if len(names) > MOST_NAMED else ""
        raise RowError(
            f"no training row has the label {show(unknown[0])}; known are {', '.join(names[:MOST_NAMED])}{more} "
            "(a new one needs a first row in --train_data)"
        )
    if isinstance(value, dict):
        given = [name for name, holds in zip(given, value.values(), strict=True) if holds]
    if kind == "one":
        return given[0]
    return list(dict.fromkeys(given)) if kind == "list" else {name: int(name in given) for name in names}


def read_train(path: str, row_format: RowFormat) -> tuple[Rows, list, str, list[str]]:
    """Training rows, the labels of each, their kind (see LabelColumn), and the names in order. Raises UserError."""
    rows, bad, column, labels = read_texts(path, "--train_data", row_format), BadRows(path), LabelColumn(), []
    for line, row in zip(rows.lines, rows.rows, strict=True):
        try:
            labels.append(row_format.labels(row))
            column.add(labels[-1])
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    return rows, labels, column.kind, column.finish()[0]


def holding(labels: str | list | dict) -> list[str]:
    """The names that hold, in order."""
    if isinstance(labels, str):
        return [labels]
    return sorted(name for name in labels if not isinstance(labels, dict) or labels[name])


def was_right(row: dict, labels: str | list | dict) -> bool | None:
    """Whether what the run said of a row is what the person says; None where the file does not tell."""
    said = row.get("predicted")
    if isinstance(said, str) and not isinstance(labels, str):
        try:
            said = json.loads(said)  # a CSV cell
        except ValueError:
            return None
    if said is None:
        return None
    return holding(labels) == (sorted(map(str, said)) if isinstance(said, list) else [str(said)])


def read_labelled(
    args: argparse.Namespace, row_format: RowFormat, train: tuple[Rows, list, str, list[str]]
) -> tuple[list[dict], list, np.ndarray, dict]:
    """The rows of people's files that are new to the training rows.

    Args:    train: of read_train.
    Returns: the rows as they join the training rows, the labels of each, (m,) their hashes, and counts.
    Raises:  UserError for unknown labels, two labels for one text, test rows, rows that are held out.
    """
    (old, old_labels, kind, names), seen, counts = train, {}, Counter()
    known = {int(value): holding(labels) for value, labels in zip(old.hashes, old_labels, strict=True)}
    field = next(name for name in label_names_of(row_format) if name in old.rows[0])
    written = {str(row.get(field)): row[field] for row in old.rows if kind == "one"}  # an integer stays one
    made, labels, hashes = [], [], []
    for path in args.labelled:
        rows, bad = read_texts(path, "LABELLED", row_format), BadRows(path)
        for line, row, value in zip(rows.lines, rows.rows, map(int, rows.hashes), strict=True):
            counts["rows"] += 1
            if all(row.get(name) in (None, "") for name in label_names_of(row_format)):
                counts["unlabelled"] += 1
                continue
            plain = {name: cell for name, cell in row.items() if cell not in (None, "")}
            try:
                given = as_trained(row_format.labels(plain), kind, names)
            except RowError as error:
                bad.add(line, str(error))
                continue
            holds, before = holding(given), seen.get(value)
            if before and before[0] != holds:
                bad.add(
                    line, f"has the label {show(holds)}, the same text at {before[1]} has {show(before[0])}"
                )
            elif before:
                counts["repeated"] += 1
            elif value in known:
                counts["known"] += 1
                counts["known_otherwise"] += known[value] != holds
            else:
                right = was_right(row, given)
                counts["judged"] += right is not None
                counts["right"] += bool(right)
                kept = {k: v for k, v in row.items() if k not in (*SHOWN, *label_names_of(row_format))}
                made.append(kept | {field: written[given] if kind == "one" else given})
                labels.append(given)
                hashes.append(value)
            seen.setdefault(value, (holds, f"{path}, line {line}"))
        bad.raise_if_any()
    found = np.array(hashes, np.uint64)
    folders = [Path(path).parent for path in (args.train_data, args.pool) if path]
    for path in args.labelled:
        refuse_test_rows(found, "LABELLED", path, folders)
    for path in args.held_out:
        num_common = count_common(found, read_texts(path, "--held_out", row_format).hashes)
        if num_common:
            raise UserError(
                f"{num_common} of the {len(found)} labelled rows are in --held_out {path}: take them out"
            )
    return made, labels, found, dict(counts)


def take(args: argparse.Namespace) -> dict:
    """Join what people have labelled to the training rows; with a pool, write what is left of it."""
    row_format = RowFormat(args.text_field, args.pair_field, args.label_field)
    train = read_train(args.train_data, row_format)
    made, labels, hashes, counts = read_labelled(args, row_format, train)
    told = {name: counts.get(name, 0) for name in ("unlabelled", "known", "known_otherwise", "repeated")}
    sums = (
        f"{told['unlabelled']} without a label, {told['known']} that are training rows already "
        f"({told['known_otherwise']} of them with another label there, which stays), {told['repeated']} repeated"
    )
    if not made:
        raise UserError(f"{', '.join(args.labelled)}: no new labelled row in {counts['rows']} rows: {sums}")
    rest = None
    if args.pool:
        pool = read_texts(args.pool, "--pool", row_format)
        rest = pool.part(~np.isin(pool.hashes, np.concatenate([train[0].hashes, hashes])))
        write_rows(args.rest, rest.rows, "--rest")
    write_rows(args.output, [*train[0].rows, *made], "--output")
    old = Counter(name for value in train[1] for name in holding(value))
    new = Counter(name for value in labels for name in holding(value))
    print(f"{', '.join(args.labelled)}: {counts['rows']} rows, {len(made)} new; left out: {sums}")
    print("labels: " + ", ".join(f"{name} {old[name]} + {new[name]}" for name in train[3][:MOST_NAMED]))
    if counts.get("judged"):
        share = counts.get("right", 0) / counts["judged"]
        print(
            f"the run had said the same of {share:.1%} of them; they were chosen, so that is not its accuracy"
        )
    print(f"written: {args.output}, {len(train[0])} + {len(made)} rows")
    if rest is not None:
        print(f"written: {args.rest}, {len(rest)} of {len(pool)} rows of the pool are left")
    result = {"output": args.output, "rows": len(train[0]) + len(made), "new": len(made), **told}
    return result | ({} if rest is None else {"rest": len(rest)})
