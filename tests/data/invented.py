"""Invented rows in FinQA's published form: small tables of a few years, questions and programs, from a seed."""

import random

from data.programs import parse_program, run_program

LINES = ["net sales", "cost of goods", "operating income", "interest expense", "income taxes", "net income"]
LINES += ["total assets", "inventories", "goodwill", "long-term debt"]
TEMPLATES = [  # (question, program): a and b are cells of one row in two years, c is another row's, in the year of a
    ("what was the change in {row} from {b_year} to {a_year}?", "subtract({a}, {b})"),
    (
        "what was the percent change in {row} from {b_year} to {a_year}?",
        "subtract({a}, {b}), divide(#0, {b})",
    ),
    ("what share of {other} is {row} in {a_year}?", "divide({a}, {c})"),
    ("what is the total of {row} in {a_year} and {b_year}?", "add({a}, {b})"),
    ("what is the average of {row} in {a_year} and {b_year}?", "add({a}, {b}), divide(#0, const_2)"),
    ("what is {row} in {a_year} in thousands?", "multiply({a}, const_1000)"),
]


def invented_rows(num_questions: int, seed: int) -> list[dict]:
    """Rows of about two questions a page."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < num_questions:
        years = [rng.randint(2001, 2014) - i for i in range(rng.randint(3, 4))]
        years = [years[0] - i for i in range(len(years))]
        names = rng.sample(LINES, rng.randint(5, 7))
        sizes = {name: 10 ** rng.uniform(1.5, 4) for name in names}
        table = [["( in millions )", *map(str, years)]]
        table += [[n, *(f"{sizes[n] * rng.uniform(0.6, 1.6):.1f}" for _ in years)] for n in names]
        page = f"CO{len(rows)}/{years[0]}/page_{rng.randint(10, 99)}.pdf"
        text = [
            f"the company opened {rng.randint(3, 90)} stores for $ {rng.randint(11, 900)} million in {years[0]} ."
        ]
        for number in range(1, 3):
            i, j = rng.sample(range(1, len(names) + 1), 2)
            p, q = sorted(rng.sample(range(1, len(years) + 1), 2))
            words = {"row": table[i][0], "other": table[j][0], "a_year": table[0][p], "b_year": table[0][q]}
            words |= {"a": table[i][p], "b": table[i][q], "c": table[j][p]}
            question, program = (
                text.format(**words) for text in rng.choices(TEMPLATES, [3, 4, 3, 2, 2, 1])[0]
            )
            qa = {
                "question": question,
                "program": program,
                "gold_inds": {f"table_{i}": f"the {table[i][0]} is {p}"},
            }
            rows.append(
                {
                    "id": f"{page}-{number}",
                    "filename": page,
                    "pre_text": [*text, "."],
                    "post_text": ["the end ."],
                }
                | {"table": table, "qa": qa | {"answer": "", "exe_ans": value_of(program, table)}}
            )
    return rows[:num_questions]


def value_of(program: str, table: list) -> float:
    """The program's value, to five decimals as FinQA gives it."""
    return round(run_program(parse_program(program), table), 5)
