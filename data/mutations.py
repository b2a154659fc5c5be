"""Wrong programs that look like a right one: the pool that data/candidates.py chooses from.

A program's parts are its operations and its different operands. A mutant changes some of them, each to one of a few
alternatives that are drawn once a question, so that mutants share their mistakes as they share what is right:

    row        another row's cell, in the same column (also all operands at once)
    year       another column's cell, in the same row (also all operands at once)
    number     another number of the page; for const_2 to const_10 another one of them
    operation  another operation, drawn by how often the file's own programs use it
    swap       operands of a step, or two operands everywhere, change places
    scale      a factor of 100, 1000 or 1000000 more or less
    sign       an operand with the other sign
    step       a step more or less

Operations and steps change one by one, or the whole shape is one that the file's own programs have.
"""

import random
from bisect import bisect, insort
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from data.amounts import agrees, close, format_value, read_number
from data.parts import (
    SCALE_CONSTANTS,
    Corpus,
    Page,
    count_changes,
    count_parts,
    is_scale,
    is_year,
    letters_of,
    name_changes,
    operands_of,
    shape_of,
)
from data.programs import (
    SYMBOLS,
    TABLE_OPERATIONS,
    Program,
    ProgramError,
    Step,
    infix,
    live_steps,
    run_program,
)

COUNT_CONSTANTS = tuple(f"const_{n}" for n in range(2, 11))
# alternatives of an operand, at most: other rows, other columns, other numbers
ROWS, COLUMNS, NUMBERS = 5, 4, 4
# how often all cells move together, a step is dropped or added, the shape is another program's, two operands change
# places everywhere
JOINT_FRAC, TAIL_FRAC, SHAPE_FRAC, EXCHANGE_FRAC = 0.4, 0.1, 0.5, 0.1
TRIES, PARENTS = 600, 6  # draws a question; mutants that others stand around


@dataclass(frozen=True)
class Mutant:
    """A wrong program with its value, the kinds of what was changed, how many parts that were, its operands' names."""

    program: Program
    value: float
    kinds: tuple[str, ...] = ()
    changed: int = 0
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return f"{infix(self.program, self.names)} = {format_value(self.value)}"


# Parts and their alternatives

Part = tuple  # ("operation", step), ("operand", text), ("order", step) or ("tail",)
Alternatives = dict[Part, list[str]]  # what takes its place


def draw(rng: random.Random, items: Iterable, most: int) -> list:
    """At most `most` of the items, in a random order."""
    items = list(items)
    return rng.sample(items, min(most, len(items)))


