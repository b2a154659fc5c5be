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

import argparse
import json
import re
import textwrap
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from core.errors import UserError, run_main
from core.results_table import format_table
from core.rows import BadRows, RowError, RowFormat, is_label, read_rows, show
from data.docstrings import write_folder

FIELDS = ("smell", "technology", "file", "content", "code")
WAYS = ("number", "marker", "content", "not_found")
FLAG = "--> "
# 99 % of the lines of 1,548 real contexts have under 124 characters, one has 1,648 (counted 2026-11-20)
LONGEST_LINE, LONGEST_FLAGGED = 240, 480
PASSED_OVER = {"use", "usage", "usag", "using", "of", "a", "an", "the", "in", "for", "to", "sec", "smell"}


class Smell(NamedTuple):
    spellings: str  # a pattern that `reduced` names match as a whole
    meaning: str


# Spellings: those of GLITCH (github.com/sr-lab/GLITCH, glitch/analysis/rules.py), of SLIC, and of scripts that read
# their reports, found by a search of public code on 2026-11-20
SMELLS = {
    "hard_coded_secret": Smell(
        r"(hard|hard_?coded?|plain_?text|embedded)_(\w+_)?(secr|pass|pwd|user|uname|cred|token|key|login)\w*"
        r"|(secrets?|passwords?|user_?names?|credentials?|tokens?|keys?)_hard_?coded?",
        "A user name, password, key or token is written into the code as a literal value, so that whoever reads "
        "the code knows it.",
    ),
    "suspicious_comment": Smell(
        r"susp\w*_comm\w*",
        "A comment tells of a defect, a missing feature or a weakness that an attacker could use.",
    ),
    "use_of_http": Smell(
        r"((insecure|plain|unencrypted|clear_?text)_)?https?"
        r"(_(with_?out|no|not|instead|only|protocol|connection|url|ssl|tls)(_\w+)?)?"
        r"|(without|no|missing)_(ssl|tls|https)(_\w+)?",
        "Something is fetched or served over plain HTTP, without TLS, so that it can be read or changed on its way.",
    ),
    "weak_cryptography_algorithms": Smell(
        r"(weak|insecure|broken)_(crypt|cipher|hash|encrypt|algo)\w*|(md_?5|sha_?1)(_(or_)?(md_?5|sha_?1))?",
        "A broken or weak algorithm such as MD5, SHA-1, DES or RC4 protects something that matters.",
    ),
    "admin_by_default": Smell(
        r"(admin|root)\w*_(by_)?default\w*|(def|default|dflt)_(admin|admn|root)\w*",
        "A user or a service gets administrator rights by default, which is more than it needs.",
    ),
    "empty_password": Smell(
        r"(empty|empt|blank|null)_(pass|pwd)\w*|(pass|pwd)\w*_(is_)?(empty|blank|null)",
        "A password is set to an empty string, so that anybody can log in.",
    ),
    "invalid_ip_binding": Smell(
        r"(invalid|improper|unrestricted|unsafe|insecure|open)_(ip|bind)\w*|bind|bind(ing)?_(all|any|unrestricted|0)\w*",
        "A service binds to 0.0.0.0 or another unrestricted address, so that every network reaches it.",
    ),
    "no_integrity_check": Smell(
        r"(no|missing|without|lack)_(int|integ\w*)(_(check|verif|valid)\w*)?|source_integrity|(no|missing)_checksums?",
        "A file is downloaded and used without a checksum or a signature that shows it is unchanged.",
    ),
    "missing_default_case": Smell(
        r"(no|missing|miss)_(default|dflt)(_(case|switch|branch|selector|statement)\w*)?"
        r"|case_(statement_)?without_default|missing_case_default",
        "A case or a selector has no default branch, so that an unexpected value is not handled.",
    ),
}
TECHNOLOGIES = [  # by ending, then by what the whole name holds
    (r"\.pp$", "Puppet"),
    (r"\.e?rb$", "Chef"),
    (r"\.tf(vars)?$", "Terraform"),
    (r"\.py$", "Python"),
    (r"dockerfile", "Docker"),
    (r"\.ya?ml$|\.j2$|ansible|playbook", "Ansible"),
    (r"puppet|manifests", "Puppet"),
    (r"chef|cookbook|recipes", "Chef"),
]

