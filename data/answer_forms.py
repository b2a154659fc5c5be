"""What answers to rank look like in other people's files: pairs a line, marked solutions, or rows that are ready.

Which forms there are, and what becomes of odd lines, is said in data/answers.py.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from core.errors import UserError
from core.rows import BadRows, RowError, read_rows, show

NUM_SHOWN = 5  # row numbers of dropped rows, for each reason
FIELDS = {  # what each field is often called, in any case; --question_field and so on name another
    "question": ("question", "query", "question_text", "problem", "prompt"),
    "candidate": ("sentence", "candidate", "solution", "answer", "passage", "text", "response", "completion"),
    "label": ("label", "is_correct", "correct", "reward", "relevance", "is_answer", "passed"),
    "id": ("questionid", "question_id", "qid", "query_id"),
    "context": ("context",),
    "source": ("source", "model", "source_model"),
}
MARKS = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}
ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's notes for a calculator: 3*4=<<3*4=12>>12
Lines = list[tuple[int, dict]]  # line and row


class Candidate(NamedTuple):
    text: str
    reward: float
    source: str  # "" where the file names none


class Dropped:
    """Counts what was dropped, by reason; the first row numbers, and what was found in the first, are kept."""

    def __init__(self) -> None:
        self.reasons: dict[str, dict] = {}

    def add(self, line: int, reason: str, found: str = "") -> None:
        counted = self.reasons.setdefault(reason, {"rows": 0, "lines": [], "found": found})
        counted["rows"] += 1
        if len(counted["lines"]) < NUM_SHOWN:
            counted["lines"].append(line)


# Lines


def tab_rows(path: str) -> Iterator[tuple[int, dict | RowError]]:
    """Rows of a TSV file in which a quotation mark is a character like any other, as in WikiQA's own files.

    Only a cell that a spreadsheet has quoted, with each mark in it doubled, is unquoted.
    """
    names: list[str] = []
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for line, text in enumerate(file, 1):
            cells = [
                cell[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell
                for cell in text.rstrip("\r\n").split("\t")
            ]
            if not names:
                names = cells
            elif len(cells) != len(names) and text.strip():
                yield line, RowError(f"{len(cells)} cells, where the header has {len(names)}")
            elif text.strip():
                yield line, dict(zip(names, cells))


def read_lines(path: str, dropped: Dropped) -> Lines:
    """(line, row) of each row that can be read at all; the others are dropped.

    Raises:  UserError when the file is missing, not UTF-8, of an unknown ending, or holds no row.
    """
    bad, found = BadRows(path), []
    if Path(path).suffix.lower() == ".tsv" and Path(path).is_file():
        try:
            for line, row in tab_rows(path):
                if isinstance(row, RowError):
                    dropped.add(line, "cannot be read", str(row))
                else:
                    found.append((line, row))
        except UnicodeDecodeError as error:
            raise UserError(
                f"--input {path}: not UTF-8 text (byte {error.object[error.start]:#04x})"
            ) from None
        except OSError as error:
            raise UserError(f"--input {path}: cannot be read: {error.strerror}") from None
    else:
        found = list(read_rows(path, bad, "--input"))
    for line, message in bad.first:
        dropped.add(line, "cannot be read", message)
    if bad.count > len(bad.first):  # only these are kept by number
        dropped.reasons["cannot be read"]["rows"] = bad.count
    if not found:
        told = "".join(f" ({why}: line {n['lines'][0]}: {n['found']})" for why, n in dropped.reasons.items())
        raise UserError(f"--input {path}: no row can be read{told}")
    return found


def marked_sources(row: dict, args: argparse.Namespace) -> dict[str, dict]:
    """The fields of a row that are each one model's marked solution: {"175b_finetuning": {"solution", ...}}."""

    def is_marked(value: object) -> bool:
        return isinstance(value, dict) and all(field_of(value, kind, args) for kind in ("candidate", "label"))

    return {name: value for name, value in row.items() if is_marked(value)}


def find_form(row: dict, args: argparse.Namespace) -> str:
    """rows, solutions or pairs, by what a row holds; "" when it is none of them."""
    if isinstance(row.get("candidates"), list) and "rewards" in row:
        return "rows"
    if isinstance(row.get("solutions"), list) or marked_sources(row, args):
        return "solutions"
    return "pairs" if all(field_of(row, kind, args) for kind in ("question", "candidate", "label")) else ""


def field_of(row: dict, kind: str, args: argparse.Namespace) -> str:
    """The column of a kind of FIELDS: the one that a flag names, else the first common name; "" for none."""
    given = getattr(args, f"{kind}_field")
    if given:
        return given if given in row else ""
    names = {name.lower(): name for name in reversed(row) if isinstance(name, str)}
    return next((names[name] for name in FIELDS[kind] if name in names), "")


def choose_form(lines: Lines, args: argparse.Namespace) -> tuple[str, dict]:
    """The form that --form gives, or that of the first row that has one, and the first such row.

    Raises:  UserError when no row has any, with --form auto.
    """
    wanted = (args.form,) if args.form != "auto" else ("rows", "solutions", "pairs")
    for _, row in lines:
        form = find_form(row, args)
        if form in wanted:
            return form, row
    if args.form != "auto":
        return args.form, lines[0][1]
    told = f"the columns of the first row are {', '.join(map(str, lines[0][1]))}"
    names = "--question_field, --candidate_field and --label_field"
    raise UserError(f"--input {args.input}: is none of {', '.join(wanted)}: {told}; {names} name them")


