"""Questions on an invented page, each with its program in FinQA's language and the answer, worked out apart from it.

For each kind there are several wordings, and the same numbers serve several kinds: which operation, which order of
the operands and which cells are meant is said by the question alone.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from data.report_pages import REVENUE, Page, Quantity


class Asked(NamedTuple):
    """What a kind makes of a page."""

    program: str
    value: float  # the answer, not rounded
    words: dict[str, object]  # for the wording
    rows: tuple[Quantity, ...]  # of the table, that the answer needs
    percent: bool = False
    text: bool = False  # the page's fact is needed, too


WORDINGS = {
    "change": (
        "what was the change in {x} from {old} to {new} ?",
        "by how much did {x} change between {old} and {new} ?",
        "what is {x} in {new} minus {x} in {old} ?",
        "how far did {x} move from {old} to {new} ?",
    ),
    "gap": (
        "how much {lower} was {x} in {year} than in {other} ?",
        "by how much was {x} {lower} in {year} than in {other} ?",
        "compared with {other} , how much {lower} was {x} in {year} ?",
    ),
    "percent_change": (
        "what was the percent change in {x} from {old} to {new} ?",
        "by what percent did {x} change between {old} and {new} ?",
        "what was the growth rate of {x} from {old} to {new} ?",
        "in percent , how much did {x} grow from {old} to {new} ?",
    ),
    "level": (
        "what percent of {x} in {other} was {x} in {year} ?",
        "as a percent of its {other} level , what was {x} in {year} ?",
        "{x} in {year} came to what percent of {x} in {other} ?",
    ),
    "share": (
        "what percent of {total} was {x} in {year} ?",
        "what share of {total} did {x} make up in {year} ?",
        "in {year} , what portion of {total} was {x} ?",
        "in {year} , {x} was what percent of {total} ?",
    ),
    "joint_share": (
        "what percent of {total} were {x} and {y} together in {year} ?",
        "what share of {total} did {x} and {y} jointly make up in {year} ?",
        "in {year} , what portion of {total} was {x} plus {y} ?",
    ),
    "ratio": (
        "what was the ratio of {x} to {y} in {year} ?",
        "how many times {y} was {x} in {year} ?",
        "what was {x} divided by {y} in {year} ?",
    ),
    "sum_years": (
        "what was {x} in {old} and {new} together ?",
        "what was the sum of {x} in {old} and {new} ?",
        "adding {old} and {new} , what was {x} in total ?",
    ),
    "sum_rows": (
        "what were {x} and {y} together in {year} ?",
        "what was the sum of {x} and {y} in {year} ?",
        "in {year} , how much was {x} plus {y} ?",
    ),
    "row_gap": (
        "by how much did {x} exceed {y} in {year} ?",
        "in {year} , how much larger was {x} than {y} ?",
        "what was {x} less {y} in {year} ?",
    ),
    "mean_of_two": (
        "what was the average of {x} in {old} and {new} ?",
        "averaged over {old} and {new} , what was {x} ?",
        "what was the mean of {x} for {old} and {new} ?",
    ),
    "mean_of_rows": (
        "what was the average of {x} and {y} in {year} ?",
        "in {year} , what was the mean of {x} and {y} ?",
    ),
    "table_average": (
        "what was the average of {x} over all years shown ?",
        "what was {x} in an average year of the table ?",
        "over the years {first} to {last} , what was the mean of {x} ?",
    ),
    "table_max": (
        "what was the highest {x} of the years shown ?",
        "what was {x} in its best year , from {first} to {last} ?",
        "what is the maximum of {x} in the table ?",
    ),
    "table_min": (
        "what was the lowest {x} of the years shown ?",
        "what was the smallest {x} from {first} to {last} ?",
        "what is the minimum of {x} in the table ?",
    ),
    "table_sum": (
        "what was {x} over all years shown , in total ?",
        "what is the sum of {x} from {first} to {last} ?",
        "adding up all years of the table , what was {x} ?",
    ),
    "same_again": (
        "if {x} changes after {new} as much as it did from {old} to {new} , what will it be ?",
        "if the change in {x} from {old} to {new} is repeated once , what will {x} be ?",
    ),
    "mean_of_three": (
        "what was the average of {x} in {first} , {old} and {new} ?",
        "what was the mean of {x} for {first} , {old} and {new} ?",
    ),
    "yearly_change": (
        "what was the average yearly change in {x} from {old} to {new} ?",
        "by how much did {x} change each year , on average , from {old} to {new} ?",
    ),
    "per": (
        "what was {x} for each of the {runs} in {year} ?",
        "spread over the {runs} , what was {x} in {year} ?",
        "in {year} , what was {x} divided by the number of {runs} ?",
    ),
    "times": (
        "how many {asked} in {year} , in all ?",
        "what was the total number of {asked} in {year} ?",
    ),
    "plus": (
        "what does the board expect for {x} in {next} ?",
        "what will {x} be in {next} , if all goes to plan ?",
        "if the plan is met , what is {x} in {next} ?",
    ),
}
WORDINGS["plus_percent"] = WORDINGS["minus_percent"] = WORDINGS["plus"]
WORDINGS["percent_part"] = (
    "how much is the change in {x} that is planned for {next} ?",
    "by what amount does the board plan to change {x} in {next} ?",
)


def two_years(page: Page, rng: random.Random) -> tuple[int, int]:
    """An earlier and a later year."""
    old, new = sorted(rng.sample(page.years, 2))
    return old, new


def over_years(page: Page, rng: random.Random, kind: str) -> Asked | None:
    """The kinds that compare or join one quantity's values in some years; None where no row, or no years, will do."""
    rows = [q for q in page.values if not (q.is_stock and kind == "sum_years")]
    if not rows:
        return None
    x = rng.choice(rows)
    old, new = two_years(page, rng)
    a, b = page.values[x][old], page.values[x][new]
    words = {"x": x.spoken, "old": old, "new": new}
    if kind == "change":
        return Asked(f"subtract({b}, {a})", b - a, words, (x,))
    if kind == "gap":
        year, other, less, more = (old, new, a, b) if rng.randrange(2) else (new, old, b, a)
        lower = "lower" if less < more else "higher"
        words = {"x": x.spoken, "year": year, "other": other, "lower": lower}
        less, more = sorted((less, more))
        return Asked(f"subtract({more}, {less})", more - less, words, (x,))
    if kind == "percent_change":
        return Asked(f"subtract({b}, {a}), divide(#0, {a})", (b - a) / a, words, (x,), percent=True)
    if kind == "level":
        year, other, top, base = (old, new, a, b) if rng.randrange(2) else (new, old, b, a)
        words = {"x": x.spoken, "year": year, "other": other}
        return Asked(f"divide({top}, {base})", top / base, words, (x,), percent=True)
    if kind == "sum_years":
        return Asked(f"add({a}, {b})", a + b, words, (x,))
    if kind == "mean_of_two":
        return Asked(f"add({a}, {b}), divide(#0, const_2)", (a + b) / 2, words, (x,))
    if kind == "same_again":
        return Asked(f"subtract({b}, {a}), add({b}, #0)", 2 * b - a, words, (x,))
    if kind == "yearly_change" and new - old > 1:
        program = f"subtract({b}, {a}), divide(#0, const_{new - old})"
        return Asked(program, (b - a) / (new - old), words, (x,))
    if kind == "mean_of_three" and len(page.years) > 2:
        first, old, new = sorted(rng.sample(page.years, 3))
        a, b, c = (page.values[x][year] for year in (first, old, new))
        program = f"add({a}, {b}), add(#0, {c}), divide(#1, const_3)"
        return Asked(program, (a + b + c) / 3, words | {"first": first, "old": old, "new": new}, (x,))
    return None


