"""Built-in findings: naive pattern rules run over the standard library, its syntax trees say which are real.

    python -m data.smells                       -> rows/smells

Real code that every Python has: sources are read and parsed, never imported; test folders are left out. Each rule
is a regular expression over single lines, as naive analysers have, so it also fires on comments, on strings, and on
code that only looks alike. The label is asked of the syntax tree: TP where the node that the rule means stands on that
line, FP where it does not. Often the flagged line alone cannot tell: what counts is the class or the function
around it, or what comes later.

Rows have the fields of data/iac.py's findings (`smell`, `file`, `content`, `line`, `with_context`, `label`), and its
`code` and `with_prompt`: train with --text_field with_prompt, content or code. All findings of a file are in one
split. Where contexts of several files are near-duplicates, those of one file are kept. A rule gives at most
MOST_OF_A_RULE rows. The same Python version gives the same files, if its standard library is whole.
"""

import importlib.util
import json
import platform
import random
import re
import sysconfig
import warnings
from collections import Counter, defaultdict
from pathlib import Path

from core.errors import UserError, run_main
from core.flags import Parser, number
from core.results_table import format_table
from data.docstrings import list_sources, write_folder
from data.iac import add_fields
from data.smell_rules import RULES, SMELLS, Module, use_of_eval
from data.splits import group_near_duplicates, split_by_group

CONTEXT_LINES = 5  # on either side, as in the rows that data/iac.py was written for
MOST_OF_A_RULE = 600
FEWEST_FILES = 50


def find_detections(source: str, file: str) -> list[dict]:
    """What the rules find in one source, from top to bottom, with labels.

    Raises:  SyntaxError or ValueError when the source does not parse.
    """
    lines = source.split("\n")  # as the parser counts: str.splitlines also ends lines at form feeds
    found = [(n, rule) for rule, pattern in RULES.items() for n in hits(pattern, lines)]
    if not found:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in old modules
        module = Module(source)
    real = {rule: set(rule(module)) for rule in {rule for _, rule in found}}
    return [
        {
            "smell": rule.__name__,
            "file": file,
            "content": lines[n - 1].strip(),
            "line": n,
            "with_context": show_context(lines, n),
            "label": "TP" if n in real[rule] else "FP",
        }
        for n, rule in sorted(found, key=lambda hit: (hit[0], hit[1].__name__))
    ]


def hits(pattern: str, lines: list[str]) -> list[int]:
    """The numbers of the lines that a pattern is found in, from 1."""
    search = re.compile(pattern).search
    return [n for n, line in enumerate(lines, 1) if search(line)]


def show_context(lines: list[str], number: int) -> str:
    """The lines around a line, without their indents; the line itself as it is, with its number."""
    start, end = max(1, number - CONTEXT_LINES), min(len(lines), number + CONTEXT_LINES)
    return "\n".join(
        f"{n}: {lines[n - 1]}" if n == number else lines[n - 1].strip() for n in range(start, end + 1)
    )


def drop_copies(rows: list[dict]) -> list[dict]:
    """The rows without those whose context is a near-duplicate of one in another file that has more such rows."""
    texts = [re.sub(r"^\d+: ", "", row["with_context"], flags=re.MULTILINE) for row in rows]
    groups = group_near_duplicates(texts)
    files = defaultdict(Counter)
    for row, group in zip(rows, groups, strict=True):
        files[group][row["file"]] += 1
    chosen = {group: min(count, key=lambda file: (-count[file], file)) for group, count in files.items()}
    return [row for row, group in zip(rows, groups, strict=True) if row["file"] == chosen[group]]


def read_detections(root: Path) -> tuple[list[dict], dict]:
    """All findings under `root`; how many files were read, and which could not be parsed."""
    rows, not_parsed = [], []
    sources = list_sources(root)
    for _, path in sources:
        try:
            source = importlib.util.decode_source((root / path).read_bytes())
            rows += find_detections(source, path.as_posix())
        except (SyntaxError, ValueError, OSError):
            not_parsed.append(path.as_posix())
    return rows, {"read": len(sources) - len(not_parsed), "not_parsed": not_parsed}


