"""Findings of a static analyser for infrastructure as code: rows in, rows with a full prompt out.

    python -m data.iac --input train.jsonl dev.jsonl --output_dir rows/iac
    python -m data.iac --input train.jsonl --output_dir rows/iac --fields smell,content --context_lines 3

Then train on the files of rows/iac with --text_field with_prompt, or with --text_field content.

A row has `smell`, `file`, `content` (the flagged line), `line` (its number) and `with_context` (the lines around
it); `label` (TP: the finding is real, FP: it is not) is passed on where there is one. Each input becomes a JSONL
file of the same name, its rows with all they had and

    smell        one spelling for each known smell: "Use of HTTP without SSL/TLS" and sec_https are use_of_http
    content      what --fields says: the flagged line alone, or several fields as lines of `name: value`
    code         with_context in one layout: no headers, line numbers, markers or indents; the flagged line
                 begins with `-->`
    with_prompt  the question as one would put it to a code model: the smell, what it means, file, code, answers

Analysers and data sets write with_context in many ways. The flagged line is the one that is numbered `line`,
that carries a marker (`>>>`, `=>`, `<-- here`, a tag around it, ...) or that reads as `content`; a line that reads
as `content` goes before one that does not. Where none is found, `content` is added at the end as the flagged
line. Indents are dropped because such rows often kept them on some lines only: code then reads the same in every
layout. --keep_indent drops only what all lines have in common.
"""

import json
import re
from collections import Counter
from pathlib import Path
from statistics import median

from core.errors import UserError, run_main
from core.flags import Parser, number
from core.results_table import format_table
from core.rows import BadRows, RowError, RowFormat, field_names, is_label, read_rows, show
from data.docstrings import write_folder
from data.iac_context import FLAG, WAYS, mark_context
from data.iac_names import SMELLS, find_technology, normalise_smell, separated

FIELDS = ("smell", "technology", "file", "content", "code")


def build_prompt(row: dict, technology: str, meaning: str) -> str:
    """The question for a row with `smell`, `file` and `code`; what decides stands at both ends, the code between."""
    smell = row["smell"].replace("_", " ")
    name = re.split(r"[/\\]", row["file"].strip().rstrip("/\\"))[-1]
    return (
        f"A static analyser for {technology} code reports a finding. Decide whether it is real.\n"
        f"Smell: {smell}. {meaning}\n"
        f"File: {name}\n"
        f"Code (the flagged line begins with {FLAG.strip()}):\n{row['code']}\n"
        f"Question: is the flagged line really a case of {smell}?\n"
        "Answer TP if it is, or FP if the analyser is mistaken.\n"
        "Answer:"
    )


def check_row(row: dict) -> dict:
    """The row with `line` as an integer and `with_context` as a string. Raises RowError."""
    for name in ("smell", "file", "content", "line", "with_context"):
        if name not in row:
            raise RowError(f"no field {name!r} (found: {field_names(row)})")
        if (name != "line" and row[name] not in ("", None)) or name in ("smell", "content"):
            RowFormat(text_field=name).text(row)  # raises where it is no text
    if not separated(row["smell"]):
        raise RowError(f"field 'smell' is {show(row['smell'])}; expected a name")
    line = str(row["line"]).strip().removesuffix(".0")
    if not re.fullmatch(r"-?\d{1,9}", line):
        raise RowError(f"field 'line' is {show(row['line'])}; expected a whole number")
    if row.get("label") is not None and not is_label(row["label"]):
        raise RowError(f"field 'label' is {show(row['label'])}; expected TP or FP")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise RowError("holds half of a surrogate pair; expected Unicode text") from None
    return row | {"line": int(line), "file": row["file"] or "", "with_context": row["with_context"] or ""}


def add_fields(
    row: dict,
    fields: list[str],
    meanings: dict[str, str],
    context_lines: int | None = None,
    keep_indent: bool = False,
) -> tuple[dict, str]:
    """The row with `smell` in one spelling, `content` of `fields`, `code` and `with_prompt`; which of WAYS it was."""
    row = row | {"smell": normalise_smell(row["smell"]), "content": row["content"].strip()}
    row["code"], way = mark_context(
        row["with_context"], row["line"], row["content"], context_lines, keep_indent
    )
    technology = find_technology(row["file"])
    neutral = f"The analyser calls this {row['smell'].replace('_', ' ')}."
    prompt = build_prompt(row, technology, meanings.get(row["smell"], neutral))
    values = row | {"technology": technology}
    if len(fields) == 1:
        content = values[fields[0]]
    else:
        content = "\n".join(f"{name}: {values[name]}" for name in fields)
    return row | {"content": content, "with_prompt": prompt}, way


