"""Invented pages of annual reports: a company, a few sentences, and a table of typed quantities over some years.

Written as FinQA writes a page: lower case, a space around punctuation, the header row of the table first. No two
numbers of a page are equal, so that each number of a program stands in one place.
"""

import random
from typing import NamedTuple

STARTS = (
    "al bar bel bram cal cor dal dor ell fen gar hal har jor kel kes lan lor mar mil nor ol pel per quin ral"
)
STARTS += " ros sel sten tal tor ul van ver wes wil win yor zan zel"
ENDS = "bury by croft dale den field ford gate ham hurst ia ley lin mere mont more ness o ridge row son stead ton"
ENDS += " ulis vane wick wood worth"


class Quantity(NamedTuple):
    """A row of a table: its name there, how a question calls it, and what its values are counted in."""

    name: str
    spoken: str
    unit: str  # "$" for money, in the page's own million or thousand; "" for single things
    is_stock: bool = False  # as of a day, so that years of it are not added up


class Fact(NamedTuple):
    """A sentence with the one number that the table does not hold, and what can be asked with it."""

    kind: str  # per: table / number | times: table * number | plus: + number | plus_percent, minus_percent: +- number %
    sentence: str
    number: int
    quantity: Quantity  # of the table
    year: int
    words: dict[str, str]  # for the question


class Page(NamedTuple):
    """What one invented page says, before it is written down as FinQA writes it."""

    company: str
    years: tuple[int, ...]  # ascending
    values: dict[Quantity, dict[int, int]]  # quantity -> year -> value
    total: Quantity | None  # the last row, if it is the sum of the others
    money: str  # million or thousand
    fact: Fact
    header: str
    columns: tuple[int, ...]  # the years in the order of the table
    before: list[str]
    after: list[str]

    def cell(self, quantity: Quantity, year: int) -> str:
        """A value as the table writes it."""
        value = self.values[quantity][year]
        return f"$ {value}" if quantity.unit == "$" else str(value)

    def table(self) -> list[list[str]]:
        """The rows of cells, the header first."""
        rows = [[q.name, *(self.cell(q, year) for year in self.columns)] for q in self.values]
        return [[self.header, *map(str, self.columns)], *rows]