class Mutator:
    """Draws mutants of one program."""

    def __init__(
        self, program: Program, page: Page, corpus: Corpus, rng: random.Random, like: "Mutator | None" = None
    ):
        self.program, self.page, self.corpus, self.rng = program, page, corpus, rng
        self.counts = corpus.operations
        self.shapes, self.shape_weights = self._near_shapes()
        self.rows = draw(rng, sorted({r for r, _ in page.cells}), ROWS)
        self.columns = draw(rng, sorted({c for _, c in page.cells}), COLUMNS)
        self.numbers = draw(rng, page.numbers, 2 * NUMBERS)
        if like:
            self.rows, self.columns, self.numbers = like.rows, like.columns, like.numbers
        self.place = {}  # operand -> its cell, where it is one
        for name in operands_of(program):
            value = None if name.startswith("const_") else read_number(name)
            places = [] if value is None else page.places.get(abs(value), [])
            if places:
                near = {r for r, _ in self.place.values()}  # of several, one in a row that is used already
                self.place[name] = next((p for p in places if p[0] in near), places[0])
        self.alternatives = self._alternatives()

    def _alternatives(self) -> Alternatives:
        found: Alternatives = {}
        for i, step in enumerate(self.program):
            family = TABLE_OPERATIONS if step.operation in TABLE_OPERATIONS else SYMBOLS
            others = [op for op in family if op not in (step.operation, "greater")]
            found["operation", i] = [op for op in others if op != "exp" or self.counts[op] > 5]
            if step.operation in ("subtract", "divide", "exp") and step.args[0] != step.args[1]:
                found["order", i] = [""]
        for name in operands_of(self.program):
            found["operand", name] = self._operand(name)
        found["tail",] = self._tails()
        return {part: choices for part, choices in found.items() if choices}

    def _operand(self, name: str) -> list[str]:
        value = read_number(name)
        if value is None:  # a row's name
            return [other for other in draw(self.rng, self.page.names, ROWS) if other != name]
        if is_scale(name, self.page):
            prefix = "const_" if name.startswith("const_") else ""
            return [prefix + c[6:] for c in SCALE_CONSTANTS if read_number(c) != value]
        if name.startswith("const_"):
            return [c for c in COUNT_CONSTANTS if 0 < abs(read_number(c) - value) <= 2]
        cells = self.page.cells
        if name in self.place:
            r, c = self.place[name]
            choices = [cells.get((other, c)) for other in self.rows if other != r]
            choices += [cells.get((r, other)) for other in self.columns if other != c]
            choices += [number for number in self.numbers[:1] if not is_year(number)]
        else:
            choices = [number for number in self.numbers if is_year(number) == is_year(name)][:NUMBERS]
            choices += [cells[place] for place in draw(self.rng, sorted(cells), 3) if not is_year(name)]
        if value < 0 or any(cell.startswith("-") for cell in cells.values()):
            choices.append(name[1:] if name.startswith("-") else f"-{name}")
        same = {0, *(read_number(other) for other in operands_of(self.program))}
        return [text for text in choices if text and read_number(text) not in same]

    def _tails(self) -> list[str]:
        """Steps to add behind the last, and "drop"; what is natural more often."""
        tails = ["drop"] if len(self.program) > 1 else []
        last = self.program[-1]
        plain = [arg for arg in last.args if not arg.startswith("#") and read_number(arg) is not None]
        if last.operation == "subtract" and plain:
            tails += [f"divide {plain[-1]}"] * 3 + [f"divide {plain[0]}"]
        if last.operation == "add":
            tails += ["divide const_2", f"add {self.any_number()}"]
        if last.operation == "divide":
            tails += [f"subtract {self.any_number()}", "multiply const_100"]
        tails += ["multiply const_1000", "divide const_1000", "divide const_100"]
        return tails + [f"add {self.any_number()}", f"divide {self.any_number()}"]

    def _near_shapes(self) -> tuple[list[Program], list[int]]:
        """Shapes of other programs with about as many operands, and how often they occur."""
        own = shape_of(self.program)
        size = len(letters_of(own))
        near = {s: n for s, n in self.corpus.shapes.items() if abs(len(letters_of(s)) - size) <= 1}
        near.pop(own, None)
        return list(near), list(near.values())

    def any_number(self) -> str:
        """A number of the page: a cell, or where there is none one of the text or a constant."""
        return self.rng.choice(list(self.page.cells.values()) or self.numbers or ["const_2"])

    def near_number(self) -> str:
        """A cell in the row or column of one of the program's own, else any number of the page."""
        rows, columns = ({place[i] for place in self.place.values()} for i in (0, 1))
        near = [cell for (r, c), cell in self.page.cells.items() if r in rows or c in columns]
        return self.rng.choice(near) if near else self.any_number()

    # Drawing

    def draw_mutant(self, changes: int) -> Program:
        """A program with about `changes` parts changed. Raises ProgramError where the draw makes none."""
        if self.shapes and self.rng.random() < SHAPE_FRAC:
            return self._draw_shaped(changes)
        chosen: dict[Part, str] = {}
        if self.place and self.rng.random() < JOINT_FRAC:
            chosen = self._move_together()
        exchange = ()
        names = [n for n in operands_of(self.program) if read_number(n) is not None]
        if len(names) > 1 and self.rng.random() < EXCHANGE_FRAC:
            exchange = tuple(self.rng.sample(names, 2))
        parts = [p for p in self.alternatives if p not in chosen and p != ("tail",)]
        self.rng.shuffle(parts)
        if self.rng.random() < TAIL_FRAC:
            parts.insert(0, ("tail",))
        for part in parts[: max(0, changes - len(chosen) - bool(exchange))]:
            chosen[part] = self._choose(part)
        return self._apply(chosen, exchange)

    def _draw_shaped(self, changes: int) -> Program:
        """The program's operands, some of them changed, in a shape that another program has."""
        shape = self.rng.choices(self.shapes, self.shape_weights)[0]
        chosen = self._move_together() if self.place and self.rng.random() < JOINT_FRAC else {}
        names = [n for n in operands_of(self.program) if not n.startswith("const_")]
        names = [n for n in names if read_number(n) is not None]
        rest = [("operand", n) for n in names]
        rest = [part for part in rest if part in self.alternatives and part not in chosen]
        self.rng.shuffle(rest)
        for part in rest[: max(0, changes - 1 - len(chosen))]:
            chosen[part] = self._choose(part)
        values = [chosen.get(("operand", n), n) for n in names]
        letters = letters_of(shape)
        while len(values) < len(letters):
            values.append(self.near_number())
        if self.rng.random() < 0.25 or len(values) > len(letters):
            self.rng.shuffle(values)
        if len(set(map(read_number, values[: len(letters)]))) < len(letters):
            raise ProgramError("an operand twice")
        fill = dict(zip(letters, values))
        if self.page.names:
            own = [step.args[0] for step in self.program if step.operation in TABLE_OPERATIONS]
            fill["R"] = self.rng.choice(own + self.page.names)
        return tuple(Step(step.operation, tuple(fill.get(arg, arg) for arg in step.args)) for step in shape)

    def _choose(self, part: Part) -> str:
        choices = self.alternatives[part]
        weights = [self.counts[text] + 1 if part[0] == "operation" else 1 for text in choices]
        return self.rng.choices(choices, weights)[0]

    def _move_together(self) -> dict[Part, str]:
        """All operands that are cells moved to one other row, or by one and the same number of columns."""
        to_row = self.rng.random() < 0.5
        rows, columns = ({place[i] for place in self.place.values()} for i in (0, 1))
        row, by = self.rng.choice(self.rows), self.rng.choice([-2, -1, -1, 1, 1, 2])
        if (to_row and len(rows) > 1) or (not to_row and row in rows and len(columns) > 1):
            to_row = False  # several rows would become one
        moved = {}
        for name, (r, c) in self.place.items():
            to = self.page.cells.get((row, c) if to_row else (r, c + by))
            if to and read_number(to) and to != name:
                moved["operand", name] = to
        return moved

    def _apply(self, chosen: dict[Part, str], exchange: tuple[str, ...]) -> Program:
        names = {part[1]: text for part, text in chosen.items() if part[0] == "operand"}
        if exchange:
            a, b = exchange
            names |= {a: names.get(b, b), b: names.get(a, a)}
        steps = []
        for i, step in enumerate(self.program):
            args = tuple(names.get(arg, arg) for arg in step.args)
            args = args[::-1] if ("order", i) in chosen else args
            steps.append(Step(chosen.get(("operation", i), step.operation), args))
        tail = chosen.get(("tail",), "")
        if tail == "drop":
            steps.pop()
        elif tail:
            operation, operand = tail.split(" ", 1)
            steps.append(Step(operation, (f"#{len(steps) - 1}", names.get(operand, operand))))
        return live_steps(tuple(steps))


