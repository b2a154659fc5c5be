"""One labelling model's folder of predictions: files in, rows with their labels out, and why others were dropped.

What counts as a row, and which of its labels are taken, is said in data/silver.py.
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from core.rows import RowError, RowFormat, file_sha256, show, sort_names

FIELDS = {  # what each field is often called; --text_field and so on name another
    "text": ["text", "question", "query", "input", "prompt", "sentence", "content", "utterance"],
    "labels": ["strategies_that_answer", "labels", "predictions", "predicted_labels", "correct_strategies"],
    "label": ["prediction", "predicted_label", "pred", "label", "answer", "strategy", "output", "response"],
    "id": ["id", "question_id", "qid", "uid", "_id"],
}


class Row(NamedTuple):
    id: str
    text: str
    labels: tuple[str, ...]


class Predictions(NamedTuple):
    """What one model's folder holds."""

    rows: list[Row]
    read: int
    files: dict[str, str]  # name -> sha256
    fields: dict[str, str]  # text, labels, label and id -> column, "" for none
    order: list[str]  # the labels, simplest first
    dropped: dict[str, dict]  # reason -> how many rows, the first one's id, what was found there
    left_out: dict[str, int]  # labels outside --order of rows that keep others


# Reading


def read_file(path: Path) -> list[tuple[str, object]]:
    """(id, row) of each row of a file, not checked; where the file gives no id it is "name:line" or "name:number".

    Raises:  UserError when the file cannot be read, is not JSON (with the position), or holds no kind of rows.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start + 1})") from None

    def load(part: str, line: int) -> object:
        try:
            return json.loads(part)
        except json.JSONDecodeError as error:
            where = f"line {line + error.lineno - 1}, column {error.colno}"
            raise UserError(f"{path}, {where}: invalid JSON: {error.msg}") from None
        except (ValueError, RecursionError) as error:  # too many digits or brackets
            raise UserError(f"{path}, line {line}: invalid JSON: {error}") from None

    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    object_a_line = len(lines) > 1 and re.fullmatch(r"\s*\{.*\}\s*", lines[0][1])
    if path.suffix.lower() == ".jsonl" or object_a_line:
        return [(f"{path.name}:{number}", load(line, number)) for number, line in lines]
    value = load(text, 1)
    if isinstance(value, dict):
        if 2 * sum(isinstance(row, dict) for row in value.values()) > len(value):
            return list(value.items())
        value = [value] if value else []  # a file that is one row
    if not isinstance(value, list):
        raise UserError(f"{path}: holds {show(value)}; expected rows, or an object with a row under each id")
    return [(f"{path.name}:{number}", row) for number, row in enumerate(value, 1)]


def choose_fields(columns: dict[str, Path], args: argparse.Namespace) -> dict[str, str]:
    """The column of each kind of FIELDS: the one given, else the only common name found; "" for none.

    Args:    columns: each with the first file that has it.
    Raises:  UserError when a given one is in no file, or when a needed one is not found, or found twice.
    """
    told = f"{next(iter(columns.values()))}: the columns are {', '.join(columns)}"
    found = {}
    for kind, common in FIELDS.items():
        given = getattr(args, f"{kind}_field")
        for name in given.split(",") if kind == "text" else [given]:
            if given and name not in columns:
                raise UserError(f"--{kind}_field {given}: {told}, none is {name!r}")
        found[kind] = [given] if given else [name for name in common if name in columns]
    found["id"] = found["id"][:1]
    if args.multiple or (found["labels"] and len(found["label"]) > 1):
        found["label"] = []  # of no use, or only for rows without labels that hold
    elif args.label_field and not args.labels_field:
        found["labels"] = []
    needed = "labels" if args.multiple or found["labels"] else "label"
    for kind in ("text", needed):
        if not found[kind]:
            raise UserError(f"{told}; --{kind}_field says which one holds the {kind}")
        if len(found[kind]) > 1:
            both = f"{', '.join(found[kind][:-1])} and {found[kind][-1]}"
            where = columns[found[kind][0]]
            raise UserError(f"{where}: {both} could each hold the {kind}; choose with --{kind}_field")
    return {kind: "".join(names) for kind, names in found.items()}


def read_row(key: str, row: object, fields: dict[str, str]) -> Row:
    """A row with its labels as they stand there, stripped. Raises RowError(reason, what was found)."""
    if not isinstance(row, dict):
        raise RowError("not an object", show(row))
    try:
        json.dumps([key, row], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError("not Unicode text", "half of a surrogate pair") from None
    try:
        text, _ = RowFormat(fields["text"]).text(row)
    except RowError as error:
        raise RowError("no text", str(error).split("; expected")[0]) from None
    held = fields["labels"] and row.get(fields["labels"]) is not None
    field = fields["labels"] if held or not fields["label"] else fields["label"]
    try:
        labels = RowFormat(label_field=field).labels(row)
    except RowError as error:
        raise RowError("no label", str(error).split("; expected")[0]) from None
    if isinstance(labels, dict):
        labels = [name for name, holds in labels.items() if holds]
    labels = [name.strip() for name in ([labels] if isinstance(labels, str) else labels)]
    if not any(labels):
        raise RowError(
            "no strategy answers" if held else "no label", f"field {field!r} is {show(row[field])}"
        )
    name = row.get(fields["id"])
    return Row(str(name) if isinstance(name, str | int) else key, text, tuple(filter(None, labels)))


def match_label(text: str, order: list[str]) -> list[str]:
    """The labels of order that a text names: itself, or those that it holds as words of their own."""
    if text in order:
        return [text]
    longest_first = "|".join(re.escape(name) for name in sorted(order, key=len, reverse=True))
    found = set(re.findall(rf"(?<!\w)(?:{longest_first})(?!\w)", text))
    return [name for name in order if name in found]


def choose_labels(row: Row, order: list[str], multiple: bool) -> tuple[Row, list[str]]:
    """The row with all labels of order that hold, or the first alone; and those left out, as outside the order.

    Raises:  RowError(reason, what was found) when no label remains.
    """
    matches = [match_label(text, order) for text in row.labels]
    found = {match[0] for match in matches if len(match) == 1}
    if not found:
        several = any(len(match) > 1 for match in matches)
        told = row.labels[0] if len(row.labels) == 1 else list(row.labels)
        raise RowError("names several of the labels" if several else "names none of the labels", show(told))
    chosen = tuple(name for name in order if name in found)
    odd = [text for text, match in zip(row.labels, matches, strict=True) if len(match) != 1]
    return row._replace(labels=chosen if multiple else chosen[:1]), odd


def drop(dropped: dict[str, dict], key: str, reason: str, found: str) -> None:
    """Count a dropped row; of the first for each reason, its id and what was found there are kept."""
    key = key.encode(errors="replace").decode()
    dropped.setdefault(reason, {"rows": 0, "first": key, "found": found})["rows"] += 1


def read_predictions(folder: Path, args: argparse.Namespace) -> Predictions:
    """The rows of one model's folder.

    Raises:  UserError when there is no file, one is not JSON, a field is not clear, or no row is left.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.json*") if path.is_file()}
    names = [name for name in sorted(paths) if re.fullmatch(r"(?!\.|.*/\.).*\.jsonl?", name)]  # none hidden
    found, columns = [], {}
    for name in names:
        for key, row in read_file(paths[name]):
            found.append((key, row))
            for column in row if isinstance(row, dict) else ():
                columns.setdefault(column, paths[name])
    if not columns:
        what = "no .json or .jsonl file" if not names else f"{len(names)} files, but not one row in them"
        raise UserError(f"--input_folder: {folder} holds {what}")
    files = {name: file_sha256(paths[name]) for name in names}
    fields, dropped, left_out = choose_fields(columns, args), {}, Counter()
    rows, kept = [], []
    for key, row in found:
        try:
            rows.append(read_row(key, row, fields))
        except RowError as error:
            drop(dropped, key, *error.args)
    order = args.order or sort_names({name for row in rows for name in row.labels})
    for row in rows:
        try:
            row, odd = choose_labels(row, order, args.multiple)
            kept.append(row)
            left_out.update(odd)
        except RowError as error:
            drop(dropped, row.id, *error.args)
    if args.deduplicate:
        kept = drop_duplicates(kept, dropped)
    if not kept:
        told = (f"{n['rows']} {why} ({n['first']}: {n['found']})" for why, n in dropped.items())
        raise UserError(f"{folder}: of {len(found)} rows none is left: {'; '.join(told)}")
    return Predictions(kept, len(found), files, fields, order, dropped, dict(sorted(left_out.items())))


def same_text(text: str) -> str:
    """What texts have in common that differ in case and white space only."""
    return " ".join(text.lower().split())


def drop_duplicates(rows: list[Row], dropped: dict[str, dict]) -> list[Row]:
    """One row for each question, sorted by question; none for a question that has different labels."""
    same, kept = defaultdict(list), []
    for row in rows:
        same[same_text(row.text)].append(row)
    for _, (first, *others) in sorted(same.items()):
        told = sorted({"+".join(row.labels) for row in (first, *others)})
        if len(told) == 1:
            kept.append(first)
        for row in others if len(told) == 1 else (first, *others):
            drop(dropped, row.id, "duplicate" if len(told) == 1 else "conflicting labels", " / ".join(told))
    return kept
