"""Candidates: mutants by hand, what holds for all rows, a model's samples, and nothing gives the right one away."""

import random
from collections import Counter

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from data import balance, candidates, selection
from data.amounts import agrees, close, format_value
from data.candidates import candidate_rows, page_of, read_sample, sample_rows
from data.finqa_rows import prepare_rows
from data.mutations import Mutant, Mutator
from data.parts import Corpus, as_written, count_changes, count_parts, name_changes, read_page, shape_of
from data.programs import ProgramError, format_program, infix, parse_program, run_program
from data.rewards import reward_rows
from data.shortcuts import ALLOWED, best_length, best_position, describe_shortcuts, measure_shortcuts
from tests.data.invented import invented_rows

TABLE = [["", "2009", "2008"], ["net sales", "$ 120", "$ 100"], ["costs", "80.0", "-75 ( 75 )"]]
CONTEXT = "in 2009 we had 31 stores .\n | 2009 | 2008\nnet sales | $ 120 | $ 100\ncosts | 80.0 | -75 ( 75 )"
ENOUGH = 200  # questions


def without_context(rows: list[dict]) -> dict[str, float]:
    return measure_shortcuts(rows, [page_of(row) for row in rows], seed=11)


@pytest.fixture(scope="module")
def prepared() -> list[dict]:
    return prepare_rows(invented_rows(ENOUGH, seed=5))[0]


@pytest.fixture(scope="module")
def made(prepared: list[dict]) -> list[dict]:
    rows, problems = candidate_rows(prepared, seed=3)
    assert not problems
    return rows


# Mutants


def test_the_numbers_of_a_page():
    page = read_page(TABLE, CONTEXT)
    assert page.cells == {(1, 1): "120", (1, 2): "100", (2, 1): "80.0", (2, 2): "-75"}
    assert page.names == ["net sales", "costs"]
    assert page.numbers == ["2009", "31"]


def test_a_right_operand_is_written_as_on_the_page():
    program = as_written(
        parse_program("add(1, 2), subtract(80, -75.00), multiply(#1, 31.0)"), read_page(TABLE, CONTEXT)
    )
    assert format_program(program) == "subtract(80.0, -75), multiply(#0, 31)"


def test_shapes_and_changes():
    gold = parse_program("subtract(120, 100), divide(#0, 100)")
    other = parse_program("subtract(80, 75), divide(#0, 75)")
    assert shape_of(parse_program("subtract(5, 3), divide(#0, 3)")) == shape_of(other)
    assert count_parts(gold) == 4
    assert count_changes(gold, gold) == 0
    assert count_changes(gold, other) == 2
    assert count_changes(gold, parse_program("subtract(100, 120), divide(#0, 120)")) == 1
    assert count_changes(gold, parse_program("subtract(120, 100)")) == 1
    assert count_changes(gold, parse_program("add(120, 80), divide(#0, 80)")) == 2


@pytest.mark.parametrize(
    "program, kinds",
    [
        ("subtract(120, 100)", ("step",)),
        ("subtract(100, 120), divide(#0, 120)", ("swap",)),
        ("subtract(120, 100), divide(#0, 120)", ("swap",)),
        ("add(120, 100), divide(#0, 100)", ("operation",)),
        ("subtract(80.0, -75), divide(#0, -75)", ("row",)),
        ("subtract(31, 100), divide(#0, 100)", ("number",)),
        ("subtract(-120, 100), divide(#0, 100)", ("sign",)),
        ("subtract(120, 100), divide(#0, 100), multiply(#1, const_100)", ("scale",)),
        ("divide(120, 80.0)", ("row", "step")),
    ],
)
def test_changes_have_names(program: str, kinds: tuple[str, ...]):
    gold = parse_program("subtract(120, 100), divide(#0, 100)")
    assert name_changes(gold, parse_program(program), read_page(TABLE, CONTEXT)) == kinds


def test_another_year_has_its_name():
    one, other = parse_program("add(120, 1)"), parse_program("add(100, 1)")
    assert name_changes(one, other, read_page(TABLE, CONTEXT)) == ("year",)


