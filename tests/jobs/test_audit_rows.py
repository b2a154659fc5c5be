"""jobs/audit_rows.py: near texts with other labels, training rows among others; against a slow search, and by hand."""

import numpy as np
import pytest

from core.errors import UserError
from core.files import save_array
from core.rows import RowFormat
from core.spent import row_hash
from data.split_rows import Table
from jobs.audit_rows import Others, find_conflicts, find_leaks, known_test_rows, read_others
from tests.conftest import write_jsonl

NONE = RowFormat()


def one_hot(labels: list[int]) -> np.ndarray:
    return np.eye(max(labels) + 1, dtype=bool)[labels]


def table_of(texts: list[str]) -> Table:
    return Table(texts=texts, hashes=[row_hash(text) for text in texts])


def test_conflicts_by_hand():
    texts = ["a b c d", "D c b a", "a b c e", "x y", "X, Y!", "...", "...", "p q r s"]
    found = find_conflicts(texts, one_hot([0, 1, 0, 2, 2, 0, 1, 0]), 0.6)
    assert found[0] == 1  # the same words
    assert found[1] == 0
    assert found[2] == 1  # 3 of 5 words; row 0 has its own label
    assert found[3:].tolist() == [-1] * 5  # one label; no word; nobody near


def test_conflicts_of_label_sets():
    truth = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], bool)
    texts = ["one two three", "one two three", "four five", "four five"]
    assert find_conflicts(texts, truth, 0.7).tolist() == [1, 0, 3, 2]


@pytest.mark.parametrize("near", [0.5, 0.7, 1.0])
def test_every_conflict_is_one_and_none_is_missed(near):
    rng = np.random.default_rng(0)
    words = np.array(list("abcdefgh"))
    texts = [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(150)]
    labels = rng.integers(0, 3, 150)
    sets = [set(text.split()) for text in texts]
    found = find_conflicts(texts, one_hot(labels.tolist()), near)
    assert (found >= 0).any()

    def is_conflict(i: int, j: int) -> bool:
        return labels[i] != labels[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= near - 1e-9

    for i in range(150):
        there = any(is_conflict(i, j) for j in range(150))
        assert is_conflict(i, found[i]) if found[i] >= 0 else not there


def test_leaks_say_which_row_and_whether_it_is_the_same():
    table = table_of(["a b c d", "a  b c\nd", "a b c e", "f g", "?!"])
    texts = ["f h", "a b c d", "?!"]
    others = Others("test", "t.jsonl", [1, 3, 4], texts, [row_hash(text) for text in texts])
    assert find_leaks(table, others, 0.6) == [(1, True), (1, True), (1, False), (-1, False), (2, True)]


def test_of_other_rows_the_texts_alone_are_read(tmp_path):
    path = write_jsonl(
        tmp_path / "test.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": {"odd": 7}}]
    )
    others = read_others("test", path, "--test_data", NONE)
    assert (others.texts, others.lines, others.hashes) == (["a", "b"], [1, 2], [row_hash("a"), row_hash("b")])


def test_bad_other_rows_are_named(tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", [{"text": "a"}, {"content": "b"}])
    with pytest.raises(UserError, match="1 bad row:\n  line 2: no field 'text'"):
        read_others("test", path, "--test_data", NONE)


def test_all_test_rows_that_somebody_knows(tmp_path):
    for name, values in (("run", [1, 2]), ("split", [2, 3])):
        (tmp_path / name / "rows").mkdir(parents=True)
        save_array(tmp_path / name / "rows" / "test.npy", np.array(values, np.uint64))
    others = [Others("test", "t", [1], ["a"], [9]), Others("validation", "v", [1], ["b"], [8])]
    found = known_test_rows(str(tmp_path / "run"), str(tmp_path / "split" / "train.jsonl"), others)
    assert found.tolist() == [1, 2, 3, 9]
    assert known_test_rows("", str(tmp_path / "t.jsonl"), []).size == 0