class Found:
    """The mutants of one question so far, no two of equal value, none of which may pass for right."""

    def __init__(self, gold: Mutant, row: dict, page: Page, wanted: int):
        self.gold, self.page, self.wanted = gold, page, wanted
        self.table, self.answer = row["table"], row["answer"]
        self.is_percent = "percent" in row["question"].lower() or "%" in row["question"] + row["answer"]
        self.values, self.texts, self.mutants = [gold.value], {format_value(gold.value)}, []

    def fill(self, mutators: list[Mutator], changes: Callable[[], int], most: int, tries: int) -> None:
        """Draw from the mutators in turn until there are `most` mutants, or `tries` is up."""
        for attempt in range(tries):
            if len(self.mutants) >= most:
                return
            try:
                program = mutators[attempt % len(mutators)].draw_mutant(changes())
                changed = count_changes(self.gold.program, program)
                if changed and abs(changed - self.wanted) <= (attempt > tries // 2 or len(mutators) > 1):
                    self.add(program, changed)
            except ProgramError:
                continue

    def add(self, program: Program, changed: int) -> None:
        """Keep a program, unless its value is there already, is no number, or agrees with the answer.

        Raises:  ProgramError where it does not execute.
        """
        value = run_program(program, self.table)
        if isinstance(value, str) or not 1e-7 < abs(value) < 1e15 or format_value(value) in self.texts:
            return
        at = bisect(self.values, value)
        if any(close(value, other) for other in self.values[max(0, at - 1) : at + 1]):
            return
        both = self.is_percent and any(close(value, self.gold.value * f) for f in (100, 0.01))
        if both or agrees(value, self.answer):  # 53 and 0.53 are both 53%
            return
        infix(program)  # raises where it is too long
        insort(self.values, value)
        self.texts.add(format_value(value))
        kinds = name_changes(self.gold.program, program, self.page)
        self.mutants.append(Mutant(program, value, kinds, changed))


def mutants(
    gold: Mutant, row: dict, page: Page, rate: float, corpus: Corpus, rng: random.Random, most: int
) -> list[Mutant]:
    """At most `most` mutants of a prepared row, no two of the same value, none that agrees with the answer.

    A part of them are mutants of the right program; the others stand around a few of those, so that the right one is
    not what all the others have in common.
    Args:    rate: the share of the parts that are changed in each; one more or fewer where there are too few such.
    """
    wanted = max(1, round(rate * count_parts(gold.program)))
    found = Found(gold, row, page, wanted)
    first = Mutator(gold.program, page, corpus, rng)
    found.fill([first], lambda: wanted, most * 2 // 5, TRIES // 2)
    parents = draw(rng, found.mutants, PARENTS)
    around = [Mutator(parent.program, page, corpus, rng, like=first) for parent in parents]
    found.fill(around or [first], lambda: rng.randint(1, wanted), most, TRIES)
    found.fill([first], lambda: max(1, wanted + rng.choice((-1, 0, 1))), most, TRIES // 3)
    return found.mutants
