"""core/rank_rows.py: bad rows named together, questions that teach nothing, what the cache holds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from core import rank_rows
from core.errors import UserError
from core.rank_rows import RankEncoder, fault_of, parse_rank_row, rows_in_memory, tokenise_rank_file
from core.rows import RowError
from tests.conftest import language_tokenizer, tiny_tokenizer, write_jsonl
from tests.conftest import rank_rows as toy_questions

GOOD = {"question": "is it", "context": "the red sea", "candidates": ["red", "blue"], "rewards": [1.0, 0]}
BERT, LLAMA = tiny_tokenizer(), language_tokenizer("llama")


def encoder(
    max_length: int = 32, prompt: str = "", architecture: str = "causal", tokenizer=None
) -> RankEncoder:
    tokenizer = tokenizer or (BERT if architecture == "bert" else LLAMA)
    return RankEncoder(tokenizer, max_length, prompt, architecture)


def read(rows: list[dict], tmp_path: Path, made: RankEncoder | None = None, **options):
    """The rows of a file that holds these."""
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return tokenise_rank_file(path, "--train_data", made or encoder(), str(tmp_path / "cache"), **options)


def words(ids, tokenizer=LLAMA) -> str:
    return tokenizer.decode(np.asarray(ids, np.int64))


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
    rows = toy_questions(6, 1)
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


# -- nothing to rank --------------------------------------------------------------------------------------------


def equal(reward: float, count: int = 2) -> dict:
    return GOOD | {"candidates": ["red", "blue", "sea"][:count], "rewards": [reward] * count}


@pytest.mark.parametrize("num_equal", [0, 1, 3, 5])
def test_questions_of_one_reward_are_left_out_of_training_and_counted(tmp_path, num_equal):
    """However many: as many as the others, too."""
    rows = [GOOD, *[equal(0.5)] * (num_equal - 1), *[equal(1, 1)] * min(1, num_equal), GOOD, GOOD]
    found = read(rows, tmp_path, is_training=True)
    assert (len(found), found.meta["num_equal"]) == (3, num_equal)
    assert found.lines.tolist() == [1, num_equal + 2, num_equal + 3]
    assert (f"{num_equal} with one reward for all: left out" in found.summary()) == (num_equal > 0)
    found = read(rows, tmp_path)
    assert (len(found), found.meta["num_equal"]) == (3 + num_equal, num_equal)
    assert (f"{num_equal} with one reward for all: not in the metrics" in found.summary()) == (num_equal > 0)


@pytest.mark.parametrize("is_training", [False, True])
def test_a_file_with_nothing_to_rank_is_refused(tmp_path, is_training):
    for rows in ([equal(0.0)] * 3, [equal(1.0, 1)], [equal(0.5), equal(0.0, 3)]):
        message = (
            f"--train_data .*rows.jsonl: no question to rank: the candidates of all {len(rows)} have one and"
        )
        with pytest.raises(UserError, match=message):
            read(rows, tmp_path, is_training=is_training)
    write_jsonl(tmp_path / "rows.jsonl", [])
    with pytest.raises(UserError, match=r"--x .*rows.jsonl: has no rows"):
        tokenise_rank_file(str(tmp_path / "rows.jsonl"), "--x", encoder(), str(tmp_path / "cache"))


# -- the cache --------------------------------------------------------------------------------------------------


def content(rows) -> list:
    """All that a run takes from rank rows, as plain lists."""
    names = (
        "prefix_ids",
        "candidate_ids",
        "prefix_starts",
        "candidate_starts",
        "first",
        "rewards",
        "groups",
        "lines",
    )
    return [rows.meta["group_names"], *(getattr(rows, name).tolist() for name in names)]


def test_rows_by_hand(tmp_path):
    rows = [GOOD | {"kind": "a"}, equal(0.5, 3) | {"kind": "b", "context": ""}]
    found = read(rows, tmp_path, encoder(prompt="{context} {question} at"), group_field="kind")
    assert words(found.question(0)[0]) == "[CLS] the red sea is it at"
    assert [words(ids) for ids in found.question(0)[1]] == ["red", "blue"]
    assert words(found.question(1)[0]) == "[CLS] is it at"
    assert [words(ids) for ids in found.question(1)[1]] == ["red", "blue", "sea"]
    assert (found.sizes.tolist(), found.prefix_lengths.tolist()) == ([2, 3], [7, 4])
    assert found.branch_lengths(1).tolist() == [1, 1, 1]
    assert (found.groups.tolist(), found.meta["group_names"]) == ([0, 1], ["a", "b"])
    assert (len(found), found.num_candidates, found.num_tokens) == (2, 3, 16)
    np.testing.assert_array_equal(found.table(found.rewards), [[1, 0, np.nan], [0.5, 0.5, 0.5]])
    path = tmp_path / "rows.jsonl"
    assert found.summary() == (
        "2 questions of 2 to 3 candidates, 11 + 5 tokens, longest 7, 0 contexts cut (0 tokens) to 32, "
        f"1 with one reward for all: not in the metrics, {path}"
    )
    for name in (
        "prefix_ids",
        "candidate_ids",
        "prefix_starts",
        "candidate_starts",
        "first",
        "rewards",
        "lines",
    ):
        assert isinstance(getattr(found, name), np.memmap)
        assert getattr(found, name).mode == "r"


def test_a_second_reading_comes_from_the_cache_and_is_the_same(tmp_path, monkeypatch):
    rows = toy_questions(40)
    first = read(rows, tmp_path, group_field="kind")
    monkeypatch.setattr(rank_rows, "_tokenise", lambda *args: 1 / 0)
    again = read(rows, tmp_path, group_field="kind")
    assert content(first) == content(again)
    assert first.meta == again.meta
    for change in ({"is_training": True}, {"most_rows": 3}, {"group_field": ""}):
        with pytest.raises(ZeroDivisionError):
            read(rows, tmp_path, **({"group_field": "kind"} | change))
    for other in (encoder(31), encoder(prompt="{question}"), encoder(architecture="bert")):
        with pytest.raises(ZeroDivisionError):
            read(rows, tmp_path, other, group_field="kind")


def test_windows_join_without_a_seam_and_most_rows_ends_early(tmp_path, monkeypatch):
    rows = toy_questions(30)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = read(rows, tmp_path / "a")
    monkeypatch.setattr(rank_rows, "WINDOW", 7)
    assert content(read(rows, tmp_path / "b")) == content(whole)
    few = read(rows, tmp_path / "b", most_rows=9)
    assert len(few) == 9
    assert content(few) == content(read(rows[:9], tmp_path / "a"))


def test_rows_in_memory_are_those_of_the_cache(tmp_path):
    rows = toy_questions(12)
    found = read(rows, tmp_path)
    parsed = [parse_rank_row(row) for row in rows]
    memory = rows_in_memory(encoder()(parsed), [row.rewards for row in parsed], "here")
    assert content(memory)[:-1] == content(found)[:-1]
    assert memory.sizes.tolist() == found.sizes.tolist()
    assert memory.prefix_lengths.tolist() == found.prefix_lengths.tolist()
    assert fault_of(([1], [[2], [3]], 0), 8) == ""
