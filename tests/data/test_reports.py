"""The built-in ranking rows: invented pages by their own rules, programs against the answers, splits and files."""

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from core.errors import UserError
from data.finqa_rows import check_rows
from data.programs import parse_program, run_program
from data.report_pages import Fact, Page, Quantity, draw_page
from data.report_questions import KINDS, WORDINGS, draw_question
from data.reports import SHARES, format_answer, main, make_questions

ROOT = Path(__file__).resolve().parents[2]
NUM_QUESTIONS = 110  # candidates cost 0.1 s a question


def load(folder: Path) -> dict[str, list[dict]]:
    return {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in SHARES
    }


def page_of(row: dict) -> str:
    return row["id"].rpartition("-")[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict]:
    """A small set, and its summary."""
    folder = tmp_path_factory.mktemp("reports") / "rows"
    return folder, main(["--output_dir", str(folder), "--num_questions", str(NUM_QUESTIONS)])


# Pages and questions


@pytest.fixture
def page() -> Page:
    """Sales 20, 30, 50 and costs 10, 15, 40 over three years, 25 stores."""
    years = (2010, 2011, 2012)
    sales, costs = Quantity("revenue", "revenue", "$"), Quantity("costs", "the costs", "$")
    people = Quantity("employees", "the number of employees", "people", True)
    values = dict(zip((sales, costs, people), ((20, 30, 50), (10, 15, 40), (100, 90, 80))))
    values = {row: dict(zip(years, own)) for row, own in values.items()}
    fact = Fact("per", "it had 25 stores at the end of 2012 .", 25, sales, 2012, {"runs": "stores"})
    return Page(
        "norbury home", years, values, None, "million", fact, "$ in millions", years[::-1], ["a ."], []
    )


