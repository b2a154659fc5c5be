"""Rows for jobs.active: read with whatever labels they have, told apart by their texts, written whole.

n rows.
"""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import disk_errors
from core.files import write_text
from core.rows import BadRows, RowError, RowFormat, read_rows
from core.spent import row_hashes
from jobs.feedback import as_text

SHOWN = ("predicted", "probabilities", "wanted")  # columns that select adds, and take leaves out again
MOST_NAMED = 30  # labels that a message lists


@dataclass
class Rows:
    """Checked rows of one file."""

    path: str
    lines: list[int]  # n
    rows: list[dict]  # n, as read
    texts: list[str]
    pairs: list[str] | None  # of a format that has them
    hashes: np.ndarray  # (n,) uint64, of the texts

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, keep: np.ndarray) -> "Rows":
        """Some of the rows. keep: (n,) bool, or indices."""
        index = np.arange(len(self))[keep]
        lists = ([column[k] for k in index] for column in (self.lines, self.rows, self.texts))
        return Rows(self.path, *lists, self.pairs and [self.pairs[k] for k in index], self.hashes[index])

    @property
    def is_first(self) -> np.ndarray:
        """(n,) bool: no row before has the same text."""
        found = np.zeros(len(self), bool)
        found[np.unique(self.hashes, return_index=True)[1]] = True
        return found


def read_texts(path: str, flag: str, row_format: RowFormat) -> Rows:
    """The rows of a file, whatever their labels are. Raises UserError with all bad rows."""
    bad, lines, rows, texts, pairs = BadRows(path), [], [], [], []
    for line, row in read_rows(path, bad, flag):
        try:
            text, pair = row_format.text(row)
        except RowError as error:
            bad.add(line, str(error))
            continue
        lines.append(line)
        rows.append(row)
        texts.append(text)
        pairs.append(pair)
    bad.raise_if_any()
    seconds = pairs if row_format.pair_field else None
    return Rows(path, lines, rows, texts, seconds, row_hashes(texts, seconds))


def label_names_of(row_format: RowFormat) -> tuple[str, ...]:
    """The columns in which a row's labels can stand."""
    return (row_format.label_field,) if row_format.label_field else ("label", "labels")


def write_rows(path: str, rows: list[dict], flag: str) -> None:
    """Write rows, whole or not at all: .json, .jsonl, or .csv for a spreadsheet, whose nested cells hold JSON."""
    if Path(path).suffix.lower() == ".csv":
        out = io.StringIO(newline="")
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    k: json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v
                    for k, v in row.items()
                }
            )
        text = out.getvalue()
    else:
        text = as_text(rows, path)
    with disk_errors(path, flag):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), text)
