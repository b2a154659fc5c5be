"""Built-in ranking rows for a fresh clone: questions on invented annual reports, through the same steps as FinQA.

    python -m data.reports                                    # train, validation and test -> rows/reports
    python -m data.reports --num_questions 4000 --num_candidates 4 --seed 1 --output_dir rows/more_reports

A page is a company with an invented name, two to four sentences, and a table of three to five quantities over two to
four years. Each page is asked QUESTIONS_A_PAGE questions of different kinds (data/report_questions.py: changes,
shares, ratios, averages, sums, what a plan comes to, ...), each with a program of one to three steps in FinQA's
language; their answers are worked out apart from the programs. data/finqa.py then checks, prepares, makes candidates
and rewards as it does for FinQA's own pages, which have the format of the files *.finqa.json written here.

No company, and no two pages that share most of their words, are divided between the splits. The same flags and seed
give the same bytes with the pinned packages; other versions of numpy or scikit-learn may choose other wrong candidates.
Sizes are for a small encoder on two CPU cores: numbers of two and three digits, short pages.
"""

import argparse
import hashlib
import json
import random
from collections import Counter
from pathlib import Path

from core.errors import UserError, run_main
from core.flags import Parser, number
from core.results_table import format_table
from data.candidates import candidate_rows, page_of
from data.finqa_rows import check_rows, prepare_rows
from data.report_pages import Page, draw_page
from data.report_questions import KINDS, Asked, draw_question
from data.rewards import reward_rows
from data.shortcuts import describe_shortcuts, measure_shortcuts
from data.splits import group_near_duplicates, join_groups, split_by_group, write_files

QUESTIONS_A_PAGE = 3
SHARES = {"train": 0.74, "validation": 0.13, "test": 0.13}  # of 1,080 questions: 800, 140, 140
RARE = {
    "mean_of_three": 4
}  # drawn once where others are 4 times: few wrong programs are as long: it stands out
MOST_SHOWN = 10  # problems that the summary prints


# Pages with questions


def format_answer(asked: Asked) -> str:
    """The answer as a report would write it: 12.3% for a share, else with at most two decimals."""
    if asked.percent:
        return f"{100 * asked.value:.1f}%"
    return f"{asked.value:.2f}".rstrip("0").rstrip(".")


def find_evidence(page: Page, asked: Asked) -> dict[str, str]:
    """FinQA's gold_inds: the sentences, and the table rows as sentences, that the answer needs."""
    names, found = list(page.values), {}
    for quantity in asked.rows:
        cells = [f"the {quantity.name} of {year} is {page.cell(quantity, year)} ;" for year in page.columns]
        found[f"table_{names.index(quantity) + 1}"] = f"{page.header} {' '.join(cells)}"
    if asked.text:
        sentences = page.before + page.after
        found[f"text_{sentences.index(page.fact.sentence)}"] = page.fact.sentence
    return found


def write_question(page: Page, place: int, question: str, asked: Asked) -> dict:
    """A question with its page as FinQA's files have it."""
    filename = f"{page.company.split()[0]}/{page.years[-1]}/page_1.pdf"
    value = round(asked.value, 5)
    return {
        "id": f"{filename}-{place}",
        "filename": filename,
        "pre_text": page.before,
        "post_text": page.after,
        "table": page.table(),
        "qa": {
            "question": question,
            "answer": format_answer(asked),
            "exe_ans": float(value),
            "program": asked.program,
            "gold_inds": find_evidence(page, asked),
        },
    }


def make_questions(num_questions: int, seed: int) -> tuple[list[dict], dict[str, str]]:
    """So many questions in FinQA's own format, and the kind of each by its id; but for RARE, all are as common."""
    rng = random.Random(seed)
    rows: list[dict] = []
    kinds: dict[str, str] = {}
    taken: set[str] = set()
    count = Counter(dict.fromkeys(KINDS, 0))
    while len(rows) < num_questions:
        page, asked_here = draw_page(rng, taken), 0
        for kind in sorted(KINDS, key=lambda kind: (count[kind], rng.random())):
            drawn = draw_question(page, kind, rng) if asked_here < QUESTIONS_A_PAGE else None
            if drawn and len(rows) < num_questions:
                asked_here += 1
                rows.append(write_question(page, asked_here, *drawn))
                kinds[rows[-1]["id"]] = kind
                count[kind] += RARE.get(kind, 1)
    return rows, kinds


# Through FinQA's steps


def split_pages(rows: list[dict], kinds: dict[str, str], seed: int) -> dict[str, list[dict]]:
    """The prepared rows of each split, whole companies and near-duplicate pages on one side.

    Raises:  UserError when a split would be empty.
    """
    pages = [page_of(row) for row in rows]
    contexts = {page: row["context"] for page, row in zip(pages, rows)}
    near = dict(zip(contexts, group_near_duplicates(list(contexts.values()))))
    groups = join_groups([near[page] for page in pages], [page.split("/")[0] for page in pages])
    count = Counter(kinds[row["id"]] for row in rows)
    level = {
        kind for kind, n in count.items() if n * min(SHARES.values()) >= 3
    }  # others would bend the sizes
    names = [["row", *({kinds[row["id"]]} & level)] for row in rows]
    splits = split_by_group(groups, names, seed, SHARES)
    empty = [name for name, chosen in splits.items() if not chosen]
    if empty:
        raise UserError(f"--num_questions {len(rows)}: leaves {', '.join(empty)} empty; give more")
    return {name: [rows[i] for i in chosen] for name, chosen in splits.items()}