def found_fields(row: dict, form: str, args: argparse.Namespace) -> dict[str, str]:
    """The column of each kind of FIELDS in a row, or in its first solution."""
    solutions = row.get("solutions")
    inside = list(marked_sources(row, args).values()) + (solutions if isinstance(solutions, list) else [])
    places = [row, *(solution for solution in inside[:1] if isinstance(solution, dict))]
    kinds = FIELDS if form != "rows" else ()
    names = {
        kind: next(filter(None, (field_of(place, kind, args) for place in places)), "") for kind in kinds
    }
    return {kind: name for kind, name in names.items() if name}


# Parts of a row


def value_of(row: dict, kind: str, args: argparse.Namespace) -> object:
    """What stands in the column of a kind of FIELDS; None where there is none."""
    name = field_of(row, kind, args)
    return row[name] if name else None


def read_name(value: object) -> str:
    """An id or the name of a source as text; "" for anything that is none."""
    return str(value) if isinstance(value, str | int) else ""


def read_text(row: dict, kind: str, args: argparse.Namespace) -> str:
    """A field's text, stripped. Raises RowError(reason, found)."""
    name = field_of(row, kind, args)
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise RowError(
            f"no {kind}", f"field {name!r} is {show(value)}" if name else f"only {', '.join(map(str, row))}"
        )
    return plain(
        ANNOTATION.sub("", value).strip() if args.strip_annotations and kind == "candidate" else value.strip()
    )


def plain(text: str) -> str:
    """The text. Raises RowError where no tokenizer can take it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("not Unicode text", "half of a surrogate pair") from None
    return text


def read_reward(value: object, expected: str = "0 or 1") -> float:
    """A mark as a number: 0/1, true/false, yes/no, or any finite number. Raises RowError(reason, found)."""
    if isinstance(value, str):
        text = value.strip().lower()
        with contextlib.suppress(ValueError):
            value = MARKS[text] if text in MARKS else float(text)
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise RowError("no label", f"{show(value)} where {expected} is expected")
    return float(value)


def read_candidate(row: dict, args: argparse.Namespace, source: str = "") -> Candidate:
    """One candidate with its mark, 0 or 1. Raises RowError(reason, found)."""
    name = field_of(row, "label", args)
    text = read_text(row, "candidate", args)
    reward = read_reward(row.get(name))
    if not 0 <= reward <= 1:
        raise RowError("no label", f"field {name!r} is {show(row[name])}, where 0 or 1 is expected")
    return Candidate(text, reward, source or read_name(value_of(row, "source", args)))


# Forms: each gives (line, row with its candidates)


def from_pairs(lines: Lines, args: argparse.Namespace, dropped: Dropped) -> Iterator[tuple[int, dict]]:
    """One question and one candidate a line: gathered by question id, or by text where there is none."""
    groups: dict[tuple[str, str], dict] = {}
    for line, row in lines:
        try:
            question, candidate = read_text(row, "question", args), read_candidate(row, args)
            own = read_name(value_of(row, "id", args))
            key = ("id", own) if own else ("text", question)
            known = groups.setdefault(key, {"line": line, "id": own, "question": question, "candidates": []})
            if known["question"] != question:
                raise RowError("another question under the same id", f"{own}: {show(question)}")
            context = value_of(row, "context", args)
            if isinstance(context, str) and context.strip():
                known.setdefault("context", plain(context.strip()))
            known["candidates"].append(candidate)
        except RowError as error:
            dropped.add(line, *error.args)
    for group in groups.values():
        line = group.pop("line")
        yield line, {name: value for name, value in group.items() if name != "id" or value}


def from_solutions(lines: Lines, args: argparse.Namespace, dropped: Dropped) -> Iterator[tuple[int, dict]]:
    """A question and its marked solutions a line: a list, or one under each model's name."""
    for line, row in lines:
        try:
            made = {"question": read_text(row, "question", args)}
            context, own = value_of(row, "context", args), read_name(row.get("id"))
            if own:
                made = {"id": own} | made
            if isinstance(context, str) and context.strip():
                made["context"] = plain(context.strip())
            found: list = list(marked_sources(row, args).items())
            if isinstance(row.get("solutions"), list):
                found = [("", solution) for solution in row["solutions"]]
            made["candidates"] = []
        except RowError as error:
            dropped.add(line, *error.args)
            continue
        for source, solution in found:
            try:
                if not isinstance(solution, dict):
                    raise RowError("a solution is no object", show(solution))
                made["candidates"].append(read_candidate(solution, args, source))
            except RowError as error:
                dropped.add(line, *error.args)
        yield line, made


def from_rows(lines: Lines, args: argparse.Namespace, dropped: Dropped) -> Iterator[tuple[int, dict]]:
    """Rows in the ranking format, checked; fields of another name are kept."""
    for line, row in lines:
        try:
            read_text(row, "question", argparse.Namespace(**vars(args) | {"question_field": "question"}))
            texts, rewards = row.get("candidates"), row.get("rewards")
            sources = row.get("sources") or [""] * len(texts if isinstance(texts, list) else "")
            for name, values in (("candidates", texts), ("rewards", rewards), ("sources", sources)):
                if not isinstance(values, list):
                    raise RowError(f"{name} is no list", show(values))
                if len(values) != len(texts):
                    raise RowError(
                        f"{name} of another length", f"{len(values)} {name}, {len(texts)} candidates"
                    )
            if not isinstance(row.get("context") or "", str):
                raise RowError("context is no text", show(row["context"]))
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise RowError("an empty candidate", show(texts))
            if args.strip_annotations:
                texts = [ANNOTATION.sub("", text) for text in texts]
            rewards = [read_reward(value, "a number") for value in rewards]
            yield line, row | {"candidates": [*map(Candidate, map(plain, texts), rewards, map(str, sources))]}
        except RowError as error:
            dropped.add(line, *error.args)


FORMS = {"pairs": from_pairs, "solutions": from_solutions, "rows": from_rows}
