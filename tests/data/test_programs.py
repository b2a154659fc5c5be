"""FinQA's programs: parsed, run and rendered by hand-made tables; then those of the real files, where they are."""

import json
from pathlib import Path

import pytest

from data.amounts import agrees, cell_operand, close, format_value, read_number
from data.finqa_rows import context_table
from data.programs import ProgramError, Step, format_program, infix, live_steps, parse_program, run_program

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "finqa"

# made up
TABLE = [
    ["( in millions )", "2009", "2008", "2007"],
    ["net sales", "$ 120.5", "$ 100", "( 20.5 )"],
    ["tax rate , net ( a )", "30% ( 30 % )", "20%", ""],
    ["loss", "-4.5 ( 4.5 )", "1,500", "n/a"],
    ["notes", "see page 3", "", "-"],
]


@pytest.mark.parametrize(
    "program, value",
    [
        ("add(5, 3)", 8),
        ("subtract(5, 3)", 2),
        ("multiply(5, 3)", 15),
        ("divide(6, 3)", 2),
        ("exp(2, 10)", 1024),
        ("greater(5, 3)", "yes"),
        ("greater(3, 5)", "no"),
        ("greater(3, 3)", "no"),
        ("subtract(5735, 5829), divide(#0, 5829)", -94 / 5829),
        ("divide(subtract(5735, 5829), 5829)", -94 / 5829),  # the nested form
        ("add(1, 2), add(3, 4), multiply(#0, #1)", 21),
        ("add(1, 2), multiply(#0, #0), subtract(#1, #0)", 6),
        ("multiply(0.5, const_100)", 50),
        ("multiply(7, const_m1)", -7),
        ("divide(1, const_1000000)", 1e-6),
        ("multiply(200, 3.5%)", 7),
        ("add($ 1,234, 5)", 1239),
        ("add(1,234,567, 1)", 1234568),
        ("add(-4.5, - 2)", -6.5),
        ("  Add( 1 , 2 ) ;subtract( #0 , 1 ), EOF", 2),
        ("table_sum(net sales, none)", 200),
        ("table_average(net sales, none)", 200 / 3),
        ("table_max(net sales, none)", 120.5),
        ("table_min(net sales, none)", -20.5),
        ("table_average(tax rate , net ( a ), none)", 0.25),  # a comma and parentheses in the name
        ("table_max(LOSS)", 1500),
        ("table_max(net sales, none), table_min(net sales, none), subtract(#0, #1)", 141),
    ],
)
def test_a_program_has_its_value(program: str, value: float | str):
    steps = parse_program(program)
    assert run_program(steps, TABLE) == pytest.approx(value)
    assert parse_program(format_program(steps)) == steps


def test_the_token_lists_of_the_published_files():
    tokens = ["subtract(", "5829", "5735", ")", "divide(", "#0", "5735", ")", "EOF"]
    assert format_program(parse_program(tokens)) == "subtract(5829, 5735), divide(#0, 5735)"
    tokens = ["table_max(", "net sales", "none", ")", "EOF"]
    assert parse_program(tokens) == (Step("table_max", ("net sales",)),)


@pytest.mark.parametrize(
    "program, message",
    [
        ("", "empty"),
        ("power(2, 3)", "step 1, power.*no operation 'power'"),
        ("add(1, 2), add(#1, 3)", "step 2.*#1 is no earlier step"),
        ("add(1, two)", "'two' is no number"),
        ("add(1)", "1 operands; expected 2"),
        ("add(1, 2, 3)", "3 operands; expected 2"),
        ("add(1, 2", "expected ',' or '\\)'"),
        ("5 + 3", "expected operation"),
        ("divide(1, 0)", "step 1, divide.*division by zero"),
        ("subtract(2, 2), divide(1, #0)", "step 2.*division by zero"),
        ("exp(10, 400)", "too large"),
        ("exp(-8, 0.5)", "no finite number"),
        ("greater(1, 2), add(#0, 1)", "yes or no is no operand"),
        ("table_sum(gross sales, none)", "no row 'gross sales'"),
        ("table_sum(notes, none)", "no numbers"),
        ("add(1, 2), " * 41, "41 steps; expected 1 to 40"),
    ],
)
def test_what_is_wrong_and_in_which_step(program: str, message: str):
    with pytest.raises(ProgramError, match=message):
        run_program(parse_program(program), TABLE)


