"""What a page calls a program's operands: cells by row and column, numbers of the text by the words around them."""

import pytest

from data.candidates import candidate_rows, page_of
from data.finqa_rows import prepare_rows
from data.operand_names import LONGEST_NAME, OperandNames, shorten
from data.parts import read_page
from data.probes import Pool, numbers_of, split_text, words_of
from data.programs import infix, parse_program
from data.shortcuts import ALLOWED, describe_shortcuts, measure_shortcuts
from tests.data.invented import invented_rows

TABLE = [
    ["in millions", "2011", "2010"],
    ["net revenue", "$ 554.9", "555.3"],
    ["net  loss", "( 12 )", "555.3"],
]
CONTEXT = (
    "in millions | 2011 | 2010\nnet revenue | $ 554.9 | 555.3\nnet income increased $ 23.4 million in 2011 ."
)


def names_of(program: str, table=TABLE, context=CONTEXT) -> dict[str, str]:
    return OperandNames(read_page(table, context), table, context).of(parse_program(program))


@pytest.mark.parametrize(
    "program, names",
    [
        ("subtract(554.9, 23.4)", {"554.9": "net revenue, 2011", "23.4": "net income increased _ million in 2011"}),
        ("divide(-12, const_100)", {"-12": "net loss, 2011"}),  # spaces as one; a constant has no name
        ("add(12, 4)", {"12": "net loss, 2011"}),  # found by its absolute value; 4 is nowhere
        ("table_max(net revenue, none)", {}),
        ("multiply(2011, 554.9)", {"554.9": "net revenue, 2011", "2011": "income increased $ 23.4 million in _ ."}),
    ],
)  # fmt: skip
def test_names(program, names):
    assert names_of(program) == names


@pytest.mark.parametrize(
    "program, name",
    [
        ("subtract(-12, 555.3)", "net loss, 2010"),  # the same row as -12
        ("subtract(554.9, 555.3)", "net revenue, 2010"),
        ("add(555.3, 1)", "net revenue, 2010"),  # the first one
    ],
)
def test_of_several_places_the_one_beside_the_others(program, name):
    assert names_of(program)["555.3"] == name


def test_a_table_without_heads_and_a_short_first_line_have_names_all_the_same():
    assert names_of("add(5, 7)", [["", ""], ["", "5"], ["x", "6", "7"]], "") == {"7": "x"}


def test_long_names_lose_their_middle():
    assert shorten("a" * LONGEST_NAME) == "a" * LONGEST_NAME
    short = shorten("x" * 50 + "y" * 50)
    assert (short[:30], short[-30:]) == ("x" * 30, "y" * 30)
    assert len(short) <= LONGEST_NAME + 4


def test_a_candidate_with_names_reads_as_arithmetic():
    program = parse_program("subtract(554.9, 555.3), divide(#0, const_100)")
    assert infix(program, {"554.9": "a, b", "555.3": "c"}) == "(554.9 [a, b] - 555.3 [c]) / 100"


@pytest.fixture(scope="module")
def made() -> tuple[list[dict], list[dict]]:
    """(prepared rows, the same with named candidates)."""
    prepared = prepare_rows(invented_rows(200, seed=5))[0]
    return prepared, candidate_rows(prepared, seed=3, name_operands=True)[0]


def test_right_and_wrong_candidates_are_named_by_one_rule(made):
    """From the program as it is written and the page alone."""
    prepared, rows = made
    assert len(rows) == len(prepared)
    for row, source in zip(rows, prepared, strict=True):
        page = source["table"], source["context"]
        names = OperandNames(read_page(*page), *page)
        for text, program in zip(row["candidates"], row["programs"], strict=True):
            parsed = parse_program(program)
            assert text.rpartition(" = ")[0] == infix(parsed, names.of(parsed))
        assert all("[" in text for text in row["candidates"])


def test_names_alone_do_not_tell(made):
    """The choice of wrong candidates is made by the look of the texts with their names."""
    _, rows = made
    found = measure_shortcuts(rows, [page_of(row) for row in rows], seed=11)
    for name in ("candidates_only", "set_aware", "position", "length"):
        assert found[name] <= found["chance"] + ALLOWED, describe_shortcuts(found)


def test_probes_see_names_as_words_and_no_numbers_in_them():
    named, plain = "554.9 [net revenue, 2011] - 12 [a (b), 2010] = 542.9", "554.9 - 12 = 542.9"
    assert split_text(named) == split_text(plain)
    assert numbers_of(named)[:7] == numbers_of(plain)[:7]
    words = words_of(named)
    assert {"name net", "name net revenue,", "different names 2 of 2"} <= set(words)
    assert {word for word in words_of(plain) if not word.startswith("length")} <= set(words)
    assert Pool.of([named]).parts.shape == Pool.of([plain]).parts.shape
