"""A filled-in table of an audit taken back: verdicts read and checked, and the training rows as they are after them.

Verdicts: keep, drop, fix (what is suggested), fix/LABEL, with several labels fix/A, B or fix/["A", "B"]; an empty one,
or a row that is not there, leaves the row as it was.
"""

import json
from pathlib import Path

import numpy as np

from core.cache import LabelColumn
from core.errors import UserError
from core.rows import BadRows, RowError, RowFormat, file_sha256, read_rows, show
from core.spent import read_uses, row_hash
from core.stored import ANY, ROW_FORMAT, check_shape, read_json
from jobs.audit_table import LONGEST_CELL

SUMMARY = {
    "train_data": str,
    "sha256": str,
    "label_names": [str],
    "multi_label": bool,
    "row_format": ROW_FORMAT,
}
SUMMARY |= {ANY: ANY}
ASKED = {"row": int, "text": str, "pair": str, ANY: ANY}  # a row of audit.jsonl

# -- read -------------------------------------------------------------------------------------------------------


def has_verdicts(folder: Path) -> bool:
    """Whether somebody has filled in a table of this folder, or saved it in a form that is not ours any more."""
    for path in (folder / "audit.csv", folder / "audit.jsonl"):
        if not path.is_file() or len(path.read_bytes().splitlines()) < (path.suffix == ".csv") + 1:
            continue  # no rows
        bad = BadRows(path)
        rows = read_rows(path, bad, "--output_dir")
        if any(str(row.get("verdict", "?") or "").strip() for _, row in rows) or bad.count:
            return True
    return False


