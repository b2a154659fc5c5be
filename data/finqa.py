"""FinQA: reports with questions and programs in, a ranking row with eight candidates a question out, in four steps.

    python -m data.finqa check --input dev.json                                      # what is wrong with a file
    python -m data.finqa prepare --input dev.json --output rows/finqa/dev.jsonl       # --context gold: evidence alone
    python -m data.finqa prepare --input train_flat.jsonl --output rows/finqa/train.jsonl --exclude dev.json
    python -m data.finqa candidates --input rows/finqa/train.jsonl --output rows/finqa/train_candidates.jsonl
    python -m data.finqa rewards --input rows/finqa/train_candidates.jsonl --output rows/finqa/train_ranking.jsonl

Reads FinQA as published (JSON: pre_text, post_text, table, qa) and the flat form (JSONL: id, question, context,
program, answer; the table is the lines of the context with ` | `). Each step reads a file, writes one, prints what it
did, and gives the same bytes for the same file and --seed. A row that fails is reported with its id and left out.

check       counts, fields that are missing, programs that do not execute, answers that disagree with their program
prepare     {id, question, context, answer, value, program, num_steps, table}; rows that check complains of are dropped
candidates  {id, question, context, candidates, programs, values, kinds, gold, ...}: data/candidates.py says how
rewards     {question, context, candidates, rewards, ...}: data/rewards.py says by which formula
"""

import argparse
import json
from pathlib import Path

from core.errors import UserError, disk_errors, run_main
from core.files import write_text
from core.flags import number, step_parser
from core.rows import BadRows, half_pair, read_rows, show
from data.candidates import candidate_rows, count_kinds, page_of, sample_rows
from data.finqa_rows import Problems, check_rows, prepare_rows, read_finqa
from data.rewards import FORMULA, count_ties, reward_rows
from data.shortcuts import describe_shortcuts, measure_shortcuts

MOST_SHOWN = 20  # complaints of one kind that a summary prints


# The command


def read_samples(path: str) -> dict[str, list[str]]:
    """The samples of each id of a --from file. Raises UserError for all bad rows together."""
    bad, samples = BadRows(path), {}
    for line, row in read_rows(path, bad, "--from"):
        found = row.get("samples")
        if (
            "id" not in row
            or not isinstance(found, list)
            or not all(isinstance(t, str | int | float) for t in found)
        ):
            bad.add(line, f"expected an id and samples, a list of texts (found: {show(row)})")
        else:
            samples.setdefault(str(row["id"]), []).extend(str(text) for text in found)
    bad.raise_if_any()
    return samples


def print_problems(problems: Problems) -> dict[str, int]:
    """Each kind with its count and its first rows; returns the counts."""
    kinds: dict[str, list[str]] = {}
    for name, what in problems:
        kind, _, detail = what.partition(": ")
        kinds.setdefault(kind, []).append(f"{name}: {detail}")
    for kind, found in kinds.items():
        print(f"{len(found):6}  {kind}")
        print("".join(f"          {text}\n" for text in found[:MOST_SHOWN]), end="")
        if found[MOST_SHOWN:]:
            print(f"          ... and {len(found) - MOST_SHOWN} more")
    return {kind: len(found) for kind, found in kinds.items()}