REVENUE = Quantity("revenue", "revenue", "$")
ACCOUNTS = (  # also in each sector's table, or some of them
    Quantity("cost of sales", "the cost of sales", "$"),
    Quantity("operating profit", "operating profit", "$"),
    Quantity("research spending", "research spending", "$"),
    Quantity("employees", "the number of employees", "people", True),
)
# what a company does | the last word of its name | rows of its own: name, spoken, unit | what it runs | what is in one
SECTORS = (
    ("brews beer for pubs", "breweries", ("beer sold", "the volume of beer sold", "million litres"), "pubs"),
    ("bakes bread for supermarkets", "bakeries", ("loaves sold", "the number of loaves sold", "thousands"), "ovens"),
    ("sells furniture", "home", ("floor space", "floor space", "thousand square feet", True), "stores"),
    ("carries parcels", "couriers", ("parcels carried", "the number of parcels carried", "millions"), "vans"),
    ("runs hotels at airports", "hotels", ("nights sold", "the number of nights sold", "thousands"), "hotels"),
    ("makes bicycles", "cycles", ("bicycles sold", "the number of bicycles sold", "thousands"), "workshops"),
    ("processes milk", "dairy", ("milk processed", "the volume of milk processed", "million litres"), "plants"),
    ("builds houses", "homes", ("houses sold", "the number of houses sold", ""), "sites"),
    ("supplies heat to towns", "energy", ("heat delivered", "the heat delivered", "gigawatt hours"), "boilers"),
    ("recycles glass", "glass", ("glass recycled", "the weight of glass recycled", "thousand tonnes"), "depots"),
    ("makes medical pumps", "medical", ("pumps shipped", "the number of pumps shipped", ""), "clinics"),
    ("prints books", "press", ("books printed", "the number of books printed", "thousands"), "presses"),
    ("flies short routes", "air", ("passengers", "the number of passengers", "thousands"), "aircraft"),
    ("quarries stone", "stone", ("stone quarried", "the weight of stone quarried", "thousand tonnes"), "quarries"),
    ("grows vegetables", "farms", ("land farmed", "the land farmed", "hectares", True), "farms"),
    ("publishes games", "games", ("games sold", "the number of games sold", "thousands"), "studios"),
)  # fmt: skip
# the total: name, spoken, unit, is it a stock, and its parts as (name, spoken)
BREAKDOWNS = (
    (("total sales", "total sales", "$", False), (("europe", "sales in europe"), ("asia", "sales in asia"),
     ("americas", "sales in the americas"), ("africa", "sales in africa"))),
    (("total costs", "total costs", "$", False), (("wages", "the cost of wages"), ("rent", "the cost of rent"),
     ("energy", "energy costs"), ("transport", "transport costs"), ("insurance", "insurance costs"))),
    (("total staff", "the number of all staff", "people", True), (("engineers", "the number of engineers"),
     ("sales staff", "the number of sales staff"), ("drivers", "the number of drivers"),
     ("office staff", "the number of office staff"))),
    (("total space", "total space", "thousand square feet", True), (("shops", "the space of shops"),
     ("warehouses", "the space of warehouses"), ("offices", "the space of offices"),
     ("laboratories", "the space of laboratories"))),
    (("total debt", "total debt", "$", True), (("bonds", "debt in bonds"), ("bank loans", "debt to banks"),
     ("leases", "debt in leases"), ("commercial paper", "debt in commercial paper"))),
    (("total water used", "total water used", "million litres", False), (("cooling", "the water used for cooling"),
     ("washing", "the water used for washing"), ("bottling", "the water used for bottling"),
     ("heating", "the water used for heating"))),
    (("total customers", "the number of all customers", "thousand", True), (("households", "the number of households"),
     ("shops served", "the number of shops served"), ("factories", "the number of factories"),
     ("public bodies", "the number of public bodies"))),
)  # fmt: skip
TIMES = (  # each of the people did so much: sentence, what is asked for
    ("in {year} each employee took {n} hours of training .", "hours of training all employees took"),
    ("each employee was off sick for {n} days in {year} .", "days all employees were off sick"),
    ("in {year} every employee received {n} shares of the company .", "shares all employees received"),
)
RUNS = ("at the end of {year} it ran {n} {runs} .", "it had {n} {runs} at the end of {year} .")
PLANS = {  # what the board expects of the year after the last
    "plus": ("the board expects {x} to rise by {u} in {next} .", "{u} more is planned for {x} in {next} ."),
    "plus_percent": (
        "the board expects {x} to grow by {n}% in {next} .",
        "in {next} {x} is to be {n}% higher .",
    ),
    "minus_percent": (
        "the board expects {x} to fall by {n}% in {next} .",
        "in {next} {x} is to be {n}% lower .",
    ),
}
OPENINGS = (
    "{company} {does} .",
    "{company} {does} .",
    "{company} , founded in {founded} , {does} .",
)
OTHERS = (  # one page in three has one of them, before the table or behind it
    "the table covers {first} to {last} .",
    "years end in {month} .",
    "the accounts were audited in {month} .",
    "no part of the business was sold in these years .",
)
MONTHS = ("march", "june", "september", "december")


