"""Answers to rank from other sources: questions with right and wrong sentences or solutions in, ranking rows out.

    python -m data.answers --input WikiQA-train.tsv --output rows/wikiqa/train.jsonl --drop_unanswered
    python -m data.answers --input example_model_solutions.jsonl --output rows/gsm8k/train.jsonl --strip_annotations \\
        --validation_ratio 0.1
    python -m data.answers --input ../shared/data/wikiqa/train.jsonl --output rows/wikiqa/train.jsonl

A row is {"question", "context"?, "candidates": [...], "rewards": [...]}, also "id" and "sources" (which model wrote
each candidate) where the file says it. K, the number of candidates, may differ from row to row. Forms (--form auto
looks at the first rows):

pairs      TSV, CSV or JSONL: a question, a sentence and a label 0/1 a line, gathered by question id, or by the
           question's text; WikiQA's columns (QuestionID, Question, Sentence, Label) and other common ones are found
solutions  JSONL: {"question", "solutions": [{"text" or "solution", "correct": true}, ...]}, or the solutions under
           their models' names as in GSM8K's example_model_solutions.jsonl: {"175b_finetuning": {"solution",
           "is_correct"}, ...}
rows       the format above: checked and passed through, other fields too

A line that cannot be used is counted and told with its number, and fatal only where nothing is left. The same
candidate twice in a question is kept once (in `rows` it stays), and not at all when it is marked both right and
wrong. A question with one candidate is dropped. Right is a reward of 1 or more. With --validation_ratio the rows are
split by question: questions that share most of their words are on one side.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from core.errors import UserError, run_main
from core.flags import Parser, number
from data.answer_forms import FIELDS, FORMS, Candidate, Dropped, choose_form, found_fields, read_lines
from data.predictions import same_text
from data.splits import group_near_duplicates, split_by_group, write_files

MOST_POSITIONS = 10
PER_CANDIDATE = ("programs", "values", "kinds")  # fields of data/finqa.py's rows with an entry a candidate


# Candidates


def is_right(candidate: Candidate) -> bool:
    """Whether it answers the question; a partial reward does not."""
    return candidate.reward >= 1


def merge_same(candidates: list[Candidate], dropped: Dropped, line: int) -> list[Candidate]:
    """Each text once, with the names of all its sources; none that has two rewards."""
    same: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        same[same_text(candidate.text)].append(candidate)
    merged = []
    for first, *others in same.values():
        if any(other.reward != first.reward for other in others):
            dropped.add(line, "the same candidate right and wrong", first.text[:60])
            continue
        for _ in others:
            dropped.add(line, "the same candidate again", first.text[:60])
        sources = dict.fromkeys(c.source for c in (first, *others) if c.source)
        merged.append(first._replace(source="+".join(sources)))
    return merged


def choose_candidates(candidates: list[Candidate], most: int) -> list[int]:
    """Indices of all right ones and of the first wrong ones, `most` in all, but at least one wrong one."""
    right = [i for i, candidate in enumerate(candidates) if is_right(candidate)]
    wrong = [i for i, candidate in enumerate(candidates) if not is_right(candidate)]
    return sorted(right + wrong[: max(1, most - len(right))])


def make_rows(
    found: Iterable[tuple[int, dict]], form: str, args: argparse.Namespace, dropped: Dropped
) -> tuple[list[dict], dict[str, list[bool]]]:
    """The ranking rows, and for each source whether it is right, question by question."""
    rows, sources = [], defaultdict(list)
    for line, row in found:
        candidates = row["candidates"]
        for candidate in candidates:
            if candidate.source:
                sources[candidate.source].append(is_right(candidate))
        if form != "rows":
            candidates = merge_same(candidates, dropped, line)
        if len(candidates) < 2:
            dropped.add(line, f"{len(candidates) or 'no'} candidate", row["question"][:60])
            continue
        if args.drop_unanswered and not any(map(is_right, candidates)):
            dropped.add(line, "no right answer (--drop_unanswered)", row["question"][:60])
            continue
        row = dict(row)
        if args.max_candidates and len(candidates) > args.max_candidates:
            chosen = choose_candidates(candidates, args.max_candidates)
            for name in PER_CANDIDATE:
                if isinstance(row.get(name), list) and len(row[name]) == len(candidates):
                    row[name] = [row[name][i] for i in chosen]
            if row.get("gold") in chosen:
                row["gold"] = chosen.index(row["gold"])
            candidates = [candidates[i] for i in chosen]
        row["candidates"], row["rewards"] = [c.text for c in candidates], [c.reward for c in candidates]
        if any(c.source for c in candidates):
            row["sources"] = [c.source for c in candidates]
        rows.append(row)
    return rows, dict(sources)


# Summary


def count_rows(rows: list[dict]) -> dict:
    """What the rows are like, and how far position and length alone give the right answer away.

    Returns: questions, K ([least, median, most]), no_right, several_right, all_right, asked_again | picks: share of
             questions in which the one picked is right, by who picks | by_position: share of right ones there.
    """
    right = [[reward >= 1 for reward in row["rewards"]] for row in rows]
    sizes = [len(marks) for marks in right]
    lengths = [[len(text) for text in row["candidates"]] for row in rows]

    def pick(choose: Callable[[list[int]], int]) -> float:
        return sum(m[n.index(choose(n))] for m, n in zip(right, lengths, strict=True)) / len(rows)

    positions = [
        [marks[i] for marks in right if len(marks) > i] for i in range(min(max(sizes), MOST_POSITIONS))
    ]
    return {
        "questions": len(rows),
        "K": [min(sizes), statistics.median_low(sizes), max(sizes)],
        "no_right": sum(not any(marks) for marks in right),
        "several_right": sum(sum(marks) > 1 for marks in right),
        "all_right": sum(map(all, right)),
        "asked_again": len(rows) - len({same_text(row["question"]) for row in rows}),
        "picks": {
            "random": sum(sum(marks) / len(marks) for marks in right) / len(rows),
            "first": sum(marks[0] for marks in right) / len(rows),
            "longest": pick(max),
            "shortest": pick(min),
            "oracle": sum(map(any, right)) / len(rows),
        },
        "by_position": [sum(marks) / len(marks) for marks in positions],
    }


def print_summary(summary: dict) -> None:
    """Counts, shortcuts, the accuracy of each source, and what was dropped."""
    for name, split in summary["splits"].items():
        least, median, most = split["K"]
        print(f"\n{name}: {split['questions']} questions, {least} to {most} candidates (median {median})")
        kinds = ("no_right", "several_right", "all_right", "asked_again")
        print("  " + ", ".join(f"{kind.replace('_', ' ')}: {split[kind]}" for kind in kinds))
        print(
            "  right when picked: " + ", ".join(f"{who} {share:.1%}" for who, share in split["picks"].items())
        )
        print("  right by position: " + " ".join(f"{share:.1%}" for share in split["by_position"]))
        if least == most and not summary["sources"]:
            best = max(range(len(split["by_position"])), key=split["by_position"].__getitem__)
            share = split["by_position"][best]
            print(
                f"  if each position is one source, the best single one ({best + 1}) is right {share:.1%} of the time"
            )
    if summary["sources"]:
        print("\nsources")
        for name, (share, count) in summary["sources"].items():
            print(f"  {name:24} right {share:.1%} of {count}")
        best, (share, _) = next(iter(summary["sources"].items()))
        print(f"  the best single source, {best}, is right {share:.1%} of the time")
    print(f"\ndropped: {sum(n['rows'] for n in summary['dropped'].values())}")
    for reason, n in summary["dropped"].items():
        more = ", ..." if n["rows"] > len(n["lines"]) else ""
        found = f": {n['found']}" if n["found"] else ""
        print(f"{n['rows']:6}  {reason} (row {', '.join(map(str, n['lines']))}{more}{found})")


# From file to files


def split_questions(rows: list[dict], args: argparse.Namespace) -> dict[str, list[dict]]:
    """File name -> its rows, in the order they came: one file, or two with near-duplicate questions on one side.

    Raises:  UserError when one of two is empty.
    """
    if not args.validation_ratio:
        return {args.output: rows}
    groups = group_near_duplicates([row["question"] for row in rows])
    names = [["question", "answered" if max(row["rewards"]) >= 1 else "unanswered"] for row in rows]
    shares = {args.output: 1 - args.validation_ratio, args.validation_output: args.validation_ratio}
    splits = split_by_group(groups, names, args.seed, shares)
    if not all(splits.values()):
        told = f"{len(rows)} questions in {len(set(groups))} groups of near-duplicates leave one file empty"
        raise UserError(f"--validation_ratio {args.validation_ratio:g}: {told}")
    return {name: [rows[i] for i in sorted(chosen)] for name, chosen in splits.items()}


def build(args: argparse.Namespace) -> tuple[dict[str, list[dict]], dict]:
    """The rows of each file, and their summary. Prints what form is read and from which fields.

    Raises:  UserError when no form fits, or nothing is left.
    """
    dropped = Dropped()
    lines = read_lines(args.input, dropped)
    form, first = choose_form(lines, args)
    print(f"{args.input}: {len(lines)} rows, form {form} ({'found' if args.form == 'auto' else 'given'})")
    for kind, name in found_fields(first, form, args).items():
        print(f"  {kind:9}  {name} ({'given' if getattr(args, f'{kind}_field') else 'guessed'})")
    rows, sources = make_rows(FORMS[form](lines, args, dropped), form, args, dropped)
    if not rows:
        reasons = dropped.reasons.items()
        told = "; ".join(f"{n['rows']} {why} (row {n['lines'][0]}: {n['found']})" for why, n in reasons)
        raise UserError(f"--input {args.input}: of {len(lines)} rows none is left: {told}")
    files = split_questions(rows, args)
    shares = {name: (sum(marks) / len(marks), len(marks)) for name, marks in sources.items()}
    return files, {
        "form": form,
        "read": len(lines),
        "splits": {name: count_rows(part) for name, part in files.items()},
        "sources": dict(sorted(shares.items(), key=lambda item: (-item[1][0], item[0]))),
        "dropped": dropped.reasons,
    }


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked; validation_output is "" without a ratio."""
    parser = Parser("Make ranking rows of questions with right and wrong answers.")
    parser.prog = "python -m data.answers"
    add = parser.add_argument
    add("--input", required=True, metavar="FILE", help="a .tsv, .csv, .jsonl or .json file")
    add("--output", required=True, metavar="FILE", help="ranking rows, JSONL")
    add("--form", choices=("auto", *FORMS), default="auto", help="what the file holds (default: found)")
    for kind in FIELDS:
        add(f"--{kind}_field", default="", help=f"column of the {kind} (default: guessed)")
    add("--strip_annotations", action="store_true", help="leave out GSM8K's <<3*4=12>> in candidates")
    add("--drop_unanswered", action="store_true", help="leave out questions without a right answer")
    help_text = "keep all right ones and the first wrong ones, so many in all; 0: all"
    add("--max_candidates", type=number(int, 0), default=0, metavar="N", help=help_text)
    help_text = "share of the questions for --validation_output; 0: write one file"
    add("--validation_ratio", type=number(float, 0, 0.9), default=0.0, help=help_text)
    help_text = "default: OUTPUT's name with _validation, beside it"
    add("--validation_output", default="", metavar="FILE", help=help_text)
    add("--seed", type=number(int, 0), default=0, help="which questions are for validation")
    args = parser.parse_args(argv)
    if args.max_candidates == 1:
        raise UserError("--max_candidates 1: expected 0, or at least 2")
    output = Path(args.output)
    if args.validation_ratio and not args.validation_output:
        args.validation_output = str(output.with_name(f"{output.stem}_validation{output.suffix}"))
    if args.validation_output and not args.validation_ratio:
        raise UserError(
            f"--validation_output {args.validation_output}: --validation_ratio says how much goes there"
        )
    for flag in ("output", "validation_output"):
        path = Path(getattr(args, flag) or args.output)
        if path.resolve() == Path(args.input).resolve() or path.is_dir():
            raise UserError(f"--{flag} {path}: {'is a folder' if path.is_dir() else 'is the input'}")
    if args.validation_output and Path(args.validation_output).resolve() == output.resolve():
        raise UserError(f"--validation_output {args.validation_output}: is --output")
    return args


def main(argv: list[str] | None = None) -> dict:
    """Write the rows; returns their summary."""
    args = parse_flags(argv)
    files, summary = build(args)
    for name, rows in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        flag = "--output" if name == args.output else "--validation_output"
        write_files(Path(name).parent, {Path(name).name: text.encode()}, flag)
    print_summary(summary)
    print(f"\nwritten: {', '.join(files)}")
    counts = {name: len(rows) for name, rows in files.items()}
    print(json.dumps({"questions": counts, "dropped": {k: n["rows"] for k, n in summary["dropped"].items()}}))
    return summary


if __name__ == "__main__":
    run_main(main)
