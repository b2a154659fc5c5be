"""What a page calls a program's operands: a cell by its row and column, a number of the text by the words around it.

A number is looked up by its value, as a reader would find it on the page: which program it comes from, right or wrong,
plays no part. Of several places the one that shares a row, then a column, with an operand named before it.
"""

from collections.abc import Iterable

from data.amounts import clean_operand, read_number
from data.parts import NUMBER_IN_TEXT, Page, operands_of, text_lines
from data.programs import Program

LONGEST_NAME = 60  # characters; the middle goes
BEFORE, AFTER = 6, 3  # words around a number of the text


class OperandNames:
    """The names of a page's numbers."""

    def __init__(self, page: Page, table: list[list[str]], context: str):
        self.page, self.table = page, table
        self.around = words_around(text_lines(context))

    def of(self, program: Program) -> dict[str, str]:
        """Each operand that the page has, and its name; constants and rows' names have none."""
        names, used = {}, []
        for operand in operands_of(program):
            value = None if operand.startswith("const_") else read_number(operand)
            if value is None:
                continue
            places = self.page.places.get(abs(value), [])
            if places:
                place = min(places, key=lambda at: not_beside(at, used))
                used.append(place)
                names[operand] = self.cell_name(*place)
            elif abs(value) in self.around:
                names[operand] = self.around[abs(value)]
        return {operand: name for operand, name in names.items() if name}

    def cell_name(self, row: int, column: int) -> str:
        """The first cell of a row and of a column, as a table's heads are: "net revenue, 2011"."""
        head = self.table[0][column] if row and column < len(self.table[0]) else ""
        heads = (" ".join(str(text).split()) for text in (self.table[row][0], head))
        return ", ".join(shorten(text) for text in heads if text)


def not_beside(place: tuple[int, int], used: list[tuple[int, int]]) -> int:
    """0 for a cell in a used row, 1 in a used column, 2 elsewhere."""
    if any(place[0] == row for row, _ in used):
        return 0
    return 1 if any(place[1] == column for _, column in used) else 2


def words_around(lines: Iterable[str]) -> dict[float, str]:
    """The words before and after each number's first place in the text, by its absolute value."""
    found: dict[float, str] = {}
    for line in lines:
        for match in NUMBER_IN_TEXT.finditer(line):
            value = read_number(clean_operand(match[0]))
            if value is not None:
                before, after = line[: match.start()].split()[-BEFORE:], line[match.end() :].split()[:AFTER]
                found.setdefault(abs(value), shorten(" ".join([*before, "_", *after])))
    return found


def shorten(text: str) -> str:
    """At most LONGEST_NAME characters, the first half and the last; brackets, which end a name, as parentheses."""
    text = text.replace("[", "(").replace("]", ")")
    half = LONGEST_NAME // 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half].rstrip()} .. {text[-half:].lstrip()}"
