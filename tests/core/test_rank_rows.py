"""core/rank_rows.py: what is wrong with a row, and all bad rows of a file named together."""

import csv
import json

import pytest

from core.errors import UserError
from core.rank_cache import tokenise_rank_file
from core.rank_rows import parse_rank_row
from core.rows import RowError
from tests.conftest import rank_rows
from tests.core.test_rank_cache import GOOD, content, encoder, read

# -- bad rows ---------------------------------------------------------------------------------------------------

BAD = {  # case: (what differs from GOOD; None: left out, message)
    "no question": ({"question": None}, "field 'question' is null; expected text"),
    "blank question": ({"question": "  "}, "field 'question' is \"  \"; expected text"),
    "question is a number": ({"question": 3}, "field 'question' is 3; expected text"),
    "context is a list": ({"context": ["a"]}, "field 'context' is [\"a\"]; expected text"),
    "context is a number": ({"context": 7}, "field 'context' is 7; expected text"),
    "no candidates": ({"candidates": None}, "no field 'candidates'; expected a list of texts"),
    "empty list": ({"candidates": [], "rewards": []}, "field 'candidates' is empty; expected two texts or more"),
    "candidates are text": ({"candidates": "red"}, "field 'candidates' is \"red\"; expected a list"),
    "candidates are an object": ({"candidates": {"a": 1}}, "field 'candidates' is {\"a\": 1}; expected a list"),
    "an empty candidate": ({"candidates": ["red", ""]}, "field 'candidates': number 2 is \"\"; expected text"),
    "a blank candidate": ({"candidates": [" \n", "red"]}, "field 'candidates': number 1 is \" \\n\"; expected text"),
    "a candidate is a number": ({"candidates": ["red", 5]}, "field 'candidates': number 2 is 5; expected text"),
    "a candidate is null": ({"candidates": [None, "red"]}, "field 'candidates': number 1 is null; expected text"),
    "no rewards": ({"rewards": None}, "no field 'rewards'; expected a number for each candidate"),
    "rewards are text": ({"rewards": "high"}, "field 'rewards' is \"high\"; expected a list"),
    "too few rewards": ({"rewards": [1.0]}, "1 rewards for 2 candidates; expected one for each"),
    "too many rewards": ({"rewards": [1, 0, 0]}, "3 rewards for 2 candidates; expected one for each"),
    "a reward is text": ({"rewards": [1, "0"]}, "field 'rewards' holds \"0\"; expected finite numbers"),
    "a reward is true": ({"rewards": [1, True]}, "field 'rewards' holds true; expected finite numbers"),
    "a reward is null": ({"rewards": [None, 1]}, "field 'rewards' holds null; expected finite numbers"),
    "NaN": ({"rewards": [float("nan"), 1]}, "field 'rewards' holds NaN; expected finite numbers"),
    "infinity": ({"rewards": [1, float("inf")]}, "field 'rewards' holds Infinity; expected finite numbers"),
    "no token": ({"candidates": ["red", "\u200b\u00ad"]}, "candidate 2 has no token: empty after tokenisation"),
    "half a character": ({"question": "red \ud83d"}, "field 'question': character 5 is '\\ud83d', half of a"),
    "half a context": ({"context": "\udc00"}, "field 'context': character 1 is '\\udc00', half of a surrogate pair"),
    "half a candidate": ({"candidates": ["a", "b\ud83d"]}, "field 'candidates': number 2: character 2 is '\\ud83d'"),
    "too large for float32": ({"rewards": [1e300, 0]}, "field 'rewards' holds 1e+300; expected finite numbers"),
    "a huge integer": ({"rewards": [10**400, 0]}, "expected finite numbers"),
    "no group": ({}, "no field 'steps' (--group_field)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case, tmp_path):
    change, message = BAD[case]
    row = {name: value for name, value in (GOOD | change).items() if value is not None}
    if case == "no question":
        row["question"] = None
    good = GOOD | {"steps": 1}
    row |= {} if case == "no group" else {"steps": 1}
    with pytest.raises(UserError) as error:
        read([good, row, good], tmp_path, group_field="steps")
    said = str(error.value).splitlines()
    assert said[0] == f"{tmp_path / 'rows.jsonl'}: 1 bad row:"
    assert said[1].startswith(f"  line 2: {message}") or ("huge" in case and message in said[1])
    assert len(said) == 2
    assert not list((tmp_path / "cache").glob("*/meta.json"))


def test_all_bad_rows_of_a_file_are_named_together(tmp_path):
    rows = [GOOD | change for change, _ in BAD.values() if None not in change.values() and change] * 2
    (tmp_path / "rows.jsonl").write_text("{\n" + "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        tokenise_rank_file(str(tmp_path / "rows.jsonl"), "--x", encoder(), str(tmp_path / "cache"))
    said = str(error.value).splitlines()
    assert said[0].endswith(f": {len(rows) + 1} bad rows:")
    assert said[1].startswith("  line 1: invalid JSON")
    assert [line.split(":")[0] for line in said[2:21]] == [f"  line {k}" for k in range(2, 21)]
    assert said[21] == f"  ... and {len(rows) - 19} more"


def test_a_csv_cell_holds_a_list_as_json(tmp_path):
    rows = rank_rows(6, 1)
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(row | {name: json.dumps(row[name]) for name in ("candidates", "rewards")})
    found = tokenise_rank_file(str(tmp_path / "rows.csv"), "--x", encoder(), str(tmp_path / "cache"))
    same = read(rows, tmp_path)
    assert content(found)[:-1] == content(same)[:-1]  # their lines are others
    assert parse_rank_row({"question": "q", "candidates": '["a", "b"]', "rewards": "[1, 0]"}).rewards == [
        1,
        0,
    ]
    for cell in ("", "[1, 0", "1, 0", "red"):
        with pytest.raises(RowError, match=r"field 'rewards' is \".*\"; expected a list"):
            parse_rank_row(GOOD | {"rewards": cell})


def test_rows_without_rewards_are_for_prediction_alone():
    row = {name: value for name, value in GOOD.items() if name != "rewards"}
    assert parse_rank_row(row, needs_rewards=False).rewards is None
    assert parse_rank_row(row | {"candidates": ["one"]}, needs_rewards=False).candidates == ["one"]
    with pytest.raises(RowError, match="1 rewards for 2 candidates"):  # what is there must be right
        parse_rank_row(row | {"rewards": [1]}, needs_rewards=False)