BY_HAND = {  # question of a kind -> value and program, on that page
    "percent_change": ("revenue from 2010 to 2012", 1.5, "subtract(50, 20), divide(#0, 20)"),
    "change": ("the costs from 2011 to 2012", 25, "subtract(40, 15)"),
    "sum_years": ("revenue in 2010 and 2011", 50, "add(20, 30)"),
    "mean_of_two": ("the costs in 2010 and 2012", 25, "add(10, 40), divide(#0, const_2)"),
    "row_gap": ("did revenue exceed the costs in 2011", 15, "subtract(30, 15)"),
    "table_max": ("the highest costs of", 40, "table_max(costs, none)"),
    "table_average": ("average of the number of employees over", 90, "table_average(employees, none)"),
    "mean_of_three": ("of revenue in 2010", 100 / 3, "add(20, 30), add(#0, 50), divide(#1, const_3)"),
    "yearly_change": ("in revenue from 2010 to 2012", 15, "subtract(50, 20), divide(#0, const_2)"),
    "per": ("what was revenue for each of the stores in 2012", 2, "divide(50, 25)"),
    "same_again": ("in revenue from 2010 to 2011 is repeated", 40, "subtract(30, 20), add(30, #0)"),
    "level": ("what percent of the costs in 2012 was the costs in 2010", 0.25, "divide(10, 40)"),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_kinds_by_hand(page, kind):
    told, value, program = BY_HAND[kind]
    rng = random.Random(0)
    drawn = dict(filter(None, (draw_question(page, kind, rng) for _ in range(500))))
    asked = [asked for question, asked in drawn.items() if told in question]
    assert asked, list(drawn)
    assert {(a.value, a.program) for a in asked} == {(value, program)}


def test_what_a_page_cannot_be_asked(page):
    rng = random.Random(0)
    for kind in ("times", "plus", "minus_percent", "percent_part", "joint_share", "sum_rows"):
        assert draw_question(page, kind, rng) is None, kind
    drawn = [draw_question(page, kind, rng)[1] for kind in ("sum_years", "table_sum") for _ in range(50)]
    assert {row.name for asked in drawn for row in asked.rows} == {"revenue", "costs"}  # no sum of employees


def test_pages_hold_what_they_promise():
    rng, taken = random.Random(3), set()
    for _ in range(200):
        page = draw_page(rng, taken)
        numbers = [value for row in page.values.values() for value in row.values()] + [page.fact.number]
        assert len({*numbers}) == len(numbers)
        assert all(11 <= value <= 999 for value in numbers)
        rows = list(page.values.values())
        if page.total:
            assert all(rows[-1][y] == sum(row[y] for row in rows[:-1]) for y in page.years)
        assert 2 <= len(page.years) <= 4
        assert 3 <= len(page.values) <= 6
        text = "\n".join(page.before + page.after)
        assert re.findall(rf"\b{page.fact.number}\b", text) == [str(page.fact.number)]
        assert "{" not in text
        assert text == text.lower()
    assert len(taken) == 200


def test_programs_give_the_answers():
    """The executor on the table against the arithmetic of each kind."""
    rng, taken = random.Random(4), set()
    seen = Counter()
    for _ in range(150):
        page = draw_page(rng, taken)
        for kind in KINDS:
            drawn = draw_question(page, kind, rng)
            if drawn:
                value = run_program(parse_program(drawn[1].program), page.table())
                assert value == pytest.approx(drawn[1].value, rel=1e-9), drawn
                seen[kind] += 1
    assert set(seen) == set(KINDS) == set(WORDINGS)


@pytest.mark.parametrize(
    "value, percent, told", [(0.1234, True, "12.3%"), (40, False, "40"), (2.505, False, "2.5")]
)
def test_answers_as_written(page, value, percent, told):
    asked = draw_question(page, "per", random.Random(0))[1]
    assert format_answer(asked._replace(value=value, percent=percent)) == told


def test_finqa_finds_nothing_wrong():
    rows, kinds = make_questions(600, seed=5)
    report = check_rows(rows)
    assert (report["rows"], report["usable"], report["problems"]) == (600, 600, {})
    assert set(report["num_steps"]) == {1, 2, 3}
    count = Counter(kinds.values())
    assert set(count) == set(KINDS)
    assert 0 < count.pop("mean_of_three") < 0.5 * min(count.values())
    assert min(count.values()) >= 0.6 * max(count.values())
    assert len({row["qa"]["question"] for row in rows}) > 500
    for row in rows:
        assert set(row) == {"id", "filename", "pre_text", "post_text", "table", "qa"}
        text = row["pre_text"] + row["post_text"]
        for name, told in row["qa"]["gold_inds"].items():
            kind, _, i = name.partition("_")
            assert told == text[int(i)] if kind == "text" else f"the {row['table'][int(i)][0]} of" in told


# Files


def test_rows_are_ranking_rows(written):
    folder, summary = written
    splits = load(folder)
    assert {name: len(rows) for name, rows in splits.items()} == {
        name: summary["rows"][name] for name in splits
    }
    assert sum(map(len, splits.values())) >= 0.98 * NUM_QUESTIONS
    for name, rows in splits.items():
        assert len(rows) == pytest.approx(SHARES[name] * NUM_QUESTIONS, abs=4)
        for row in rows:
            assert len(row["candidates"]) == len(row["rewards"]) == 8
            assert sorted(row["rewards"])[-2] < 1 == max(row["rewards"])
            assert len(set(row["candidates"])) == 8
    assert sum(count["train"] > 0 for count in summary["kinds"].values()) >= len(KINDS) - 1
    assert set(summary["shortcuts"]) >= {"candidates_only", "position", "length", "chance"}
    assert summary["words"]["max"] < 150


def test_no_company_straddles(written):
    splits = load(written[0])
    held = {name: {page_of(row).split("/")[0] for row in rows} for name, rows in splits.items()}
    pages = {name: {row["context"] for row in rows} for name, rows in splits.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not held[a] & held[b]
        assert not pages[a] & pages[b]
        words = [[{*re.findall(r"\w+", text)} for text in pages[name]] for name in (a, b)]
        assert not [1 for x in words[0] for y in words[1] if len(x & y) >= 0.7 * len(x | y)]


def test_finqa_files_hold_the_same_questions(written):
    folder, _ = written
    for name, rows in load(folder).items():
        own = json.loads((folder / f"{name}.finqa.json").read_text())
        assert [row["id"] for row in own] == [row["id"] for row in rows]
        assert [row["qa"]["question"] for row in own] == [row["question"] for row in rows]
        assert check_rows(own)["problems"] == {}


@pytest.mark.slow
def test_same_seed_same_bytes(written, tmp_path):
    flags = [sys.executable, "-m", "data.reports", "--num_questions", str(NUM_QUESTIONS)]
    done = subprocess.run(
        [*flags, "--output_dir", str(tmp_path / "rows")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for path in sorted(written[0].iterdir()):
        assert (tmp_path / "rows" / path.name).read_bytes() == path.read_bytes(), path.name
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["rows"] == written[1]["rows"]


def test_another_seed_other_pages():
    one, other = ({row["filename"] for row in make_questions(150, seed)[0]} for seed in (0, 1))
    assert len(one & other) <= 1
    again = make_questions(150, 1)[0]
    assert again == make_questions(150, 1)[0]


@pytest.mark.parametrize(
    "flags",
    [["--num_questions", "5"], ["--num_candidates", "1"], ["--corruption_rate", "0"]],
    ids=lambda x: x[0],
)
def test_flags_that_cannot_be(tmp_path, flags):
    with pytest.raises(UserError, match=flags[0]):
        main(["--output_dir", str(tmp_path / "rows"), *flags])
    assert not (tmp_path / "rows").exists()