# How a line may be numbered and marked. A weak mark is code in Puppet, Ruby or YAML too: it counts only where the
# rest of the line reads as `content`.
STRONG = re.compile(
    r"\s*(?:>>+|[-=]{2,}>|\*\*+|!!+|[\u2192\u25b6\u27a4]|\[(?:flagged|target|here|x)\]|flagged:)(?=.*\S)",
    re.I,
)
WEAK = re.compile(r"\s*(?:>|[-=]>|\*|!)(?=.*\S)")
NUMBER = re.compile(
    r"\s*(?:line |l)?[\[(]?(\d{1,7})[\])]?(?:[:.)](?!\d)|-(?!\d)|\s*[>*!=]*\||(?=\s*[>*!=])|\s|$) ?", re.I
)
TAIL = re.compile(
    r"(?<=\S)\s+(?:(?:#|//)\s*(?:<[-=<]+[\s\w]*|flagged|target|finding)|<(?:--+|==+|<<+)[\s\w]*)[\s!*.]*$",
    re.I,
)
TAGS = re.compile(r"\s*(?:<(mark|flagged|flag|target|line|smell|finding|b)>(.+)</\1>|\*\*(.+)\*\*)\s*$", re.I)
FENCE = re.compile(r"\s*(?:```.*|~~~.*|</?(?:code|context|snippet|pre)>)?\s*$", re.I)
HEADER = re.compile(r"\s*(?:#|//|--|==|;)[#/=;\s-]*(?:\w+ )?(?:file|path|file ?name)\s*:", re.I)


# Names


def separated(name: str) -> str:
    """A name in lower case with underscores, of camelCase, dashes, slashes and spaces."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def reduced(name: str) -> str:
    """A smell's name as in `separated`, without a code (CWE-798), a description behind it, and words of no weight."""
    name = re.sub(r"^\W*(?:(?:security|cwe.?\d+)\W+)+", "", name.strip(), flags=re.I)
    name = re.split(r":::|\s[-\u2013|:]\s|:\s|[(\[]", name)[0]
    return "_".join(word for word in separated(name).split("_") if word not in PASSED_OVER)


def normalise_smell(name: str) -> str:
    """The smell's one spelling; one that SMELLS does not know keeps its own, as in `separated`."""
    key = reduced(name)
    known = (smell for smell, (spellings, _) in SMELLS.items() if re.fullmatch(spellings, key))
    return next(known, separated(name))


def find_technology(file: str) -> str:
    """What the file is written for, by its ending or else by its name; "infrastructure" where neither tells."""
    name = file.strip().lower()
    return next((tech for pattern, tech in TECHNOLOGIES if re.search(pattern, name)), "infrastructure")


# The context in one layout


def same(text: str, content: str) -> bool:
    """Whether a line reads as `content`, white space aside."""
    return text.split() == content.split()


def agrees(text: str, content: str) -> bool:
    """Whether a line reads as `content` or one is a part of the other: either may be cut."""
    text, content = (re.sub(r"\s+|\.{3}$", "", part) for part in (text, content))
    short, long = sorted((text, content), key=len)
    return short == long or (len(short) >= 8 and short in long)


def peelings(text: str) -> dict[str, bool]:
    """The ways to read a line without its number and marks, the least peeled first; whether a mark went."""
    found, queue = {text: False}, [text]
    for code in queue:  # grows while it is read
        peeled = [(code[m.end() :], True) for m in (STRONG.match(code), WEAK.match(code)) if m]
        peeled += [(code[: m.start()], True) for m in [TAIL.search(code)] if m]
        peeled += [(m[2] or m[3], True) for m in [TAGS.match(code)] if m]
        peeled += [(code[m.end() :], found[code]) for m in [NUMBER.match(code)] if m]
        queue += [rest for rest, _ in peeled if rest not in found]
        found = dict(peeled) | found
    return {code: found[code] for code in queue}


def drop_numbers(texts: list[str], line: int) -> tuple[list[str], list[int], set[int]]:
    """The lines without their line numbers, which have the number `line`, and which a strong mark before a number.

    A number is a line's number where it is as far from `line` as its place is from the one numbered `line`, or
    where most lines have one and they grow from line to line. Other numbers are code.
    """
    marks = [STRONG.match(text) or WEAK.match(text) for text in texts]
    found = [NUMBER.match(t) or (m and NUMBER.match(t, m.end())) for t, m in zip(texts, marks, strict=True)]
    numbers = {i: int(match[1]) for i, match in enumerate(found) if match}
    at = [i for i, number in numbers.items() if number == line]
    many = len(numbers) > 2 and 2 * len(numbers) > sum(bool(text.strip()) for text in texts)
    if not (many and all(a < b for a, b in pairwise(numbers.values()))):
        numbers = {j: number for j, number in numbers.items() if any(number - line == j - i for i in at)}
    codes = [text[found[i].end() :] if i in numbers else text for i, text in enumerate(texts)]
    return codes, at, {i for i in numbers if STRONG.match(texts[i])}


