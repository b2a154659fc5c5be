"""Rows in: JSON, JSONL or CSV, streamed, checked, with every complaint naming the file, the line and the field."""

import csv
import errno
import hashlib
import json
import os
import sys
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

from core.errors import UserError

MOST_REPORTED = 20
MOST_LEVELS = 100  # of lists and objects in a row: more, and writing it as JSON ends in Python's own limit
MOST_NAMED = 20  # fields of a row that a message lists
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


class RowError(Exception):
    """What is wrong with one row: field, found, expected."""


@dataclass(frozen=True)
class RowFormat:
    """Which columns hold what. Text fields joined by commas are encoded as lines of `name: value`."""

    text_field: str = "text"
    pair_field: str = ""
    label_field: str = ""  # "": label or labels, whichever the row has

    def text(self, row: dict) -> tuple[str, str | None]:
        """The text and, with pair_field, its second part. Raises RowError."""
        names = self.text_field.split(",")
        if len(names) == 1:
            text = self._string(row, names[0], "--text_field")
        else:
            parts = [(name, self._string(row, name, "--text_field", empty=True)) for name in names]
            text = "\n".join(f"{name}: {value}" for name, value in parts)
            if not any(value.strip() for _, value in parts):
                raise RowError(f"fields {', '.join(names)} are all empty; expected text")
        return text, self._string(row, self.pair_field, "--pair_field") if self.pair_field else None

    @staticmethod
    def _string(row: dict, name: str, flag: str, empty: bool = False) -> str:
        if name not in row:
            raise RowError(f"no field {name[:60]!r} (found: {field_names(row)}); {flag} names it")
        value = row[name]
        if empty and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            raise RowError(f"field {name!r} is {show(value)}; expected a string")
        half = half_pair(value)
        if half:
            raise RowError(f"field {name!r}: {half}")
        if not empty and not value.strip():
            raise RowError(f"field {name!r} is empty; expected text")
        return value

    def labels(self, row: dict) -> str | dict[str, int] | list[str]:
        """One label as a string, or several as {name: 0/1} or a list of names. Raises RowError."""
        name = self.label_field or ("labels" if "labels" in row and "label" not in row else "label")
        if name not in row:
            wanted = f"{name[:60]!r}" if self.label_field else "'label' or 'labels'"
            raise RowError(f"no field {wanted} (found: {field_names(row)}); --label_field names it")
        value = row[name]
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # a CSV cell that holds JSON
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise RowError(f"field {name!r} is {show(row[name])}: invalid JSON ({error})") from None
        if isinstance(value, list):
            for label in value:
                if not is_label(label):
                    raise RowError(
                        f"field {name!r} holds {show(label)}; expected names (strings or integers)"
                    )
            return [label_name(label, name) for label in value]
        if isinstance(value, dict):
            for label, applies in value.items():
                if applies not in (0, 1):
                    raise RowError(f"field {name!r}: {label!r} is {show(applies)}; expected 0 or 1")
            return {label_name(label, name): int(applies) for label, applies in value.items()}
        if not is_label(value) or value == "":
            raise RowError(
                f"field {name!r} is {show(value)}; expected one label (a string or an integer), "
                "or several (a list of names, or 0/1 for each name)"
            )
        return label_name(value, name)


def label_name(label: str | int, field: str) -> str:
    """A label as text. Raises RowError for one that no file and no log can hold."""
    if half_pair(str(label)):
        raise RowError(f"field {field!r}: a label's {half_pair(str(label))}")
    return str(label)


def field_names(row: dict) -> str:
    """The names of a row's fields as a message lists them."""
    names = [name if len(name) <= 60 else f"{name[:57]}..." for name in list(map(str, row))[:MOST_NAMED]]
    return ", ".join(names) + f" and {len(row) - MOST_NAMED} more" * (len(row) > MOST_NAMED) or "none"


def half_pair(text: str) -> str:
    """What is no Unicode in a text, in words; "" for nothing. JSON's escapes can say it, no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"character {error.start + 1} is {text[error.start]!a}, half of a surrogate pair"
        return f"{half}; expected Unicode text"
    return ""


def is_label(value: object) -> bool:
    """A label is a string or an integer; true and false are neither."""
    return isinstance(value, str | int) and not isinstance(value, bool)


def show(value: object) -> str:
    """A value as a message shows it: JSON, cut at 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        return "lists or objects inside one another without end"
    return text if len(text) <= 60 else text[:57] + "..."


def is_too_deep(value: object) -> bool:
    """Whether lists and objects stand in one another more than MOST_LEVELS deep."""
    level = [value]
    for _ in range(MOST_LEVELS):
        parts = [part.values() if isinstance(part, dict) else part for part in level]
        level = [own for part in parts for own in part if isinstance(own, dict | list)]
        if not level:
            return False
    return True


class BadRows:
    """Collects the complaints of one file, so that they are reported together."""

    def __init__(self, path: str | Path):
        self.path, self.count, self.first = path, 0, []

    def add(self, line: int, message: str) -> None:
        self.count += 1
        insort(self.first, (line, message))  # a window's unreadable rows come before its others
        del self.first[MOST_REPORTED:]

    def raise_if_any(self) -> None:
        """Raise UserError with the first MOST_REPORTED complaints."""
        if self.count:
            more = f"\n  ... and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
            rows = "1 bad row" if self.count == 1 else f"{self.count} bad rows"
            told = "\n".join(f"  line {line}: {message}" for line, message in self.first)
            raise UserError(f"{self.path}: {rows}:\n{told}{more}")