@pytest.mark.parametrize(
    "cell, operand",
    [
        ("$ 2457", "2457"),
        ("-4.5 ( 4.5 )", "-4.5"),
        ("$ -3 ( 3 )", "-3"),
        ("( 12 )", "-12"),
        ("$ ( 1,234.5 )", "-1234.5"),
        ("3.2%", "3.2%"),
        ("30% ( 30 % )", "30%"),
        ("5 %", "5%"),
        (7, "7"),
        ("", None),
        (None, None),
        ("-", None),
        ("n/a", None),
        ("10-12", None),
        ("3rd", None),
    ],
)
def test_a_cell_as_an_operand(cell: object, operand: str | None):
    assert cell_operand(cell) == operand


def test_numbers():
    assert [read_number(text) for text in ("5,735", "$ 5", "3.5%", "const_m1", "const_1000", "-.5")] == [
        5735, 5, 0.035, -1, 1000, -0.5,
    ]  # fmt: skip
    assert read_number("abc") is None
    assert read_number("") is None
    assert close(1.0, 1.0009)
    assert not close(1.0, 1.0011)
    assert not close(1, -1)
    assert close("yes", "yes")
    assert not close("yes", 1.0)


@pytest.mark.parametrize(
    "program, text",
    [
        ("subtract(5735, 5829), divide(#0, 5829)", "(5735 - 5829) / 5829"),
        ("divide(1, 2)", "1 / 2"),
        ("add(1, 2), add(#0, 3), divide(#1, const_3)", "((1 + 2) + 3) / 3"),
        ("multiply(7, const_m1)", "7 * -1"),
        ("table_average(net sales, none), divide(#0, 2)", "average(net sales) / 2"),
        ("exp(2, 3), greater(#0, 7)", "(2 ^ 3) > 7"),
        ("add(9, 9), subtract(4, 1)", "4 - 1"),  # the first step is not used
    ],
)
def test_arithmetic(program: str, text: str):
    assert infix(parse_program(program)) == text


def test_unused_steps_go():
    steps = parse_program("add(9, 9), subtract(4, 1), divide(#1, 2)")
    assert format_program(live_steps(steps)) == "subtract(4, 1), divide(#0, 2)"
    doubling = "add(1, 2), " + ", ".join(f"add(#{i}, #{i})" for i in range(20))
    with pytest.raises(ProgramError, match="longer than 2000 characters"):
        infix(parse_program(doubling))


@pytest.mark.parametrize(
    "value, text",
    [(-0.016126, "-0.01613"), (0.5, "0.5"), (127.4, "127.4"), (12.3456, "12.35"), (1042490.2, "1042490")]
    + [
        (0, "0"),
        (-2094000000.0, "-2094000000"),
        (99.999, "100"),
        (1e-6, "0.000001"),
        ("yes", "yes"),
        (20, "20"),
    ],
)
def test_one_format_for_all_values(value: float | str, text: str):
    assert format_value(value) == text


@pytest.mark.parametrize(
    "value, answer, expected",
    [
        (0.53, "53%", True),
        (53.0, "53%", True),
        (0.52772, "53%", True),
        (0.1269, "12.6%", True),  # cut, not rounded
        (0.1241, "12.6%", False),
        (127.4, "127.40", True),
        (3.2, "$ 3.2 million", True),
        (3200000.0, "$ 3.2 million", True),
        (-0.016, "-1.6%", True),
        (0.016, "-1.6%", False),
        ("yes", "yes", True),
        ("yes", "no", False),
        (1.0, "yes", False),
        (0.34719, 0.34719, True),
        (0.347194, 0.34719, True),
        (5.0, "", False),
        (101.0, "101 stores created per year", True),
    ],
)
def test_conventions_of_answers(value: float | str, answer: object, expected: bool):
    assert agrees(value, answer) is expected


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared FinQA files are not here")
def test_the_real_programs_execute_to_the_given_answers():
    wrong, n = [], 0
    for path in sorted(REAL.iterdir()):
        text = path.read_text()
        rows = (
            json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        )
        for row in rows:
            fields, table = row.get("qa", row), row.get("table") or context_table(row.get("context", ""))
            steps = parse_program(fields["program"])
            n += 1
            assert parse_program(format_program(steps)) == steps
            if not agrees(run_program(steps, table), fields.get("exe_ans", fields["answer"])):
                wrong.append(row["id"])
    assert len(wrong) <= 0.01 * n, wrong