def over_rows(page: Page, rng: random.Random, kind: str) -> Asked | None:
    """The kinds that compare or join two quantities in one year; None if the page has no such two."""
    rows = [q for q in page.values if q != page.total]
    if kind in ("sum_rows", "mean_of_rows"):
        rows = [q for q in rows if q != REVENUE]
    if kind != "ratio" and rows:
        rows = [q for q in rows if q.unit == rows[0].unit]
    if len(rows) < 2:
        return None
    x, y = rng.sample(rows, 2)
    year = rng.choice(page.years)
    a, b = page.values[x][year], page.values[y][year]
    if a < b and kind in ("row_gap", "ratio"):
        x, y, a, b = y, x, b, a
    words = {"x": x.spoken, "y": y.spoken, "year": year}
    if kind == "ratio":
        return Asked(f"divide({a}, {b})", a / b, words, (x, y))
    if kind == "sum_rows":
        return Asked(f"add({a}, {b})", a + b, words, (x, y))
    if kind == "row_gap":
        return Asked(f"subtract({a}, {b})", a - b, words, (x, y))
    return Asked(f"add({a}, {b}), divide(#0, const_2)", (a + b) / 2, words, (x, y))  # mean_of_rows


def of_total(page: Page, rng: random.Random, kind: str) -> Asked | None:
    """The kinds that take parts of a total, or of revenue; None if the page has too few."""
    total = page.total or next(iter(page.values))
    parts = [q for q in page.values if q != total and q.unit == total.unit]
    if len(parts) < 2:
        return None
    x, y = rng.sample(parts, 2)
    year, whole = rng.choice(page.years), page.values[total]
    words = {"x": x.spoken, "y": y.spoken, "total": total.spoken, "year": year}
    a, b, t = page.values[x][year], page.values[y][year], whole[year]
    if kind == "share":
        return Asked(f"divide({a}, {t})", a / t, words, (x, total), percent=True)
    program = f"add({a}, {b}), divide(#0, {t})"
    return Asked(program, (a + b) / t, words, (x, y, total), percent=True)  # joint_share


