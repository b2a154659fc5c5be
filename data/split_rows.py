"""What data.split knows of its rows: read and checked, which belong together, which are too near to given test rows."""

import argparse
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from tqdm import tqdm

from core.cache import LabelColumn
from core.errors import UserError
from core.rank_rows import parse_rank_row
from core.rows import BadRows, RowError, RowFormat, field_names, read_rows
from core.spent import row_hash
from data.splits import find_near, group_near_duplicates, join_groups


@dataclass
class Table:
    """The rows of one file, as columns."""

    rows: list[dict] = field(default_factory=list)  # as read
    lines: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # of whose words near-duplicates share most
    hashes: list[int] = field(default_factory=list)  # core/spent.py
    labels: list[list[str]] = field(default_factory=list)  # names; of a ranking row: how many candidates
    owners: list[tuple[str, ...]] = field(
        default_factory=list
    )  # the value of each --group_field; "": nobody's

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, chosen: list[int]) -> "Table":
        """Some of its rows."""
        return Table(*([getattr(self, column.name)[i] for i in chosen] for column in fields(self)))


def read_tables(args: argparse.Namespace) -> tuple[Table, Table | None, LabelColumn | None]:
    """The rows of --input, those of --test_data, and the kind of labels that both have; None: ranking rows.

    Raises: UserError with all bad rows of a file.
    """
    for flag in ("input", "test_data"):
        path = getattr(args, flag)
        if path and not Path(path).is_file():
            if path != "-":
                next(read_rows(path, BadRows(path), f"--{flag}"), None)  # raises the message that fits
            raise UserError(f"--{flag} {path}: not a regular file")
    _, first = next(read_rows(args.input, BadRows(args.input), "--input"), (0, {}))
    is_ranking = "question" in first and "candidates" in first and args.text_field == "text"
    kind = None if is_ranking else LabelColumn()
    table = read_table(args.input, "--input", args, kind)
    return table, read_table(args.test_data, "--test_data", args, kind) if args.test_data else None, kind


def read_table(path: str, flag: str, args: argparse.Namespace, kind: LabelColumn | None) -> Table:
    """The rows of one file. kind: takes their labels; None: ranking rows. Raises UserError with all bad rows."""
    table, bad = Table(), BadRows(path)
    row_format = RowFormat(args.text_field, args.pair_field, args.label_field)
    for line, row in tqdm(
        read_rows(path, bad, flag), f"read {path}", unit=" rows", disable=None, leave=False
    ):
        try:
            if kind is None:
                ranked = parse_rank_row(row)
                texts, labels = (ranked.question, ranked.context), [f"{len(ranked.candidates)} candidates"]
            else:
                texts, found = row_format.text(row), row_format.labels(row)
                kind.add(found)
                labels = [found] if isinstance(found, str) else list(found)
                if isinstance(found, dict):
                    labels = [name for name, applies in found.items() if applies]
            owners = tuple(owner_of(row, name, flag == "--input") for name in args.group_fields)
        except RowError as error:
            bad.add(line, str(error))
            continue
        table.rows.append(row)
        table.lines.append(line)
        table.texts.append("\n".join(text for text in texts if text))
        table.hashes.append(row_hash(*texts))
        table.labels.append(labels)
        table.owners.append(owners)
    bad.raise_if_any()
    return table


def owner_of(row: dict, name: str, is_needed: bool) -> str:
    """The value of a group field as text; "" where it is empty, or not there and not needed. Raises RowError."""
    if is_needed and name not in row:
        raise RowError(f"no field {name[:60]!r} (found: {field_names(row)}); --group_field names it")
    value = row.get(name)
    if value is None or isinstance(value, str):
        return (value or "").strip()
    return json.dumps(value, sort_keys=True)


def group_rows(table: Table, near: float) -> tuple[list[int], list[int]]:
    """(n,) groups of near-duplicates, and (n,) groups that are not divided: joined where an owner is the same."""
    hashes = [str(value) for value in table.hashes]  # copies of a text without a word belong together, too
    copies = join_groups(group_near_duplicates(table.texts, near), hashes)
    groups = copies
    for owners in zip(*table.owners):
        groups = join_groups(groups, list(owners))
    return copies, groups


def drop_near_test(table: Table, test: Table, args: argparse.Namespace) -> tuple[Table, list[dict]]:
    """The rows without those near to one of the given test rows or of the same owner, and what was dropped.

    A row that is near to a dropped one alone stays: with the test rows it has less in common.
    Returns: the rest | for each dropped row line, test_line, why: in the order of the lines.
    """
    places = {value: i for i, value in reversed(list(enumerate(test.hashes)))}
    near_ones = find_near(table.texts, test.texts, args.near)
    owned = [{} for _ in args.group_fields]
    for i, owners in enumerate(test.owners):
        for place, owner in zip(owned, owners, strict=True):
            if owner:
                place.setdefault(owner, i)
    kept, dropped = [], []
    for i, line in enumerate(table.lines):
        found = {"near-duplicate": places.get(table.hashes[i], near_ones[i])}
        for name, place, owner in zip(args.group_fields, owned, table.owners[i], strict=True):
            found[f"same {name}"] = place.get(owner, -1)
        reasons = [
            {"line": line, "test_line": test.lines[k], "why": why} for why, k in found.items() if k >= 0
        ]
        if reasons:
            dropped.append(reasons[0])
        else:
            kept.append(i)
    return table.only(kept), dropped