def read_audit(folder: Path) -> tuple[dict, dict[int, dict]]:
    """summary.json and the rows of audit.jsonl by their number. Raises UserError when the folder holds no audit."""
    try:
        summary = read_json(folder / "summary.json", SUMMARY)
        lines = (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [
            check_shape(json.loads(line), ASKED, f"{folder}/audit.jsonl, line {k}")
            for k, line in enumerate(lines, 1)
        ]
        return summary, {row["row"]: row for row in rows}
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(
            f"{folder}: holds no audit ({error}); --output_dir names the folder that jobs.audit wrote"
        ) from None


def read_verdicts(
    path: str, asked: dict[int, dict], names: list[str], multi_label: bool
) -> dict[int, object]:
    """The labels by row number that a filled-in table decides on: those to be given, or None to drop the row.

    Args:    asked: the rows of the audit by their number | names: of the labels that there are.
    Raises:  UserError with all bad rows: unknown verdicts, labels, row numbers, texts beside another row's number.
    """
    bad, decided, seen = BadRows(path), {}, set()
    for line, row in read_rows(path, bad, "--apply"):
        try:
            number = row_number(row, asked)
            if number in seen:
                raise RowError(f"row {number} is there twice; expected one verdict a row")
            seen.add(number)
            check_texts(row, asked[number])
            verdict = str(row.get("verdict") or "").strip()
            word, slash, rest = (part.strip() for part in verdict.partition("/"))
            word = word.lower()
            if word == "drop" and not slash:
                decided[number] = None
            elif word == "fix" and not slash and asked[number]["suggested"] is not None:
                decided[number] = asked[number]["suggested"]
            elif word == "fix" and slash:
                decided[number] = parse_labels(rest, names, multi_label)
            elif word == "keep" and not slash:
                decided[number] = asked[number]["given"]
            elif verdict:
                raise RowError(
                    f"verdict is {show(verdict)}; expected keep, drop, fix (the suggestion) or fix/LABEL"
                )
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    return decided


def row_number(row: dict, asked: dict[int, dict]) -> int:
    """The number of an audited row. Raises RowError."""
    try:
        number = int(str(row["row"]))
    except (KeyError, ValueError):
        raise RowError(
            f"field 'row' is {show(row.get('row'))}; expected the row's number in the audit"
        ) from None
    if number not in asked:
        raise RowError(f"row {number} is none of the audit's; is this another audit's table?")
    return number


def check_texts(row: dict, asked: dict) -> None:
    """Raise RowError when a text stands beside the number of another row: somebody sorted one column alone."""
    for name in ("text", "pair"):
        if name in row and name in asked:
            found = str(row[name]).removeprefix("'").split()
            whole = asked[name].removeprefix("'")
            if found not in (whole.split(), whole[:LONGEST_CELL].split()):
                raise RowError(
                    f"field {name!r} is {show(row[name])}; row {asked['row']} is {show(asked[name])}"
                )


def parse_labels(text: str, names: list[str], multi_label: bool) -> str | list[str]:
    """The labels behind fix/. Raises RowError for one that there is not."""
    found = [text]
    if multi_label and text not in names:
        try:
            found = json.loads(text) if text.startswith("[") else [part.strip() for part in text.split(",")]
        except ValueError as error:
            raise RowError(f"verdict fix/{text}: invalid JSON ({error})") from None
        found = [str(name) for name in found if name != ""]
    odd = [name for name in found if name not in names]
    if odd:
        there = ", ".join(names[:30])
        raise RowError(f"verdict fix/{text}: there is no label {show(odd[0])}; there are {there}")
    return found if multi_label else found[0]


# -- applied ----------------------------------------------------------------------------------------------------


def apply_verdicts(path: str, folder: Path) -> tuple[list[dict], dict]:
    """The training rows after a filled-in table, and what was done to how many.

    A row that is a test row, by its text, is left out whatever its verdict.
    Raises: UserError when the rows have changed since the audit, or for bad verdicts.
    """
    summary, asked = read_audit(folder)
    source, row_format = summary["train_data"], RowFormat(**summary["row_format"])
    if not Path(source).is_file() or file_sha256(source) != summary["sha256"]:
        raise UserError(
            f"{folder}: is an audit of {source}, which is not there or has changed since; audit it again"
        )
    decided = read_verdicts(path, asked, summary["label_names"], summary["multi_label"])
    rows = [row for _, row in read_rows(source, BadRows(source), "--train_data")]
    try:
        values, kind = label_values(rows, row_format)
        hashes = [row_hash(*row_format.text(row)) for row in rows]
    except RowError as error:
        raise UserError(f"{folder}/summary.json: reads other columns than {source} has: {error}") from None
    test = set(read_uses(folder).get("test", np.zeros(0, np.uint64)).tolist())
    made, counts = [], dict.fromkeys(("kept", "fixed", "dropped", "dropped_test_rows", "undecided"), 0)
    for number, (row, value) in enumerate(zip(rows, hashes, strict=True), 1):
        if value in test:
            counts["dropped_test_rows"] += 1
            continue
        if number in decided:
            labels = decided[number]
            what = "dropped" if labels is None else "kept" if labels == asked[number]["given"] else "fixed"
            counts[what] += 1
            if what == "dropped":
                continue
            row = with_labels(row, labels, row_format, values, kind) if what == "fixed" else row
        elif number in asked:
            counts["undecided"] += 1
        made.append(row)
    if not made:
        raise UserError(f"--apply {path}: leaves no row of {source}")
    return made, counts


def label_field(row: dict, row_format: RowFormat) -> str:
    """The column of a row's labels, as RowFormat.labels finds it."""
    return row_format.label_field or ("labels" if "labels" in row and "label" not in row else "label")


def label_values(rows: list[dict], row_format: RowFormat) -> tuple[dict[str, object], str]:
    """Each label's name as the file writes it (an integer, say), and the kind of labels: one, list or dict."""
    values, kind = {}, LabelColumn()
    for row in rows:
        kind.add(row_format.labels(row))
        value = cell_value(row[label_field(row, row_format)])
        for own in value if isinstance(value, list | dict) else [value]:
            values.setdefault(str(own), own)
    return values, kind.kind


def cell_value(value: object) -> object:
    """Labels out of a row, or out of the JSON in a CSV's cell."""
    return json.loads(value) if isinstance(value, str) and value.lstrip()[:1] in ("[", "{") else value


def with_labels(
    row: dict, labels: str | list[str], row_format: RowFormat, values: dict[str, object], kind: str
) -> dict:
    """A row with other labels, written as the file writes them."""
    field = label_field(row, row_format)
    if kind == "one":
        return row | {field: values.get(labels, labels)}
    if kind == "list":
        made = [values.get(name, name) for name in labels]
    else:
        made = {name: int(str(name) in labels) for name in cell_value(row[field])}
    return row | {field: json.dumps(made, ensure_ascii=False) if isinstance(row[field], str) else made}