def draw_values(rng: random.Random, num_years: int, low: int, high: int) -> list[int]:
    """Values of neighbouring years: the first in [low, high], each next one 22 % less to 35 % more."""
    values = [rng.randint(low, high)]
    while len(values) < num_years:
        values.append(max(11, values[-1] * rng.randint(78, 135) // 100))
    return values


def draw_company(rng: random.Random, word: str, taken: set[str]) -> str:
    """An invented name that no earlier page has; its first word is new, too."""
    starts, ends = STARTS.split(), ENDS.split()
    for length in (1,) * 50 + (2,) * 10_000:
        stem = "".join(rng.choice(starts) for _ in range(length)) + rng.choice(ends)
        if stem not in taken:
            taken.add(stem)
            return f"{stem} {word}"
    raise ValueError("no name is left")


def draw_accounts(
    rng: random.Random, sector: tuple, years: tuple[int, ...]
) -> dict[Quantity, dict[int, int]]:
    """Revenue, two or three other rows of the accounts, and the sector's own row."""
    chosen = sorted(rng.sample(range(len(ACCOUNTS)), rng.choice((2, 2, 3))))
    own = Quantity(*sector[2])
    rows = [REVENUE, *(ACCOUNTS[i] for i in chosen), own]
    values = {}
    for row in rows:
        low, high = (300, 700) if row == REVENUE else (20, 280) if row.unit == "$" else (20, 700)
        values[row] = dict(zip(years, draw_values(rng, len(years), low, high)))
    return values


def draw_breakdown(
    rng: random.Random, breakdown: tuple, years: tuple[int, ...]
) -> dict[Quantity, dict[int, int]]:
    """Three or four parts and their total, the last row."""
    (name, spoken, unit, is_stock), parts = breakdown
    values = {}
    for i in sorted(rng.sample(range(len(parts)), rng.choice((3, 3, 4)))):
        drawn = draw_values(rng, len(years), 20, 190)
        values[Quantity(*parts[i], unit, is_stock)] = dict(zip(years, drawn))
    values[Quantity(name, spoken, unit, is_stock)] = {
        y: sum(row[y] for row in values.values()) for y in years
    }
    return values


def draw_fact(rng: random.Random, values: dict[Quantity, dict[int, int]], money: str, runs: str) -> Fact:
    """The page's one sentence with a number; runs: the things that an accounts page counts, "" on a breakdown."""
    rows, year, number = list(values), max(values[next(iter(values))]), rng.randint(51, 99)
    people = [row for row in rows if row.name == "employees"]
    percent = rng.choice(("plus_percent", "minus_percent"))
    kind = rng.choice(("per", "times", "times", percent, percent) if runs else ("plus", "plus", percent))
    if kind == "times" and people:
        sentence, asked = rng.choice(TIMES)
        number = 11 + number % 29
        return Fact(kind, sentence.format(year=year, n=number), number, people[0], year, {"asked": asked})
    if kind in ("per", "times"):
        sentence = rng.choice(RUNS).format(year=year, n=number, runs=runs)
        return Fact("per", sentence, number, rng.choice(rows), year, {"runs": runs})
    quantity = rng.choice(rows) if runs else rows[-1]
    number = 11 + number % 29 if kind == percent else number
    unit = f"$ {number} {money}" if quantity.unit == "$" else f"{number} {quantity.unit}"
    sentence = rng.choice(PLANS[kind]).format(x=quantity.spoken, u=unit, n=number, next=year + 1)
    return Fact(kind, sentence, number, quantity, year, {"next": str(year + 1)})


def is_plain(values: dict[Quantity, dict[int, int]], number: int) -> bool:
    """Whether all numbers differ and have two or three digits, and revenue covers what is paid from it."""
    numbers = [value for row in values.values() for value in row.values()] + [number]
    if len({*numbers}) < len(numbers) or min(numbers) < 11 or max(numbers) > 999:
        return False
    paid = [row for quantity, row in values.items() if quantity.unit == "$" and quantity != REVENUE]
    return all(sum(row[y] for row in paid) < value for y, value in values.get(REVENUE, {}).items())


def draw_page(rng: random.Random, taken: set[str]) -> Page:
    """A page of accounts or a breakdown of a total, of a company whose name is added to `taken`."""
    first, num_years = rng.randint(2003, 2021), rng.choice((2, 3, 3, 4))
    years = tuple(range(first, first + num_years))
    sector, money = rng.choice(SECTORS), rng.choice(("million", "thousand"))
    company = draw_company(rng, sector[1], taken)
    breakdown = rng.choice(BREAKDOWNS) if rng.randrange(2) else None
    while True:
        values = draw_breakdown(rng, breakdown, years) if breakdown else draw_accounts(rng, sector, years)
        fact = draw_fact(rng, values, money, "" if breakdown else sector[3])
        if is_plain(values, fact.number):
            break
    own = list(values)[-1]
    unit = f"$ in {money}s" if "$" in [q.unit for q in values] else f"in {own.unit}"
    header = "in thousands" if unit == "in thousand" else unit
    if not breakdown and own.unit:
        header += f" , {own.name} in {own.unit}"
    words = {"company": company, "does": sector[0], "founded": rng.randint(1871, 1999)}
    words |= {"first": years[0], "last": years[-1], "month": rng.choice(MONTHS)}
    before, after = [rng.choice(OPENINGS).format(**words)], []
    others = [rng.choice(OTHERS).format(**words)] if rng.randrange(3) == 0 else []
    for sentence in (fact.sentence, *others):
        rng.choice((before, after)).append(sentence)
    columns = years[::-1] if rng.randrange(2) else years
    total = own if breakdown else None
    return Page(company, years, values, total, money, fact, header, columns, before, after)
