"""A ranking row: a question, its context, K candidates and their rewards, read and checked."""

import contextlib
import json
from dataclasses import dataclass

import numpy as np

from core.rows import RowError, field_names, half_pair, show

LARGEST = float(np.finfo(np.float32).max)  # of a reward


@dataclass(frozen=True)
class RankRow:
    """One checked row."""

    question: str
    context: str
    candidates: list[str]
    rewards: list[float] | None  # None where the row has none
    group: str = ""


def parse_rank_row(row: dict, needs_rewards: bool = True, group_field: str = "") -> RankRow:
    """A row as read, checked. Raises RowError: field, found, expected."""
    if not isinstance(row, dict):  # given in Python: a file's rows were seen to
        raise RowError(f"the row is {show(row)}; expected an object")
    if "question" not in row:
        raise RowError(f"no field 'question' (found: {field_names(row)})")
    question, context = row["question"], row.get("context") or ""
    for name, value in (("question", question), ("context", context)):
        if not isinstance(value, str) or (name == "question" and not value.strip()):
            raise RowError(f"field {name!r} is {show(value)}; expected text")
        if half_pair(value):
            raise RowError(f"field {name!r}: {half_pair(value)}")
    candidates, rewards = _list(row, "candidates"), row.get("rewards")
    if candidates is None:
        raise RowError("no field 'candidates'; expected a list of texts")
    if not candidates:
        raise RowError("field 'candidates' is empty; expected two texts or more")
    for k, text in enumerate(candidates, 1):
        if not isinstance(text, str) or not text.strip():
            raise RowError(f"field 'candidates': number {k} is {show(text)}; expected text")
        if half_pair(text):
            raise RowError(f"field 'candidates': number {k}: {half_pair(text)}")
    if needs_rewards or rewards is not None:
        rewards = _list(row, "rewards")
        if rewards is None:
            raise RowError("no field 'rewards'; expected a number for each candidate")
        if len(rewards) != len(candidates):
            raise RowError(f"{len(rewards)} rewards for {len(candidates)} candidates; expected one for each")
        for value in rewards:
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
                raise RowError(f"field 'rewards' holds {show(value)}; expected finite numbers")
    if group_field and group_field not in row:
        raise RowError(f"no field {group_field!r} (--group_field)")
    return RankRow(question, context, candidates, rewards, str(row[group_field]) if group_field else "")


def _list(row: dict, name: str) -> list | None:
    """A list, or a CSV cell that holds one as JSON; None where there is no such field."""
    value = row.get(name)
    if isinstance(value, str):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if value is not None and not isinstance(value, list):
        raise RowError(f"field {name!r} is {show(value)}; expected a list")
    return value