def read_findings(paths: list[str]) -> dict[str, list[dict]]:
    """The checked rows of each file, by the name it will have. Raises UserError for all bad rows together."""
    rows, wrong = {}, []
    for path in paths:
        bad, name = BadRows(path), Path(path).stem
        if name in rows:
            raise UserError(
                f"--input {path}: a second file named {name}; each becomes {name}.jsonl in --output_dir"
            )
        rows[name] = []
        for line, row in read_rows(path, bad, "--input"):
            try:
                rows[name].append(check_row(row))
            except RowError as error:
                bad.add(line, str(error))
        try:
            bad.raise_if_any()
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError("\n".join(wrong))
    return rows


def summarise(rows: list[dict], ways: list[str]) -> dict:
    """Counts of labels for each smell, of the ways the flagged lines were found, and median lengths in characters."""
    labels = Counter((row["smell"], str(row.get("label") or "no label")) for row in rows)
    smells = sorted({smell for smell, _ in labels})
    return {
        "rows": len(rows),
        "labels": {
            s: {label: n for (smell, label), n in sorted(labels.items()) if smell == s} for s in smells
        },
        "found_by": {way: ways.count(way) for way in WAYS},
        "median_characters": {
            n: int(median(len(r[n]) for r in rows)) for n in ("content", "code", "with_prompt")
        },
    }


def print_summary(summaries: dict[str, dict]) -> None:
    """The summaries of all files as three tables: labels by smell, flagged lines by file, lengths by file."""
    smells: dict[str, Counter] = {}
    for summary in summaries.values():
        for smell, labels in summary["labels"].items():
            smells.setdefault(smell, Counter()).update(labels)
    labels = sorted({label for counts in smells.values() for label in counts})
    by_smell = [(s, counts | {"rows": counts.total()}) for s, counts in sorted(smells.items())]
    print(format_table(by_smell, ["rows", *labels]))
    unknown = [smell for smell in smells if smell not in SMELLS]
    if unknown:
        print(f"not known, so their prompts give no meaning: {', '.join(sorted(unknown))}")
    print("\nflagged line found by")
    print(format_table([(name, s["found_by"]) for name, s in summaries.items()], list(WAYS)))
    print("\nmedian length in characters")
    print(
        format_table(
            [(n, s["median_characters"]) for n, s in summaries.items()], ["content", "code", "with_prompt"]
        )
    )


def main(argv: list[str] | None = None) -> dict:
    """Write the rows of each input; returns what the last line of the output says."""
    parser = Parser("Write a static analyser's findings as rows with a full prompt.")
    parser.prog = "python -m data.iac"
    help_text = "files of findings: .jsonl, .json, .csv or .tsv"
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help=help_text)
    help_text = "folder to write to; a file of the same name an input"
    parser.add_argument("--output_dir", required=True, metavar="DIR", help=help_text)
    fields_help = f"what `content` becomes: one or more of {', '.join(FIELDS)}, with commas; default content"
    parser.add_argument("--fields", default="content", help=fields_help)
    lines_help = "lines of code to keep before and behind the flagged one; default all"
    parser.add_argument("--context_lines", type=number(int, 0), help=lines_help)
    parser.add_argument(
        "--keep_indent", action="store_true", help="drop only the indent that all lines share"
    )
    args = parser.parse_args(argv)

    fields = [field.strip() for field in args.fields.split(",")]
    if odd := [field for field in fields if field not in FIELDS]:
        raise UserError(f"--fields {args.fields}: {odd[0]!r} is none of {', '.join(FIELDS)}")
    output_dir = Path(args.output_dir)
    for path in args.input:
        if (output_dir / f"{Path(path).stem}.jsonl").resolve() == Path(path).resolve():
            raise UserError(f"--output_dir {output_dir}: {path} would be written over; give another folder")

    meanings = {smell: meaning for smell, (_, meaning) in SMELLS.items()}
    rows, summaries = {}, {}
    for name, found in read_findings(args.input).items():
        made = [add_fields(row, fields, meanings, args.context_lines, args.keep_indent) for row in found]
        rows[name] = [row for row, _ in made]
        summaries[name] = summarise(rows[name], [way for _, way in made])
    write_folder(output_dir, rows, {"fields": fields, "files": summaries})
    print_summary(summaries)
    counts = {name: len(found) for name, found in rows.items()}
    found_by = {way: sum(summary["found_by"][way] for summary in summaries.values()) for way in WAYS}
    result = {"output_dir": str(output_dir), "rows": counts, "found_by": found_by}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    run_main(main)
