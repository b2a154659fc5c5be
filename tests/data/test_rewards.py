"""Graded rewards, worked out by hand."""

import pytest

from data.programs import parse_program
from data.rewards import common_operations, count_ties, operands_of, reward_rows, scale_score, score

GOLD = parse_program("subtract(120, 100), divide(#0, 100)")  # 0.2


@pytest.mark.parametrize(
    "program, value, reward",
    [
        ("subtract(120, 100), divide(#0, 100)", 0.2, 1.0),
        ("divide(20, 100)", 0.2, 1.0),  # another way to the same value
        ("divide(20, 100)", 0.20019, 1.0),  # within 1e-3
        # other operands: shape 1, operands 0, scale 1, sign 1
        ("subtract(55, 40), divide(#0, 40)", 0.375, 0.6 * (0.3 + 0.2 + 0.1)),
        # swapped: operands 2 * 2 / 6, as (120, 100, 100) and (100, 120, 120) share two; scale 1, sign 0
        ("subtract(100, 120), divide(#0, 120)", -1 / 6, 0.6 * (0.3 + 0.4 * 2 / 3 + 0.2)),
        # a step less: shape 2 * 1 / 3, operands 2 * 2 / 5, scale 0 (a factor of 100), sign 1
        ("subtract(120, 100)", 20.0, 0.6 * (0.3 * 2 / 3 + 0.4 * 4 / 5 + 0.1)),
        # nothing in common but the sign
        ("multiply(7, 9)", 63.0, 0.6 * 0.1),
        ("multiply(7, -9)", -63.0, 0.0),
    ],
)
def test_rewards_by_hand(program: str, value: float, reward: float):
    assert score(value, parse_program(program), 0.2, GOLD) == pytest.approx(reward)


def test_answers_alone():
    assert score(0.2, None, 0.2, GOLD) == 1
    assert score(0.3, None, 0.2, GOLD) == pytest.approx(0.3)  # scale and sign
    assert score(-0.3, None, 0.2, GOLD) == pytest.approx(0.2)  # scale alone
    assert score(2.0, None, 0.2, GOLD) == pytest.approx(0.6 * 0.5 * (0.2 * 0.5 + 0.1) / 0.3)
    assert score("no", None, "yes", GOLD) == 0
    assert score("yes", None, "yes", GOLD) == 1


def test_a_wrong_value_never_has_more_than_06():
    assert score(20.0, GOLD, 0.2, GOLD) <= 0.6  # the right program, said to give another value


def test_parts():
    assert common_operations(["add", "divide"], ["add", "add", "divide"]) == 2
    assert common_operations(["subtract", "divide"], ["divide", "subtract"]) == 1
    assert operands_of(parse_program("add(const_100, 5%), divide(#0, 100)")) == {100.0: 2, 0.05: 1}
    assert operands_of(parse_program("table_max(net sales, none)")) == {"net sales": 1}
    assert [scale_score(v, 10) for v in (10, 3.2, -31, 3.1, 300, 400, 0)] == [1, 1, 1, 0.5, 0.5, 0, 0]


def a_row(**changes) -> dict:
    row = {"id": "A/2009/page_1.pdf-1", "question": "growth?", "context": "sales", "gold": 1, "num_steps": 2}
    row |= {"candidates": ["120 - 100 = 20", "(120 - 100) / 100 = 0.2"], "values": [20.0, 0.2]}
    row |= {
        "programs": ["subtract(120, 100)", "subtract(120, 100), divide(#0, 100)"],
        "kinds": ["step", "gold"],
    }
    return row | {"program": "subtract(120, 100), divide(#0, 100)"} | changes


def test_rows_become_ranking_rows():
    rows, problems = reward_rows([a_row()])
    assert not problems
    assert list(rows[0])[:5] == ["id", "question", "context", "candidates", "rewards"]
    assert rows[0]["rewards"] == [round(0.6 * (0.2 + 0.32 + 0.1), 4), 1.0]
    assert rows[0]["kinds"] == ["step", "gold"]
    assert rows[0]["num_steps"] == 2


def test_rows_that_have_rewards_get_new_ones():
    (wanted,), _ = reward_rows([a_row()])
    assert reward_rows([wanted | {"rewards": [9, 9]}])[0] == [wanted]


def test_bad_rows_are_reported_not_fatal():
    bare = {name: value for name, value in a_row(id="r").items() if name != "context"}
    bad = [a_row(values=[1.0]), a_row(programs=["x", "y"]), {"id": "q"}, a_row(gold=7), bare]
    rows, problems = reward_rows([*bad, a_row()])
    assert len(rows) == 1
    assert [name for name, _ in problems] == ["A/2009/page_1.pdf-1"] * 2 + ["q", "A/2009/page_1.pdf-1", "r"]
    assert "lengths" in problems[0][1]
    assert "no field 'candidates'" in problems[2][1]
    assert "no field 'context'" in problems[4][1]


def test_ties_and_zeros_are_counted():
    assert count_ties([{"rewards": r} for r in ([1, 1, 0], [0, 0], [0.5, 0.2])]) == {"ties": 2, "all_zero": 1}