def test_drawn_mutants_run():
    page = read_page(TABLE, CONTEXT)
    gold = parse_program("subtract(120, 100), divide(#0, 100)")
    corpus = Corpus.of(
        [gold, parse_program("divide(120, 80)"), parse_program("add(1, 2), divide(#0, const_2)")]
    )
    mutator, kinds = Mutator(gold, page, corpus, random.Random(0)), Counter()
    for _ in range(400):
        try:
            program = mutator.draw_mutant(2)
            run_program(program, TABLE)
        except ProgramError:
            continue
        kinds.update(name_changes(gold, program, page))
        infix(program)
    assert {"row", "year", "operation", "swap", "step", "sign", "scale", "number"} <= set(kinds)


# Rows


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    for module, name, value in (
        (selection, "ROUNDS", 2),
        (balance, "PLANES", ("trees", "linear", "words")),
        (balance, "TREES", 4),
    ):
        monkeypatch.setattr(module, name, value)


def test_what_holds_for_every_row(made: list[dict], prepared: list[dict]):
    given = {row["id"]: row for row in prepared}
    for row in made:
        gold, own = row["gold"], given[row["id"]]
        assert len(row["candidates"]) == len(row["programs"]) == len(row["kinds"]) == 8
        assert row["kinds"].count("gold") == 1
        assert row["kinds"][gold] == "gold"
        assert close(row["values"][gold], own["value"])
        assert row["context"] == own["context"]
        assert row["program"] == own["program"]
        for i, (text, program, value) in enumerate(zip(row["candidates"], row["programs"], row["values"])):
            steps = parse_program(program)
            assert run_program(steps, own["table"]) == value
            assert text == f"{infix(steps)} = {format_value(value)}"
            assert not any(close(value, other) for other in row["values"][:i])
            assert i == gold or not agrees(value, row["answer"])
        assert len(set(row["candidates"])) == 8


def test_about_the_wanted_share_of_parts_is_changed(made: list[dict]):
    for row in made:
        parts = count_parts(parse_program(row["program"]))
        wanted = max(1, round(0.5 * parts))
        assert all(abs(n - wanted) <= 1 for n, kind in zip(row["changes"], row["kinds"]) if kind != "gold")


def test_places_are_even(made: list[dict]):
    counts = np.bincount([row["gold"] for row in made], minlength=8)
    assert counts.max() - counts.min() <= 1