def read_rows(path: str | Path, bad: BadRows, flag: str, form: str = "") -> Iterator[tuple[int, dict]]:
    """Stream (line, row) from a JSON, JSONL, CSV or TSV file; "-" is standard input.

    Args:    bad: takes the rows that cannot be read, with their line | flag: named in errors |
             form: json, jsonl, csv or tsv; "" goes by the file's ending (standard input: jsonl).
    Raises:  UserError when the file is missing, empty of rows, not UTF-8, or of an unknown ending.
    Cost:    one line in memory at a time; a .json file whole. Its line is the row's number, from 1.
    """
    name = str(path)
    form = form or ("jsonl" if name == "-" else Path(name).suffix.lstrip(".").lower())
    if name != "-" and Path(name).is_dir():
        raise UserError(f"{flag} {name}: is a folder; expected a .json, .jsonl, .csv or .tsv file")
    readers = {"jsonl": jsonl_rows, "ndjson": jsonl_rows, "json": json_rows, "csv": csv_rows, "tsv": tsv_rows}
    if form not in readers:
        raise UserError(f"{flag} {name}: unknown ending {form!r}: expected .json, .jsonl, .csv or .tsv")
    found = False
    try:
        if name == "-":
            sys.stdin.reconfigure(encoding="utf-8-sig")
            source = sys.stdin
        else:
            source = open(path, encoding="utf-8-sig", newline="" if form in ("csv", "tsv") else None)  # noqa: SIM115
        with source:
            for line, row in readers[form](source):
                found = True
                if isinstance(row, RowError):
                    bad.add(line, str(row))
                elif not isinstance(row, dict):
                    bad.add(line, f"the row is {show(row)}; expected an object")
                elif is_too_deep(row):
                    bad.add(line, f"lists or objects more than {MOST_LEVELS} deep in one another")
                else:
                    yield line, row
    except FileNotFoundError:
        raise UserError(f"{flag} {name}: no such file") from None
    except PermissionError:
        raise UserError(f"{flag} {name}: cannot be read: permission denied") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {name}: not UTF-8 text (byte {error.object[error.start]:#04x})") from None
    except OSError as error:
        raise UserError(
            f"{flag} {name[:200]}: cannot be read: {os.strerror(error.errno or errno.EIO)}"
        ) from None
    if not found:
        raise UserError(f"{flag} {name}: has no rows")


def jsonl_rows(source: Iterable[str]) -> Iterator[tuple[int, object]]:
    """One JSON value a line; empty lines are passed over."""
    for line, text in enumerate(source, 1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError) as error:
                yield line, RowError(f"invalid JSON: {error}")


def json_rows(source: TextIO) -> Iterator[tuple[int, object]]:
    """A JSON array of objects; a file that holds one object a line instead is read as JSONL."""
    first, head = [], ""
    while not head and (text := source.readline()):
        first.append(text)
        head = text.strip()[:1]
    if head == "{":
        yield from jsonl_rows(chain(first, source))
        return
    try:
        rows = json.loads("".join(first) + source.read())
    except (ValueError, RecursionError) as error:
        yield getattr(error, "lineno", 1), RowError(f"invalid JSON: {error}")
        return
    yield from enumerate(rows if isinstance(rows, list) else [rows], 1)


def csv_rows(source: TextIO, delimiter: str = ",") -> Iterator[tuple[int, object]]:
    """Rows of a CSV file with a header line; line is where the row ends."""
    reader = csv.DictReader(source, delimiter=delimiter, restkey="", strict=True)
    try:
        for row in reader:
            if "" in row and isinstance(row[""], list):
                yield reader.line_num, RowError(f"{len(row[''])} cells more than the header has")
            elif None in row.values():
                yield reader.line_num, RowError("fewer cells than the header has")
            else:
                yield reader.line_num, row
    except csv.Error as error:
        yield reader.reader.line_num, RowError(f"invalid CSV: {error}")  # DictReader's own is a row behind


def tsv_rows(source: TextIO) -> Iterator[tuple[int, object]]:
    """As csv_rows, with tabs."""
    return csv_rows(source, delimiter="\t")


def file_sha256(path: str | Path) -> str:
    """The hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sort_names(names: Iterable[str]) -> list[str]:
    """Label names in the order of their class index: by number where all are integers, else by text."""
    names = list(names)
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def read_class_weights(source: str, label_names: list[str]) -> list[float] | None:
    """The weights in a --class_weights FILE, {name: weight} as JSON, in the order of label_names.

    Returns: None when source is none, balanced or effective: those are computed.
    Raises:  UserError when the file is missing or does not hold one positive number for each name.
    """
    if source in ("none", "balanced", "effective"):
        return None
    flag = f"--class_weights {source}"
    try:
        given = json.loads(Path(source).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{flag}: expected none, balanced, effective or a JSON file of {{name: weight}}: {error}"
        ) from None
    if not isinstance(given, dict):
        raise UserError(f"{flag}: is {show(given)}; expected {{name: weight}}")
    odd = sorted(set(given) ^ set(label_names))
    if odd:
        where = "missing in the file" if odd[0] in label_names else "not a label of the training rows"
        raise UserError(
            f"{flag}: {odd[0]!r} is {where}; expected a weight for each of {', '.join(label_names[:30])}"
        )
    for name, value in given.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < sys.float_info.max
        ):
            raise UserError(f"{flag}: the weight of {name!r} is {show(value)}; expected a number above 0")
    return [float(given[name]) for name in label_names]
