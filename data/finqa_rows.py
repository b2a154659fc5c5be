"""FinQA's files as rows: read, checked, and prepared as a question, its context, and a program that executes."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from core.errors import UserError
from core.rows import BadRows, read_rows, show
from data.amounts import agrees
from data.candidates import page_of
from data.programs import ProgramError, Table, format_program, parse_program, run_program

Problems = list[tuple[str, str]]  # (id of the row, what is wrong with it: "kind: detail")


# Reading


def read_finqa(path: str | Path, flag: str = "--input") -> list[dict]:
    """The rows of a file, published or flat, as they are; a row without an id gets file:line.

    Raises:  UserError when the file is missing, is no JSON or JSONL, or has no rows.
    """
    bad = BadRows(path)
    rows = [
        row | {"id": str(row.get("id") or f"{Path(path).name}:{line}")}
        for line, row in read_rows(path, bad, flag)
    ]
    if not rows:
        bad.raise_if_any()
    for line, message in bad.first:
        print(f"{path}: line {line}: {message}: left out")
    if bad.count > len(bad.first):
        print(f"{path}: ... and {bad.count - len(bad.first)} more lines: left out")
    return rows


def is_flat(row: dict) -> bool:
    """Whether a row has a flat context and no qa."""
    return "qa" not in row and "context" in row


def context_table(context: str) -> list[list[str]]:
    """The table of a flat context: its lines with ` | `; a line that begins with it has an empty first cell."""
    lines = [line for line in context.split("\n") if " | " in f" {line} "]
    return [[cell.strip() for cell in f" {line} ".split(" | ")] for line in lines]


def read_row(row: dict) -> dict:
    """A row's question, answer, exe_ans, program (steps) and table. Raises ProgramError: "kind: detail"."""
    fields = row.get("qa", row) if isinstance(row.get("qa", row), dict) else {}
    missing = [name for name in ("question", "program") if not str(fields.get(name) or "").strip()]
    if not is_flat(row):
        missing += [
            name for name in ("pre_text", "post_text", "table") if not isinstance(row.get(name), list)
        ]
    if fields.get("answer") in ("", None) and fields.get("exe_ans") in ("", None):
        missing.append("answer")
    if missing:
        raise ProgramError(f"missing field: {', '.join(missing)}")
    texts = {"question": fields["question"]} | ({"context": row["context"]} if is_flat(row) else {})
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ProgramError(f"missing field: {name} is {show(value)}, expected a string")
    table = context_table(row["context"]) if is_flat(row) else row["table"]
    if not all(isinstance(line, list) for line in table):
        raise ProgramError("missing field: table is no list of lists")
    try:
        program = parse_program(fields["program"])
    except (ProgramError, TypeError) as error:
        raise ProgramError(f"program cannot be read: {error}") from None
    answer = "" if fields.get("answer") is None else str(fields["answer"]).strip()
    return {
        "question": fields["question"].strip(),
        "answer": answer or str(fields["exe_ans"]),
        "exe_ans": fields.get("exe_ans"),
        "program": program,
        "table": [["" if cell is None else str(cell) for cell in line] for line in table],
    }


def execute_row(found: dict) -> float | str:
    """The value of read_row's program. Raises ProgramError where it does not execute or disagrees."""
    try:
        value = run_program(found["program"], found["table"])
    except ProgramError as error:
        raise ProgramError(f"program does not execute: {error}") from None
    if found["exe_ans"] not in ("", None) and not agrees(value, found["exe_ans"]):
        raise ProgramError(f"program disagrees with exe_ans: gives {value}, exe_ans is {found['exe_ans']}")
    if not agrees(value, found["answer"]):
        raise ProgramError(f"program disagrees with answer: gives {value}, answer is {found['answer']!r}")
    return value


# Steps


def check_rows(rows: Iterable[dict]) -> dict:
    """What is in a file and what is wrong with it.

    Returns: rows, pages, usable (read, executed and agreeing), form, operations and num_steps (counts) |
             problems: kind -> [{id, found}].
    """
    rows = list(rows)
    operations, lengths, problems, usable = Counter(), Counter(), {}, 0
    ids = Counter(str(row.get("id")) for row in rows)
    for row in rows:
        try:
            found = read_row(row)
            operations.update(step.operation for step in found["program"])
            lengths[len(found["program"])] += 1
            execute_row(found)
            usable += 1
        except ProgramError as error:
            kind, _, detail = str(error).partition(": ")
            problems.setdefault(kind, []).append({"id": str(row.get("id")), "found": detail})
    twice = [{"id": name, "found": f"{n} rows"} for name, n in ids.items() if n > 1]
    return {
        "rows": len(rows),
        "pages": len({page_of(row) for row in rows}),
        "usable": usable,
        "form": dict(Counter("flat" if is_flat(row) else "published" for row in rows)),
        "num_steps": dict(sorted(lengths.items())),
        "operations": dict(operations.most_common()),
        "problems": problems | ({"id used twice": twice} if twice else {}),
    }


def page_context(row: dict, table: Table) -> str:
    """The whole page: the text before the table, the table a line a row, the text behind it."""
    lines = [str(line) for line in row["pre_text"]]
    lines += [" | ".join(cells) for cells in table]
    return tidy(lines + [str(line) for line in row["post_text"]])


def gold_context(row: dict) -> str:
    """The evidence sentences, in the order of the page: text before the table, table, text behind it."""
    found = row["qa"].get("gold_inds")
    if not found or not isinstance(found, dict):
        raise ProgramError(f"no gold evidence: gold_inds is {show(found)}")
    before = len(row["pre_text"])

    def place(name: str) -> tuple[int, int]:
        kind, _, index = name.rpartition("_")
        index = int(index) if index.isdecimal() else 0
        return (1 if kind == "table" else 0 if index < before else 2), index

    return tidy(str(found[name]) for name in sorted(found, key=place))


def tidy(lines: Iterable[str]) -> str:
    """The lines that hold a word or a number, joined."""
    return "\n".join(line.strip() for line in lines if any(c.isalnum() for c in line))


def prepare_rows(
    rows: Iterable[dict], context: str = "page", exclude: Iterable[dict] = ()
) -> tuple[list[dict], Problems]:
    """One row a question, and the rows left out with the reason.

    Args:    context: "page" or "gold" | exclude: rows whose pages are not to occur.
    Raises:  UserError for context "gold" with flat rows, which do not say what their evidence is.
    """
    pages = {page_of(row) for row in exclude}
    made, problems = [], []
    for row in rows:
        if context == "gold" and is_flat(row):
            raise UserError(
                f"--context gold: row {row.get('id')} has a flat context, which does not mark the evidence; "
                "use --context page, or a file with gold_inds"
            )
        try:
            if page_of(row) in pages:
                raise ProgramError(f"excluded page: {page_of(row)}")
            found = read_row(row)
            value = execute_row(found)
            text = gold_context(row) if context == "gold" else None
            if text is None:
                text = tidy(row["context"].split("\n")) if is_flat(row) else page_context(row, found["table"])
        except ProgramError as error:
            problems.append((str(row.get("id")), str(error)))
            continue
        program = found["program"]
        made.append(
            {"id": str(row.get("id")), "question": found["question"], "context": text}
            | {"answer": found["answer"], "value": value, "program": format_program(program)}
            | {"num_steps": len(program), "table": found["table"]}
        )
    return made, problems
