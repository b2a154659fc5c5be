"""What a program is made of, and what a page has to put in its place: parts, shapes, numbers, and names for changes."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data.amounts import NUMBER, cell_operand, clean_operand, read_number
from data.programs import TABLE_OPERATIONS, Program, Step, live_steps

KINDS = ("row", "year", "number", "operation", "swap", "scale", "sign", "step")
NUMBER_IN_TEXT = re.compile(rf"(?<![\w.,#-]){NUMBER.pattern}(?![\w-])")
SCALE_CONSTANTS = ("const_100", "const_1000", "const_1000000")


# Pages


@dataclass
class Page:
    """The numbers of a page: cells by place, places by absolute value, and the numbers of the text."""

    cells: dict[tuple[int, int], str] = field(default_factory=dict)
    places: dict[float, list[tuple[int, int]]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of rows with numbers
    numbers: list[str] = field(default_factory=list)


def read_page(table: list[list[str]], context: str) -> Page:
    """The numbers of a table and of the lines of a context that are no table."""
    page = Page()
    for r, cells in enumerate(table):
        for c, cell in enumerate(cells[1:], 1):
            operand = cell_operand(cell)
            value = None if operand is None else read_number(operand)
            if value is not None and (r > 0 or not is_year(operand)):  # years in the first line name columns
                page.cells[r, c] = operand
                page.places.setdefault(abs(value), []).append((r, c))
        if any((r, c) in page.cells for c in range(1, len(cells))) and cells[0]:
            page.names.append(cells[0])
    found = NUMBER_IN_TEXT.finditer("\n".join(text_lines(context)))
    numbers = dict.fromkeys(clean_operand(match[0]) for match in found)
    page.numbers = [n for n in numbers if read_number(n) and abs(read_number(n)) not in page.places]
    return page


def text_lines(context: str) -> list[str]:
    """The lines of a context that are no table."""
    return [line for line in context.split("\n") if " | " not in f" {line} "]


def is_year(operand: str) -> bool:
    """Whether an operand looks like a year: 1980 to 2030, whole."""
    return bool(re.fullmatch(r"19[89]\d|20[0-3]\d", operand))


def as_written(program: Program, page: Page) -> Program:
    """The program's needed steps, each operand as the page writes it: a right number must not look unlike others."""

    def written(arg: str) -> str:
        value = read_number(arg)
        if value is None or arg.startswith("const_"):
            return arg
        same = [page.cells[place] for place in page.places.get(abs(value), [])] + page.numbers
        return next((text for text in same if read_number(text) == value), arg)

    return tuple(
        step if step.operation in TABLE_OPERATIONS else Step(step.operation, tuple(map(written, step.args)))
        for step in live_steps(program)
    )


# Parts and shapes


def count_parts(program: Program) -> int:
    """Operations and different operands."""
    return len(program) + len(operands_of(program))


def operands_of(program: Program) -> list[str]:
    """The different operands that are no earlier steps; a table operation's is its row's name."""
    return list(dict.fromkeys(arg for step in program for arg in step.args if not arg.startswith("#")))


def count_changes(gold: Program, other: Program) -> int:
    """How many parts differ: operations (as a multiset) and different operands; 1 where only places do."""
    changes = 0
    for parts in (lambda p: Counter(step.operation for step in p), lambda p: Counter(operands_of(p))):
        a, b = parts(gold), parts(other)
        changes += max((a - b).total(), (b - a).total())
    return changes or int(gold != other)


def name_changes(gold: Program, other: Program, page: Page) -> tuple[str, ...]:
    """Which of KINDS make one program of another, by what they look like: each operand that is new, the operations."""
    before, after = operands_of(gold), operands_of(other)
    gone = [name for name in before if name not in after] or before
    kinds = {name_operand(name, gone, page) for name in after if name not in before}
    operations = [Counter(step.operation for step in program) for program in (gold, other)]
    if len(gold) != len(other):
        factor = any(is_scale(name, page) for name in set(before) ^ set(after))
        kinds.add("scale" if factor and abs(len(gold) - len(other)) == 1 else "step")
    elif operations[0] != operations[1]:
        kinds.add("operation")
    return tuple(kind for kind in KINDS if kind in kinds) or ("swap",)


def name_operand(name: str, gone: list[str], page: Page) -> str:
    """What kind of change a new operand is, beside those whose place it may have taken."""
    value = read_number(name)
    if value is None:
        return "row"
    if is_scale(name, page):
        return "scale"
    if any(read_number(old) == -value for old in gone):
        return "sign"
    places = page.places.get(abs(value), [])
    old = [
        place for text in gone if read_number(text) for place in page.places.get(abs(read_number(text)), [])
    ]
    same_row = any(r == own for r, _ in places for own, _ in old)
    return "year" if same_row else "row" if places else "number"


def is_scale(name: str, page: Page) -> bool:
    """Whether an operand is a factor of 100, 1000 or 1000000, and no cell of the table."""
    return name in SCALE_CONSTANTS or (
        read_number(name) in (100, 1000, 1e6) and abs(read_number(name)) not in page.places
    )


def shape_of(program: Program) -> Program:
    """The program with letters for its operands, in the order in which they come; constants and 100 stay.

    A table operation's row is R.
    """
    letters: dict[str, str] = {}

    def letter(arg: str) -> str:
        if arg.startswith(("#", "const_")) or read_number(arg) == 100:
            return arg
        return letters.setdefault(arg, chr(ord("A") + len(letters)))

    return tuple(
        Step(step.operation, ("R",) if step.operation in TABLE_OPERATIONS else tuple(map(letter, step.args)))
        for step in program
    )


def letters_of(shape: Program) -> list[str]:
    """The letters that a shape has, in order; R is left out."""
    return sorted({arg for step in shape for arg in step.args if len(arg) == 1 and arg != "R"})


@dataclass
class Corpus:
    """What the file's own programs look like: how often each operation and each shape occurs."""

    operations: Counter
    shapes: Counter

    @classmethod
    def of(cls, programs: Iterable[Program]) -> "Corpus":
        programs = [live_steps(program) for program in programs]
        operations = Counter(step.operation for program in programs for step in program)
        return cls(operations, Counter(shape_of(program) for program in programs if len(program) < 10))