def count_words(rows: list[dict]) -> dict[str, int]:
    """Words that a ranker reads of one candidate at the most: question, context and the longest candidate."""
    own = [max(len(text.split()) for text in row["candidates"]) for row in rows]
    words = sorted(len(f"{row['question']} {row['context']}".split()) + k for row, k in zip(rows, own))
    return {f"p{q}": words[q * (len(words) - 1) // 100] for q in (50, 90)} | {"max": words[-1]}


def build(args: argparse.Namespace) -> tuple[dict[str, list[dict]], dict[str, list[dict]], dict]:
    """The ranking rows of each split, the same questions in FinQA's format, and their summary."""
    raw, kinds = make_questions(args.num_questions, args.seed)
    report = check_rows(raw)
    prepared, problems = prepare_rows(raw, context="page")
    found, more = candidate_rows(
        prepared, num_candidates=args.num_candidates, corruption_rate=args.corruption_rate, seed=args.seed
    )
    ranked, most = reward_rows(found)
    if not ranked:
        raise UserError(f"--num_candidates {args.num_candidates}: no question has so many: {more[0][1]}")
    splits = split_pages(ranked, kinds, args.seed)
    by_id = {row["id"]: row for row in raw}
    own = {name: [by_id[row["id"]] for row in rows] for name, rows in splits.items()}
    count = {name: Counter(kinds[row["id"]] for row in rows) for name, rows in splits.items()}
    return (
        splits,
        own,
        {
            "seed": args.seed,
            "num_candidates": args.num_candidates,
            "corruption_rate": args.corruption_rate,
            "rows": {"drawn": len(raw), "usable": report["usable"], "ranked": len(ranked)}
            | {name: len(rows) for name, rows in splits.items()},
            "kinds": {kind: {name: count[name][kind] for name in splits} for kind in KINDS},
            "num_steps": report["num_steps"],
            "words": count_words(ranked),
            "problems": [list(problem) for problem in (*problems, *more, *most)],
            "shortcuts": measure_shortcuts(found, [page_of(row) for row in found], args.seed),
        },
    )


def print_summary(summary: dict) -> None:
    """Counts by kind and split, lengths, shortcuts, and what failed."""
    print("rows     " + ", ".join(f"{name} {count}" for name, count in summary["rows"].items()))
    print("steps    " + ", ".join(f"{steps}: {count}" for steps, count in summary["num_steps"].items()))
    print("words    " + ", ".join(f"{name} {count}" for name, count in summary["words"].items()))
    print(format_table(list(summary["kinds"].items()), list(SHARES)))
    print("\n".join(describe_shortcuts(summary["shortcuts"])))
    problems = summary["problems"]
    print(f"left out: {len(problems)}")
    for name, reason in problems[:MOST_SHOWN]:
        print(f"  {name}: {reason}")


def parse_flags(argv: list[str] | None) -> argparse.Namespace:
    """The flags, checked."""
    parser = Parser("Write ranking rows made of questions on invented annual reports.")
    parser.prog = "python -m data.reports"
    add = parser.add_argument
    add(
        "--output_dir",
        default="rows/reports",
        metavar="DIR",
        help="folder to write to (default: rows/reports)",
    )
    help_text = "in all; 74 %% of them for training (default: 1080)"
    add("--num_questions", type=number(int, 100, 30_000), default=1080, help=help_text)
    add("--num_candidates", type=number(int, 2), default=8, help="K, the right one included (default: 8)")
    help_text = "share of a program's parts that a wrong candidate changes (default: 0.5)"
    add("--corruption_rate", type=number(float, 0.01, 1), default=0.5, help=help_text)
    add(
        "--seed",
        type=number(int, 0),
        default=0,
        help="of pages, questions, candidates and splits (default: 0)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    """Write the rows; returns their summary."""
    args = parse_flags(argv)
    splits, own, summary = build(args)
    texts = {f"{name}.finqa.json": json.dumps(rows, indent=1) + "\n" for name, rows in own.items()}
    for name, rows in splits.items():
        texts[f"{name}.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files = {name: text.encode() for name, text in texts.items()}
    summary["sha256"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files["summary.json"] = (json.dumps(summary, indent=1) + "\n").encode()
    write_files(Path(args.output_dir), files, "--output_dir")
    print_summary(summary)
    print(f"written to {args.output_dir}: {', '.join(files)}")
    print(
        json.dumps({"output_dir": args.output_dir} | {k: summary[k] for k in ("rows", "words", "shortcuts")})
    )
    return summary | {"output_dir": args.output_dir}


if __name__ == "__main__":
    run_main(main)
