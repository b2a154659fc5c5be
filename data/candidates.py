"""Prepared FinQA rows in, rows with K candidates out: the right program, and wrong ones that look like it.

A candidate reads as its arithmetic and its value, all by one rule: (5735 - 5829) / 5829 = -0.01613; with the operands'
names, 5735 [net revenue, 2011] - 5829 [net revenue, 2010] = -94 (data/operand_names.py). The wrong ones
are mutants (data/mutations.py has the kinds) of which data/selection.py chooses those beside which the right one does
not stand out. No two have the same value, and none has one that agrees with the answer (within 1e-3; where a question
asks for percent, neither has 100 times the right value, or a hundredth). Each place is the right one's equally often.

Or a model's own samples are the candidates, one of each value, and the right one is added where no sample has it.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from core.rows import show
from data.amounts import NUMBER, agrees, close, format_value
from data.mutations import Mutant, mutants
from data.operand_names import OperandNames
from data.parts import Corpus, as_written, read_page
from data.programs import Program, ProgramError, format_program, infix, parse_program, run_program
from data.selection import choose_sets

POOL = 100  # mutants a question, at most, to choose from
CARRIED = ("answer", "program", "num_steps")  # what a prepared row hands on
Problems = list[tuple[str, str]]


def page_of(row: Mapping) -> str:
    """The page that a row asks about: its filename, or its id before the last `-`."""
    return str(row.get("filename") or str(row.get("id", "")).rpartition("-")[0] or row.get("id", ""))


# Mutants


def candidate_rows(
    rows: Iterable[dict],
    num_candidates: int = 8,
    corruption_rate: float = 0.5,
    seed: int = 0,
    also: Iterable[dict] = (),
    name_operands: bool = False,
) -> tuple[list[dict], Problems]:
    """One row a question with its candidates, and (id, reason) of those left out.

    Args:    rows: of prepare_rows | corruption_rate: share of a program's parts that are changed in a wrong one |
             also: more such rows, for which no candidates are made; a small file's are chosen better by the look
             of more right programs | name_operands: write behind each number what the page calls it.
    Cost:    0.1 s a question on one core, `also` included; 1 GB for 600 (FinQA, 2026-11-20).
    """
    rows = list(rows)
    pools, problems = draw_pools([*rows, *also], num_candidates, corruption_rate, seed, name_operands)
    own = {id(row) for row in rows}
    kept = sum(id(row) in own for row, _ in pools)
    problems = problems[: len(rows) - kept]
    texts = [[candidate.text for candidate in pool] for _, pool in pools]
    sets = choose_sets(texts, [page_of(row) for row, _ in pools], num_candidates, seed, kept)
    rng = np.random.default_rng([seed, 1])
    places = rng.permutation(kept) % num_candidates
    made = []
    for (row, pool), chosen, place in zip(pools, sets, places, strict=False):
        wrong = [pool[i] for i in rng.permutation(chosen[1:])]
        made.append(write_row(row, wrong[:place] + [pool[0]] + wrong[place:], int(place)))
    return made, problems


def draw_pools(
    rows: list[dict], num_candidates: int, corruption_rate: float, seed: int, name_operands: bool = False
) -> tuple[list[tuple[dict, list[Mutant]]], Problems]:
    """(row, the right candidate and its mutants) for each row that has enough, in order; the others with reasons."""
    programs, pools, problems = {}, [], []
    for i, row in enumerate(rows):
        try:
            programs[i] = parse_program(row["program"])
        except (ProgramError, KeyError, TypeError) as error:
            problems.append((i, f"no program: {error}"))
    corpus = Corpus.of(programs.values())
    for i in tqdm(programs, desc="mutants", unit=" questions", disable=None):
        row, rng = rows[i], random.Random(f"{seed} {rows[i].get('id')}")
        try:
            check_texts(row, "question", "context", "answer")
            page = read_page(row.get("table") or [], row["context"])
            gold = as_gold(programs[i], row.get("table") or [], page)
            found = mutants(gold, row, page, corruption_rate, corpus, rng, max(POOL, 4 * num_candidates))
        except (ProgramError, KeyError, TypeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            problems.append((i, what if what.startswith("yes or no") else f"candidates: {what}"))
            continue
        if len(found) < num_candidates - 1:
            problems.append((i, f"too few wrong values: {len(found)} of {num_candidates - 1}"))
            continue
        pool = [gold, *found]
        if name_operands:
            names = OperandNames(page, row.get("table") or [], row["context"])
            pool = [replace(mutant, names=names.of(mutant.program)) for mutant in pool]
        pools.append((row, pool))
    return pools, [(str(rows[i].get("id")), what) for i, what in sorted(problems)]


def check_texts(row: Mapping, *names: str) -> None:
    """Raise ProgramError for a field that is no text, KeyError for one that is not there."""
    for name in names:
        if not isinstance(row[name], str):
            raise ProgramError(f"field {name} is {show(row[name])}, expected a string")


def as_gold(program: Program, table: list, page: object) -> Mutant:
    """The right candidate. Raises ProgramError for a yes or no, which has only one wrong value."""
    value = run_program(program, table)
    if isinstance(value, str):
        raise ProgramError("yes or no: there is only one wrong value")
    program = as_written(program, page)
    infix(program)
    return Mutant(program, value)


def write_row(row: dict, candidates: Sequence[Mutant], gold: int) -> dict:
    """A row of the output; `kinds` says what was changed, `changes` how many parts."""
    return (
        {name: row[name] for name in ("id", "question", "context")}
        | {"candidates": [candidate.text for candidate in candidates]}
        | {"programs": [format_program(candidate.program) for candidate in candidates]}
        | {"values": [candidate.value for candidate in candidates]}
        | {"kinds": ["+".join(candidate.kinds) or "gold" for candidate in candidates]}
        | {"changes": [candidate.changed for candidate in candidates], "gold": gold}
        | {name: row.get(name) for name in CARRIED}
    )


# A model's own samples


def sample_rows(
    rows: Iterable[dict], samples: Mapping[str, Sequence[str]], num_candidates: int = 8, seed: int = 0
) -> tuple[list[dict], Problems]:
    """As candidate_rows, of samples: texts of programs or of answers, by the row's id.

    Where the right one is added it is written as most of its row's samples are, as a program or as an answer.
    Returns: rows with gold_added (no sample was right) and unread (samples that are neither) | (id, reason).
    """
    made, problems = [], []
    rng = random.Random(seed)
    for row in rows:
        name = str(row.get("id"))
        try:
            if name not in samples:
                raise ProgramError("no samples")
            made.append(sample_row(row, samples[name], num_candidates, rng))
        except (ProgramError, KeyError, TypeError) as error:
            problems.append((name, f"candidates: {error}"))
    return made, problems


def sample_row(row: dict, samples: Sequence[str], num_candidates: int, rng: random.Random) -> dict:
    """One row of sample_rows. Raises ProgramError where fewer than two values differ."""
    check_texts(row, "question", "context")
    table, right = row.get("table") or [], parse_program(row["program"])
    value = run_program(right, table)
    found, unread, given = [], 0, None  # (program or None, value) of the wrong ones
    for text in samples:
        try:
            program, own = read_sample(str(text), table)
        except ProgramError:
            unread += 1
            continue
        if close(own, value) or (program is None and agrees(value, str(text))):
            given = given or (program, value)
        elif not any(close(own, other) for _, other in found):
            found.append((program, own))
    as_program = 2 * sum(program is not None for program, _ in found) >= len(found)
    gold = given or (right if as_program else None, value)
    chosen = [*found[: num_candidates - 1], gold]
    if len(chosen) < 2:
        raise ProgramError(f"fewer than two different values in {len(samples)} samples")
    rng.shuffle(chosen)
    texts = [f"{infix(p)} = {format_value(v)}" if p else format_value(v) for p, v in chosen]
    return (
        {name: row[name] for name in ("id", "question", "context")}
        | {"candidates": texts, "programs": [format_program(p) if p else None for p, _ in chosen]}
        | {"values": [v for _, v in chosen], "kinds": ["gold" if c is gold else "sample" for c in chosen]}
        | {"gold": chosen.index(gold), "gold_added": given is None, "unread": unread}
        | {name: row.get(name) for name in CARRIED}
    )


def read_sample(text: str, table: list) -> tuple[Program | None, float | str]:
    """A sample's program and value, or None and the value of an answer. Raises ProgramError where it is neither."""
    if "(" in text and any(c.isalpha() for c in text.partition("(")[0]):
        program = parse_program(text.strip())
        return program, run_program(program, table)
    plain = text.strip().lower().rstrip(".")
    if plain in ("yes", "no"):
        return None, plain
    found = NUMBER.search(plain)
    if not found:
        raise ProgramError(f"{text!r:.40} is neither a program nor a number")
    value = float(found[3].replace(",", "")) * (-1 if "-" in found[1] + found[2] else 1)
    return None, value / 100 if found[4] else value


def count_kinds(rows: Iterable[dict]) -> Counter:
    """How often each kind of change occurs in the wrong candidates."""
    return Counter(
        kind for row in rows for kinds in row["kinds"] for kind in kinds.split("+") if kind != "gold"
    )