def run_check(args: argparse.Namespace) -> dict:
    """Print and write what check_rows finds."""
    report = check_rows(read_finqa(args.input))
    print(f"{args.input}: {report['rows']} rows on {report['pages']} pages, {report['usable']} usable")
    for name in ("form", "num_steps", "operations"):
        print(f"  {name:12} {', '.join(f'{key} {n}' for key, n in report[name].items())}")
    found = report["problems"]
    print_problems([(row["id"], f"{kind}: {row['found']}") for kind, rows in found.items() for row in rows])
    if args.output:
        write_output(args.output, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report | {"problems": {kind: len(rows) for kind, rows in found.items()}}


def run_prepare(args: argparse.Namespace) -> dict:
    """Write prepared rows; returns counts."""
    rows = read_finqa(args.input)
    exclude = [row for path in args.exclude for row in read_finqa(path, "--exclude")]
    made, problems = prepare_rows(rows, args.context, exclude)
    print(f"{args.input}: {len(rows)} rows, {len(made)} prepared, {len(problems)} left out")
    result = finish(args, made, problems)
    words = sorted(len(row["context"].split()) for row in made)
    print(f"words a context: median {words[len(words) // 2]}, at most {words[-1]}")
    return result


def run_candidates(args: argparse.Namespace) -> dict:
    """Write rows with candidates, and print what gives the right one away; returns counts and those numbers."""
    rows = read_finqa(args.input)
    if args.samples:
        samples = read_samples(args.samples)
        made, problems = sample_rows(rows, samples, args.num_candidates, args.seed)
    else:
        also = [row for path in args.also for row in read_finqa(path, "--also")]
        made, problems = candidate_rows(
            rows, args.num_candidates, args.corruption_rate, args.seed, also, args.name_operands
        )
    print(f"{args.input}: {len(rows)} rows, {len(made)} with candidates, {len(problems)} left out")
    if args.drop_context:
        made = [row | {"context": ""} for row in made]
    result = finish(args, made, problems)
    print("kinds of changes: " + ", ".join(f"{kind} {n}" for kind, n in count_kinds(made).most_common()))
    if args.samples:
        result["gold_added"] = sum(row["gold_added"] for row in made)
        unread = sum(row["unread"] for row in made)
        print(
            f"right one added to {result['gold_added']} rows; {unread} samples are neither program nor answer"
        )
    found = measure_shortcuts(made, [page_of(row) for row in made], args.seed)
    print("\n".join(describe_shortcuts(found)))
    return result | {"shortcuts": {name: round(value, 4) for name, value in found.items()}}


def run_rewards(args: argparse.Namespace) -> dict:
    """Write rows with rewards; returns counts."""
    rows = read_finqa(args.input)
    made, problems = reward_rows(rows)
    print(f"{args.input}: {len(rows)} rows, {len(made)} with rewards, {len(problems)} left out")
    result = finish(args, made, problems) | count_ties(made)
    wrong = [reward for row in made for reward in row["rewards"] if reward < 1]
    if wrong:
        print(f"rewards of wrong candidates: mean {sum(wrong) / len(wrong):.3f}, most {max(wrong):.3f}")
    print(
        f"questions with two best candidates: {result['ties']}; with all rewards zero: {result['all_zero']}"
    )
    return result


def finish(args: argparse.Namespace, made: list[dict], problems: Problems) -> dict:
    """Print the problems and write the rows. Raises UserError when there are none."""
    lines = []
    for row in made:
        line = json.dumps(row, ensure_ascii=False)
        if half_pair(line):
            problems.append((row["id"], f"no Unicode: {half_pair(line)}"))
        else:
            lines.append(line + "\n")
    counts = print_problems(problems)
    if not lines:
        first = f"; row {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise UserError(f"--input {args.input}: no row is usable for {args.step}{first}")
    write_output(args.output, "".join(lines))
    return {"output": args.output, "rows": len(lines), "left_out": counts}


def write_output(path: str, text: str) -> None:
    """Write a file whole, and its folder where there is none."""
    with disk_errors(path, "--output"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), text)


STEPS = {
    "check": (run_check, "Count what is in a FinQA file and what is wrong with it."),
    "prepare": (run_prepare, "Write one row a question, with its context as text and its program executed."),
    "candidates": (run_candidates, "Write wrong candidates beside the right one, or a model's own samples."),
    "rewards": (run_rewards, f"Write a reward for each candidate.\n\n{FORMULA}"),
}


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The step and its flags."""
    step, parser, rest = step_parser("data.finqa", __doc__, STEPS, argv)
    add = parser.add_argument
    add(
        "--input", required=True, metavar="FILE", help="rows of FinQA, or of the step before: .json or .jsonl"
    )
    help_text = "report to write, as JSON" if step == "check" else "rows to write, one a line (.jsonl)"
    add("--output", required=step != "check", default="", metavar="FILE", help=help_text)
    if step == "prepare":
        help_text = "the whole page, or its gold evidence alone (default: page)"
        add("--context", choices=("page", "gold"), default="page", help=help_text)
        add(
            "--exclude",
            nargs="+",
            default=[],
            metavar="FILE",
            help="leave out rows whose pages occur in these files",
        )
    if step == "candidates":
        add("--num_candidates", type=number(int, 2, 64), default=8, help="candidates a question (default: 8)")
        help_text = (
            "share of the program's operations and operands that are changed in a wrong one (default: 0.5)"
        )
        add("--corruption_rate", type=number(float, 0, 1), default=0.5, help=help_text)
        add(
            "--seed",
            type=number(int, 0),
            default=0,
            help="of the mutants, the choice and the order (default: 0)",
        )
        help_text = (
            "write behind each number what the page calls it: its row and column, or the words around it"
        )
        add("--name_operands", action="store_true", help=help_text)
        help_text = "write no context: question and named operands are all that a small model is to read"
        add("--drop_context", action="store_true", help=help_text)
        help_text = "more prepared rows, which help to choose but are not written; for small files"
        add("--also", nargs="+", default=[], metavar="FILE", help=help_text)
        help_text = "a model's samples instead of mutants: rows {id, samples: [programs or answers]}"
        add("--from", dest="samples", default="", metavar="FILE", help=help_text)
    args = parser.parse_args(rest)
    args.step = step
    beside = [*getattr(args, "exclude", []), *getattr(args, "also", [])]
    read = {Path(path).resolve() for path in (args.input, *beside, getattr(args, "samples", "")) if path}
    if args.output and Path(args.output).resolve() in read:
        raise UserError(f"--output {args.output}: is the input, or read beside it; give another file")
    if args.output and Path(args.output).is_dir():
        raise UserError(f"--output {args.output}: is a folder; give a file")
    return args


def main(argv: list[str] | None = None) -> dict:
    """Run one step; returns what the last line of the output says."""
    args = parse_flags(argv)
    result = STEPS[args.step][0](args)
    if args.output:
        print(f"written: {args.output}")
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_main(main)