def test_the_seed_decides(prepared: list[dict], quick: None):
    some = prepared[:24]
    first, again, other = (candidate_rows(some, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_one_thread_decides(prepared: list[dict], quick: None, monkeypatch: pytest.MonkeyPatch):
    """With two the trees' sums differ in their last bits, and the same flags give other rows on another machine."""
    seen, probe = [], selection.tree_probe

    def noted(*args):
        seen.append({pool["num_threads"] for pool in threadpool_info()})
        return probe(*args)

    monkeypatch.setattr(selection, "tree_probe", noted)
    with threadpool_limits(2):
        candidate_rows(prepared[:24])
    assert seen
    assert all(threads == {1} for threads in seen)


def test_other_numbers_of_candidates_and_rates(prepared: list[dict], quick: None):
    for number, rate in ((2, 0.5), (4, 0.0), (12, 1.0)):
        rows, _ = candidate_rows(prepared[:22], num_candidates=number, corruption_rate=rate)
        assert len(rows) == 22
        assert all(len(row["candidates"]) == number for row in rows)


def test_rows_that_cannot_have_candidates_are_reported(prepared: list[dict]):
    yes = prepared[0] | {"id": "yes-1", "program": "greater(1, 2)", "value": "no"}
    bad = [yes, {"id": "x-1"}, prepared[0] | {"id": "y-1", "program": "add(1"}]
    bad += [prepared[0] | {"id": f"{name}-1", name: None} for name in ("context", "question")]
    rows, problems = candidate_rows([*bad, prepared[1]], also=[prepared[2], bad[1]])
    assert [row["id"] for row in rows] == [prepared[1]["id"]]
    assert [name for name, _ in problems] == ["yes-1", "x-1", "y-1", "context-1", "question-1"]
    assert "yes or no" in problems[0][1]
    assert problems[3][1] == "candidates: field context is null, expected a string"


# A model's own samples


def test_samples_are_kept_once_by_value():
    row = {
        "id": "a-1",
        "question": "growth?",
        "context": CONTEXT,
        "table": TABLE,
        "answer": "20%",
        "num_steps": 2,
    }
    row["program"] = "subtract(120, 100), divide(#0, 100)"
    wrong = ["subtract(120, 100)", "add(10, 10)", "divide(120, 100)", "power(1, 2)"]
    (made,), _ = sample_rows([row], {"a-1": wrong})
    assert sorted(made["values"]) == pytest.approx([0.2, 1.2, 20])
    assert (made["gold_added"], made["unread"]) == (True, 1)
    assert made["candidates"][made["gold"]] == "(120 - 100) / 100 = 0.2"
    (made,), _ = sample_rows([row], {"a-1": [*wrong, "divide(20, 100)"]})
    assert made["candidates"][made["gold"]] == "20 / 100 = 0.2"
    assert made["gold_added"] is False
    (made,), _ = sample_rows([row], {"a-1": ["about 20 %", "$ 1,500", "-20%", "none"]})
    assert sorted(made["candidates"]) == ["-0.2", "0.2", "1500"]
    assert made["programs"] == [None] * 3
    assert reward_rows([made])[0][0]["rewards"][made["gold"]] == 1
    rows, problems = sample_rows([row, row | {"id": "b-1"}], {"a-1": ["20%", "0.2"]})
    assert not rows
    assert "fewer than two different values" in problems[0][1]
    assert problems[1] == ("b-1", "candidates: no samples")


def test_samples_as_written():
    assert read_sample("Yes.", []) == (None, "yes")
    assert read_sample("the answer is -1,234.5", []) == (None, -1234.5)
    with pytest.raises(ProgramError, match="neither"):
        read_sample("I do not know", [])


# Nothing gives the right one away


def test_candidates_alone_do_not_tell(made: list[dict]):
    found = without_context(made)
    for name in ("candidates_only", "set_aware", "position", "length"):
        assert found[name] <= found["chance"] + ALLOWED, describe_shortcuts(found)


def test_the_check_finds_another_number_format(made: list[dict]):
    planted = []
    for row in made:
        texts = [
            t if i == row["gold"] else f"{t}{'' if '.' in t else '.'}0"
            for i, t in enumerate(row["candidates"])
        ]
        planted.append(row | {"candidates": texts})
    found = without_context(planted)
    assert found["candidates_only"] > 0.5
    assert found["length"] > found["chance"] + ALLOWED


def test_the_check_finds_what_all_others_have_in_common(
    prepared: list[dict], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(candidates, "choose_sets", lambda texts, *_: [np.arange(8) for _ in texts])
    rows, _ = candidate_rows(
        prepared, seed=3
    )  # the first seven mutants of the right program, as they were drawn
    assert without_context(rows)["set_aware"] > 0.3


def test_rules_by_hand():
    rows = [{"candidates": ["a", "bb", "cc"], "gold": 1}, {"candidates": ["aaa", "b", "c"], "gold": 0}]
    assert best_position(rows) == 0.5
    assert best_length(rows) == 0.75  # the longest: one of two, then the one
    found = measure_shortcuts(rows, ["p", "q"])
    assert (found["n"], found["chance"]) == (2, pytest.approx(1 / 3))
    assert "candidates_only" not in found
    assert "not measured" in describe_shortcuts(found)[1]
    assert measure_shortcuts([], []) == {"n": 0}


def test_a_mutant_reads_as_its_arithmetic():
    assert Mutant(parse_program("divide(2, 3)"), 2 / 3).text == "2 / 3 = 0.6667"