def build(root: Path, seed: int) -> tuple[dict[str, list[dict]], dict]:
    """The rows of each split, and their summary."""
    found, files = read_detections(root)
    kept = drop_copies(found)
    rng, rows = random.Random(seed), []
    for smell in SMELLS:
        own = [row for row in kept if row["smell"] == smell]
        rows += own if len(own) <= MOST_OF_A_RULE else rng.sample(own, MOST_OF_A_RULE)
    rows.sort(key=lambda row: (row["file"], row["line"], row["smell"]))
    if len({row["file"] for row in rows}) < FEWEST_FILES or len({row["label"] for row in rows}) < 2:
        raise UserError(
            f"{root}: this standard library gives {len(rows)} findings, too few. "
            "Use a Python that has all of its standard library as .py files."
        )
    number = {file: i for i, file in enumerate(sorted({row["file"] for row in rows}))}
    names = [[f"{row['smell']} {row['label']}"] for row in rows]
    chosen = split_by_group([number[row["file"]] for row in rows], names, seed)
    meanings = {smell: rule.__doc__ for smell, rule in SMELLS.items()}
    splits = {
        name: [add_fields(rows[i], ["content"], meanings)[0] for i in own] for name, own in chosen.items()
    }
    counts = {split: Counter((row["smell"], row["label"]) for row in own) for split, own in splits.items()}
    summary = {
        "python": platform.python_version(),
        "seed": seed,
        "rows": {"all": len(rows)} | {split: len(own) for split, own in splits.items()},
        "smells": {
            smell: {label: {split: counts[split][smell, label] for split in splits} for label in ("TP", "FP")}
            for smell in SMELLS
        },
        "dropped": {
            "near_duplicates": len(found) - len(kept),
            "over_the_most_of_a_rule": len(kept) - len(rows),
        },
        "files": files,
    }
    return splits, summary


def main(argv: list[str] | None = None) -> dict:
    """Write the rows; returns what stands in their summary."""
    parser = Parser(
        "Write train, validation and test rows: findings in this Python's own library, real or not."
    )
    parser.prog = "python -m data.smells"
    folder_help = "folder to write to, default rows/smells"
    parser.add_argument("--output_dir", metavar="DIR", default="rows/smells", help=folder_help)
    seed_help = "which rows go to which split, and in what order"
    parser.add_argument("--seed", type=number(int, 0), default=0, help=seed_help)
    args = parser.parse_args(argv)
    if not use_of_eval.__doc__:
        raise UserError(
            "python -OO drops the docstrings that the prompts are made of; run python without -OO"
        )

    splits, summary = build(Path(sysconfig.get_path("stdlib")), args.seed)
    summary = write_folder(Path(args.output_dir), splits, summary)

    files, dropped = summary["files"], summary["dropped"]
    print(f"Python {summary['python']}: {files['read']} files read, {len(files['not_parsed'])} not parsed")
    print("rows     " + ", ".join(f"{name} {count}" for name, count in summary["rows"].items()))
    print("dropped  " + ", ".join(f"{name} {count}" for name, count in dropped.items()) + "\n")
    table = []
    for smell, counts in summary["smells"].items():
        cells = {f"{split} {label}": counts[label][split] for split in splits for label in ("TP", "FP")}
        real, all_rows = sum(counts["TP"].values()), sum(sum(count.values()) for count in counts.values())
        table.append((smell, {"rows": all_rows, "TP_frac": real / all_rows if all_rows else None} | cells))
    print(format_table(table, list(table[0][1])))
    result = {"output_dir": args.output_dir, "rows": summary["rows"]}
    print(json.dumps(result))
    return summary | {"output_dir": args.output_dir}


if __name__ == "__main__":
    run_main(main)