def of_table(page: Page, rng: random.Random, kind: str) -> Asked | None:
    """The kinds that take a whole row of the table; None for a sum of stocks."""
    rows = [q for q in page.values if not (q.is_stock and kind == "table_sum")]
    if not rows:
        return None
    x = rng.choice(rows)
    values = list(page.values[x].values())
    value = {
        "table_average": sum(values) / len(values),
        "table_max": max(values),
        "table_min": min(values),
        "table_sum": sum(values),
    }[kind]
    words = {"x": x.spoken.removeprefix("the "), "first": page.years[0], "last": page.years[-1]}
    if kind != "table_max" and kind != "table_min":
        words["x"] = x.spoken
    return Asked(f"{kind}({x.name}, none)", value, words, (x,))


def of_fact(page: Page, rng: random.Random, kind: str) -> Asked | None:
    """The kind that needs the page's fact; None where the fact is of another."""
    fact = page.fact
    if fact.kind != kind and not (kind == "percent_part" and fact.kind in ("plus_percent", "minus_percent")):
        return None
    x, n = fact.quantity, fact.number
    a = page.values[x][fact.year]
    program, value = {
        "per": (f"divide({a}, {n})", a / n),
        "times": (f"multiply({a}, {n})", a * n),
        "plus": (f"add({a}, {n})", a + n),
        "plus_percent": (f"multiply({a}, {n}%), add({a}, #0)", a + a * n / 100),
        "minus_percent": (f"multiply({a}, {n}%), subtract({a}, #0)", a - a * n / 100),
        "percent_part": (f"multiply({a}, {n}%)", a * n / 100),
    }[kind]
    return Asked(program, value, fact.words | {"x": x.spoken, "year": fact.year}, (x,), text=True)


KINDS: dict[str, Callable[[Page, random.Random, str], Asked | None]] = {
    **dict.fromkeys(("change", "gap", "percent_change", "level", "sum_years", "mean_of_two"), over_years),
    **dict.fromkeys(("same_again", "yearly_change", "mean_of_three"), over_years),
    **dict.fromkeys(("ratio", "sum_rows", "row_gap", "mean_of_rows"), over_rows),
    **dict.fromkeys(("share", "joint_share"), of_total),
    **dict.fromkeys(("table_average", "table_max", "table_min", "table_sum"), of_table),
    **dict.fromkeys(("per", "times", "plus", "plus_percent", "minus_percent", "percent_part"), of_fact),
}


def draw_question(page: Page, kind: str, rng: random.Random) -> tuple[str, Asked] | None:
    """A question of a kind in one of its wordings, and what it asks; None where the page has none, or one near 0."""
    asked = KINDS[kind](page, rng, kind)
    if asked is None or abs(asked.value) < 0.01:  # which rounding would hide
        return None
    return rng.choice(WORDINGS[kind]).format(**asked.words), asked
