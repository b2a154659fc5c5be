"""FinQA's program language: text to steps, steps to a value, steps to text that reads as arithmetic.

    subtract(5735, 5829), divide(#0, 5829)      as the data set writes it: #0 is the result of the first step
    (5735 - 5829) / 5829 = -0.01613             as a candidate reads (infix and format_value)

Operations: add, subtract, multiply, divide, exp and greater of two operands; table_max, table_min, table_sum and
table_average of a row by its name. An operand is a number (5735, $ 5,735, -4.5, 3.5%), a constant (const_100,
const_m1) or an earlier step (#0). Also read: the published files' token lists ["add(", "1", "2", ")", "EOF"] and
nested calls, divide(subtract(5735, 5829), 5829).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from data.amounts import CONSTANT, cell_number, clean_operand, read_number

SYMBOLS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/", "exp": "^", "greater": ">"}
TABLE_OPERATIONS = {
    "table_average": lambda numbers: sum(numbers) / len(numbers),
    "table_max": max,
    "table_min": min,
    "table_sum": sum,
}
OPERATIONS = (*SYMBOLS, *TABLE_OPERATIONS)
MOST_STEPS, LONGEST_TEXT = 40, 2000  # assumptions: the data's longest program has 13 steps

CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\(")

Table = Sequence[Sequence[object]]


class ProgramError(ValueError):
    """What is wrong with a program, and in which step."""


@dataclass(frozen=True)
class Step:
    """One operation; args are a row's name, or two operands, each 5735, 3.5%, const_100 or #0."""

    operation: str
    args: tuple[str, ...]

    def __str__(self) -> str:
        args = (*self.args, "none") if self.operation in TABLE_OPERATIONS else self.args
        return f"{self.operation}({', '.join(args)})"


Program = tuple[Step, ...]


# From text to steps


def parse_program(source: str | Sequence[str]) -> Program:
    """The steps of a program.

    Args:    source: FinQA's text, flat or nested | the token list of its files.
    Raises:  ProgramError: an unknown operation, an operand that is no number, a reference to no earlier step, ...
    """
    if not isinstance(source, str):
        source = join_tokens(source)
    text = re.sub(r"[\s,;]*(EOF)?[\s,;]*$", "", source)
    if not text:
        raise ProgramError("the program is empty")
    try:
        return check_program(tuple(_Reader(text, thousands=False).read()))
    except ProgramError:
        if not re.search(r"\d,\d{3}(?!\d)", text):
            raise
        return check_program(tuple(_Reader(text, thousands=True).read()))


def join_tokens(tokens: Sequence[str]) -> str:
    """A token list as a program's text."""
    if not all(isinstance(token, str) for token in tokens):
        raise ProgramError(f"the program is {list(tokens)!r:.60}; expected text or a list of tokens")
    joined = ", ".join(token.strip() for token in tokens if token.strip() not in ("EOF", "", ","))
    return re.sub(r",\s*\)", ")", re.sub(r"\(\s*,\s*", "(", joined))


def check_program(program: Program) -> Program:
    """The program itself, if each step has a known operation and operands. Raises ProgramError."""
    if not 0 < len(program) <= MOST_STEPS:
        raise ProgramError(f"{len(program)} steps; expected 1 to {MOST_STEPS}")
    for i, step in enumerate(program):
        where = f"step {i + 1}, {step}"
        if step.operation not in OPERATIONS:
            raise ProgramError(f"{where}: no operation {step.operation!r}; expected {', '.join(OPERATIONS)}")
        wanted = 1 if step.operation in TABLE_OPERATIONS else 2
        if len(step.args) != wanted:
            raise ProgramError(f"{where}: {len(step.args)} operands; expected {wanted}")
        for arg in () if wanted == 1 else step.args:
            if arg.startswith("#"):
                if not arg[1:].isdecimal() or int(arg[1:]) >= i:
                    raise ProgramError(f"{where}: {arg} is no earlier step")
            elif read_number(arg) is None:
                raise ProgramError(f"{where}: {arg!r} is no number")
    return program


class _Reader:
    """Reads calls from left to right; a nested call becomes a step before the one it stands in."""

    def __init__(self, text: str, thousands: bool):
        self.text, self.thousands, self.at, self.steps = text, thousands, 0, []

    def read(self) -> list[Step]:
        while self.at < len(self.text):
            self.call()
            self.at = re.compile(r"[\s,;]*").match(self.text, self.at).end()
        return self.steps

    def fail(self, what: str) -> ProgramError:
        return ProgramError(f"step {len(self.steps) + 1}, at {self.text[self.at :][:30]!r}: {what}")

    def call(self) -> str:
        found = CALL.match(self.text, self.at)
        if not found:
            raise self.fail("expected operation(operand, operand)")
        operation, self.at = found[1].lower(), found.end()
        if len(self.steps) > MOST_STEPS:
            raise ProgramError(f"more than {MOST_STEPS} steps")
        args = [self.row_name()] if operation.startswith("table_") else self.operands()
        self.steps.append(Step(operation, tuple(args)))
        return f"#{len(self.steps) - 1}"

    def row_name(self) -> str:
        end = re.compile(rf"\s*,\s*none\s*\)|\s*\)\s*(?=$|[,;]\s*(?:{'|'.join(OPERATIONS)})\s*\()", re.I)
        found = end.search(self.text, self.at)
        if not found:
            raise self.fail("expected a row's name and ', none)'")
        name, self.at = self.text[self.at : found.start()].strip(), found.end()
        return name

    def operands(self) -> list[str]:
        args, comma = [], r",(?!\d{3}(?!\d))" if self.thousands else ","
        while True:
            if CALL.match(self.text, self.at):
                args.append(self.call())
            else:
                found = re.compile(rf"(?:(?!{comma})[^()])*").match(self.text, self.at)
                self.at = found.end()
                args.append(re.sub(r"^const_?", "const_", clean_operand(found[0]).lower()))
            found = re.compile(r"\s*([,)])").match(self.text, self.at)
            if not found:
                raise self.fail("expected ',' or ')'")
            self.at = found.end()
            if found[1] == ")":
                return args