def unmarked(code: str) -> str:
    """A line without its strong marks."""
    tagged, tail = TAGS.match(code), TAIL.search(code)
    code = (tagged[2] or tagged[3]) if tagged else code[: tail.start()] if tail else code
    strong = STRONG.match(code)
    return code[strong.end() :] if strong else code


def find_flagged(texts: list[str], line: int, content: str) -> tuple[list[str], int | None, str]:
    """The lines without numbers, the flagged one without marks too; which one it is; which of WAYS found it."""
    content = next(filter(str.strip, content.splitlines()), content)
    codes, numbered, marked_number = drop_numbers(texts, line)
    exact: dict[int, tuple[str, bool]] = {}  # lines that read as content: as what, and whether a mark went
    for i, text in enumerate(texts):
        for code, has_mark in peelings(text).items():
            if same(code, content):
                exact.setdefault(i, (code, has_mark))
    partly = [i for i, code in enumerate(codes) if agrees(code, content)]
    marked = [i for i, code in enumerate(codes) if i in marked_number or unmarked(code) != code]
    # `80: x` may be the code of line 80
    numbered = [i for i in numbered if not (i in exact and exact[i][0] == texts[i])]
    choices = [
        ("number", [i for i in numbered if i in exact or i in partly]),
        ("marker", [i for i, (_, has_mark) in exact.items() if has_mark]),
        ("content", list(exact)),
        ("content", partly),
        ("number", numbered),
        ("marker", marked if len(marked) == 1 else []),
    ]
    way, found = next(((way, found) for way, found in choices if found), ("not_found", []))
    if not found:
        return codes, None, way
    at = min(found, key=lambda i: abs(2 * i - len(texts) + 1))  # of several, the one in the middle
    codes[at] = exact[at][0] if at in exact else unmarked(codes[at]) if at in marked else codes[at]
    return codes, at, way


def clip(text: str, most: int) -> str:
    """The text, cut to `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def mark_context(
    with_context: str, line: int, content: str, context_lines: int | None = None, keep_indent: bool = False
) -> tuple[str, str]:
    """The code in one layout, its flagged line behind FLAG, and which of WAYS found that line.

    Args:    context_lines: lines to keep on either side; None: all.
    """
    texts = with_context.expandtabs(4).splitlines()
    while texts and (FENCE.match(texts[0]) or (HEADER.match(texts[0]) and not same(texts[0], content))):
        texts.pop(0)
    while texts and FENCE.match(texts[-1]):
        texts.pop()
    codes, at, way = find_flagged(texts, line, content)
    if at is None:
        at = len(codes)
        codes.append(" ".join(content.split()))
    codes = textwrap.dedent("\n".join(codes)).split("\n") if keep_indent else [c.strip() for c in codes]
    codes = [
        clip(code.rstrip(), LONGEST_LINE if i != at else LONGEST_FLAGGED) for i, code in enumerate(codes)
    ]
    codes[at] = FLAG + codes[at]
    start, end = 0, len(codes)
    if context_lines is not None:
        start, end = max(0, at - context_lines), at + context_lines + 1
    return "\n".join(codes[start:end]).strip("\n"), way


# Rows


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
            raise RowError(f"no field {name!r} (found: {', '.join(map(str, row)) or 'none'})")
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
    parser = argparse.ArgumentParser(
        prog="python -m data.iac",
        description="Write a static analyser's findings as rows with a full prompt.",
    )
    parser.add_argument(
        "--input", nargs="+", required=True, help="files of findings: .jsonl, .json, .csv or .tsv"
    )
    parser.add_argument(
        "--output_dir", required=True, help="folder to write to; a file of the same name an input"
    )
    fields_help = f"what `content` becomes: one or more of {', '.join(FIELDS)}, with commas; default content"
    parser.add_argument("--fields", default="content", help=fields_help)
    lines_help = "lines of code to keep before and behind the flagged one; default all"
    parser.add_argument("--context_lines", type=int, help=lines_help)
    parser.add_argument(
        "--keep_indent", action="store_true", help="drop only the indent that all lines share"
    )
    args = parser.parse_args(argv)

    fields = [field.strip() for field in args.fields.split(",")]
    if odd := [field for field in fields if field not in FIELDS]:
        raise UserError(f"--fields {args.fields}: {odd[0]!r} is none of {', '.join(FIELDS)}")
    if args.context_lines is not None and args.context_lines < 0:
        raise UserError(f"--context_lines {args.context_lines}: expected 0 or more")
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
