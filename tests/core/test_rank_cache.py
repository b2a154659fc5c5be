"""core/rank_cache.py: questions that teach nothing, what the cache holds and when it is read."""

from pathlib import Path

import numpy as np
import pytest

from core import rank_cache
from core.errors import UserError
from core.rank_cache import rows_in_memory, tokenise_rank_file
from core.rank_encoder import RankEncoder, fault_of
from core.rank_rows import parse_rank_row
from tests.conftest import language_tokenizer, rank_rows, tiny_tokenizer, write_jsonl

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
    assert (f"{num_equal} with one reward for all: nothing to choose there" in found.summary()) == (
        num_equal > 0
    )


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
        f"1 with one reward for all: nothing to choose there, {path}"
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
    rows = rank_rows(40)
    first = read(rows, tmp_path, group_field="kind")
    monkeypatch.setattr(rank_cache, "_tokenise", lambda *args: 1 / 0)
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
    rows = rank_rows(30)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = read(rows, tmp_path / "a")
    monkeypatch.setattr(rank_cache, "WINDOW", 7)
    assert content(read(rows, tmp_path / "b")) == content(whole)
    few = read(rows, tmp_path / "b", most_rows=9)
    assert len(few) == 9
    assert content(few) == content(read(rows[:9], tmp_path / "a"))


def test_rows_in_memory_are_those_of_the_cache(tmp_path):
    rows = rank_rows(12)
    found = read(rows, tmp_path)
    parsed = [parse_rank_row(row) for row in rows]
    memory = rows_in_memory(encoder()(parsed), [row.rewards for row in parsed], "here")
    assert content(memory)[:-1] == content(found)[:-1]
    assert memory.sizes.tolist() == found.sizes.tolist()
    assert memory.prefix_lengths.tolist() == found.prefix_lengths.tolist()
    assert fault_of(([1], [[2], [3]], 0), 8) == ""