# From steps to text


def format_program(program: Program) -> str:
    """The program as FinQA writes it; parse_program reads it back."""
    return ", ".join(map(str, program))


def live_steps(program: Program) -> Program:
    """The steps that the last one needs, renumbered."""
    needed, queue = set(), [len(program) - 1]
    while queue:
        i = queue.pop()
        if i not in needed:
            needed.add(i)
            queue += [int(arg[1:]) for arg in references(program[i])]
    number = {f"#{i}": f"#{new}" for new, i in enumerate(sorted(needed))}
    kept = [program[i] for i in sorted(needed)]
    return tuple(
        s if s.operation in TABLE_OPERATIONS else Step(s.operation, tuple(number.get(a, a) for a in s.args))
        for s in kept
    )


def references(step: Step) -> list[str]:
    """The operands of a step that are earlier steps."""
    return [] if step.operation in TABLE_OPERATIONS else [arg for arg in step.args if arg.startswith("#")]


def infix(program: Program, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """The program as arithmetic: each inner step in parentheses, constants as numbers, average(a row's name).

    Args:    names: what to write behind an operand, in brackets (data/operand_names.py).
    Raises:  ProgramError where the text would be longer than LONGEST_TEXT: a step is written at each place it is used.
    """
    texts = []
    for i, step in enumerate(program):
        if step.operation in TABLE_OPERATIONS:
            texts.append(f"{step.operation.removeprefix('table_')}({step.args[0]})")
            continue
        left, right = (_operand_text(arg, program, texts, names) for arg in step.args)
        texts.append(f"{left} {SYMBOLS[step.operation]} {right}")
        if not names and len(texts[-1]) > LONGEST_TEXT:
            raise ProgramError(f"step {i + 1}, {step}: longer than {LONGEST_TEXT} characters as arithmetic")
    return texts[-1]


def _operand_text(arg: str, program: Program, texts: list[str], names: Mapping[str, str]) -> str:
    if arg.startswith("#"):
        i = int(arg[1:])
        return texts[i] if program[i].operation in TABLE_OPERATIONS else f"({texts[i]})"
    constant = CONSTANT.fullmatch(arg)
    text = f"{'-' if constant[1] else ''}{constant[2]}" if constant else arg
    return f"{text} [{names[arg]}]" if arg in names else text


# From steps to a value


def run_program(program: Program, table: Table = ()) -> float | str:
    """The last step's value: a number, or yes or no from greater.

    Args:    table: rows of cells, the first cell of each its name; for the table operations.
    Raises:  ProgramError: division by zero, no such row, a row without numbers, too large, ...
    """
    values: list[float | str] = []
    for i, step in enumerate(program):
        try:
            values.append(_run_step(step, values, table))
        except ProgramError as error:
            raise ProgramError(f"step {i + 1}, {step}: {error}") from None
    return values[-1]


def _run_step(step: Step, values: list[float | str], table: Table) -> float | str:
    if step.operation in TABLE_OPERATIONS:
        return float(TABLE_OPERATIONS[step.operation](row_numbers(table, step.args[0])))
    a, b = (values[int(arg[1:])] if arg.startswith("#") else read_number(arg) for arg in step.args)
    if isinstance(a, str) or isinstance(b, str):
        raise ProgramError("yes or no is no operand")
    if step.operation == "greater":
        return "yes" if a > b else "no"
    try:
        result = {
            "add": lambda: a + b,
            "subtract": lambda: a - b,
            "multiply": lambda: a * b,
            "divide": lambda: a / b,
            "exp": lambda: a**b,
        }[step.operation]()
    except ZeroDivisionError:
        raise ProgramError("division by zero") from None
    except OverflowError:
        raise ProgramError("the result is too large") from None
    if isinstance(result, complex) or not math.isfinite(result):
        raise ProgramError("the result is no finite number")
    return result


def row_numbers(table: Table, name: str) -> list[float]:
    """The numbers of the row with that name; cells without a number are passed over. Raises ProgramError."""
    plain = [lambda text: " ".join(text.lower().split()), lambda text: re.sub(r"\W+", "", text.lower())]
    for reduce in plain:  # word for word, then by letters and digits alone
        found = [row for row in table if row and reduce(str(row[0])) == reduce(name)]
        if found:
            numbers = [
                cell_number(cell) for cell in found[-1][1:]
            ]  # of two, the last: as FinQA's own evaluation
            numbers = [number for number in numbers if number is not None]
            if not numbers:
                raise ProgramError(f"row {name!r} has no numbers")
            return numbers
    raise ProgramError(f"the table has no row {name!r}" if table else f"no table to find row {name!r} in")
