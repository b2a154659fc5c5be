"""A graded reward for each candidate, from what its program and value share with the right ones."""

import math
from collections import Counter
from collections.abc import Iterable

from data.amounts import close, read_number
from data.programs import TABLE_OPERATIONS, Program, ProgramError, live_steps, parse_program

FORMULA = """\
reward = 1                                      where the value is the right one, within 1e-3 of it
reward = 0.6 * (0.3 * shape + 0.4 * operands + 0.2 * scale + 0.1 * sign)      elsewhere, so at most 0.6
  shape     2 * the longest common subsequence of the two programs' operations / the number of both
  operands  2 * the operands in common (as a multiset, by value) / the number of both
  scale     1 for values of the same order of magnitude, 0.5 for a factor of 10, 0 beyond (of |log10| 0.5 and 1.5)
  sign      1 where both values are positive, or both negative
Without a program (an answer alone): 0.6 * (0.2 * scale + 0.1 * sign) / 0.3 * 0.5, so at most 0.3."""
MOST = 0.6
SHAPE, OPERANDS, SCALE, SIGN = 0.3, 0.4, 0.2, 0.1
Problems = list[tuple[str, str]]


def operands_of(program: Program) -> Counter:
    """The operands that are no earlier steps, as values; a row by its name."""
    return Counter(
        arg if step.operation in TABLE_OPERATIONS else round(read_number(arg), 9)
        for step in program
        for arg in step.args
        if not arg.startswith("#") or step.operation in TABLE_OPERATIONS
    )


def common_operations(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(b) + 1)
    for x in a:
        before = list(best)
        for j, y in enumerate(b, 1):
            best[j] = before[j - 1] + 1 if x == y else max(best[j - 1], before[j])
    return best[-1]


def scale_score(value: float, gold: float) -> float:
    """1, 0.5 or 0: how near the orders of magnitude are."""
    if value == 0 or gold == 0:
        return float(value == gold)
    apart = abs(math.log10(abs(value) / abs(gold)))
    return 1.0 if apart <= 0.5 else 0.5 if apart <= 1.5 else 0.0


def score(
    value: float | str, program: Program | None, gold_value: float | str, gold_program: Program
) -> float:
    """The reward of one candidate, in [0, 1]; FORMULA says how."""
    if close(value, gold_value):
        return 1.0
    scale = sign = 0.0
    if not isinstance(value, str) and not isinstance(gold_value, str):
        scale, sign = scale_score(value, gold_value), float(value * gold_value > 0 or value == gold_value)
    if program is None:
        return MOST * 0.5 * (SCALE * scale + SIGN * sign) / (SCALE + SIGN)
    program, gold_program = live_steps(program), live_steps(gold_program)
    operations = [[step.operation for step in p] for p in (program, gold_program)]
    shape = 2 * common_operations(*operations) / sum(map(len, operations))
    own, right = operands_of(program), operands_of(gold_program)
    operands = 2 * (own & right).total() / max(1, own.total() + right.total())
    return MOST * (SHAPE * shape + OPERANDS * operands + SCALE * scale + SIGN * sign)


def reward_rows(rows: Iterable[dict]) -> tuple[list[dict], Problems]:
    """The rows of data.candidates with rewards, without what only earlier steps need.

    Returns: rows with question, context, candidates, rewards (1 for the right value) | (id, reason) of rows left out.
    """
    made, problems = [], []
    for row in rows:
        try:
            rewards = row_rewards(row)
            first = {name: row[name] for name in ("id", "question", "context", "candidates")}
        except (
            ProgramError,
            KeyError,
            TypeError,
            IndexError,
            AttributeError,
            ArithmeticError,
            ValueError,
        ) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            problems.append((str(row.get("id")), f"rewards: {what}"))
            continue
        first["rewards"] = rewards  # a row that had some already gets new ones
        made.append(first | {k: v for k, v in row.items() if k not in first})
    return made, problems


def row_rewards(row: dict) -> list[float]:
    """The rewards of a row's candidates, to 4 decimals. Raises ProgramError, KeyError, ..."""
    sizes = {name: len(row[name]) for name in ("candidates", "programs", "values")}
    if len(set(sizes.values())) > 1 or not row["candidates"]:
        raise ProgramError(f"candidates, programs and values are of lengths {sizes}")
    gold_value, gold_program = row["values"][row["gold"]], parse_program(row["program"])
    programs = [parse_program(text) if text else None for text in row["programs"]]
    scores = [score(v, p, gold_value, gold_program) for v, p in zip(row["values"], programs, strict=True)]
    return [round(value, 4) for value in scores]


def count_ties(rows: Iterable[dict]) -> dict[str, int]:
    """Questions with two best candidates, and those whose rewards are all zero."""
    rewards = [row["rewards"] for row in rows]
    return {
        "ties": sum(r.count(max(r)) > 1 for r in rewards),
        "all_zero": sum(not any(r) for r in rewards),
    }
