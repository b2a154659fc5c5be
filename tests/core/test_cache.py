"""core/cache.py: one entry for one content and one way to read it, whole or not there; labels in one order."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import cache
from core.cache import LabelColumn, RowSource, tokenise_file, tokenizer_fingerprint
from core.errors import UserError
from core.rows import RowError, RowFormat
from core.tokens import Encoder
from tests.conftest import full_disk, tiny_tokenizer, toy_rows, write_jsonl

BERT = tiny_tokenizer()
PLAIN = RowFormat()


def encoder(max_length: int = 8, truncate: str = "head", tokenizer=BERT, pair: bool = False) -> Encoder:
    return Encoder(tokenizer, max_length, truncate, pair)


def entries(folder: Path) -> list[str]:
    """What lies in a cache folder."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def content(rows) -> list:
    """All that a run takes from token rows, as plain lists."""
    parts = (rows.ids, rows.starts, rows.pairs, rows.lines, rows.labels, rows.lengths)
    return [*(part.tolist() for part in parts), rows.label_names, rows.multi_label]


@pytest.fixture
def path(tmp_path) -> str:
    return write_jsonl(tmp_path / "train.jsonl", toy_rows(30))


# -- what an entry holds -------------------------------------------------------------------------------------


def test_rows_by_hand(tmp_path):
    rows = [{"text": "red sky", "label": "b"}, {"text": "the red sea and sky at ink", "label": 7}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    Path(path).write_text("\n" + Path(path).read_text())
    found = RowSource(encoder(6), PLAIN, str(tmp_path / "cache")).open(path, "--train_data")
    a, b = BERT("red sky")["input_ids"], BERT("the red sea and")["input_ids"]
    assert content(found) == [[*a, *b], [0, 4, 10], [0, 0], [2, 3], [1, 0], [4, 6], ["7", "b"], False]
    assert [found.meta[name] for name in ("path", "num_truncated", "max_length")] == [path, 1, 6]
    assert found.summary() == f"2 rows, 10 tokens, longest 6, 1 cut to 6 (head), {path}"
    for part in (found.ids, found.starts, found.pairs, found.lines, found.labels):
        assert isinstance(part, np.memmap)
        assert part.mode == "r"


def test_pairs_have_their_second_part(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = [{"a": "red", "b": "sea", "label": "x"}, {"a": "red sky", "b": "ink", "label": "y"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    source = RowSource(encoder(tokenizer=tokenizer, pair=True), RowFormat("a", "b"), str(tmp_path / "cache"))
    found = source.open(path, "--train_data")
    assert found.pairs.tolist() == [3, 4]
    assert found.lengths.tolist() == [5, 6]


def test_windows_join_without_a_seam(path, tmp_path, monkeypatch):
    whole = content(tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "a")))
    monkeypatch.setattr(cache, "WINDOW", 7)
    assert content(tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "b"))) == whole


# -- what makes an entry -------------------------------------------------------------------------------------

OTHERS = {
    "max_length": lambda make: (make(9), PLAIN),
    "truncate": lambda make: (make(8, "tail"), PLAIN),
    "template": lambda make: (make(tokenizer=tiny_tokenizer("roberta")), PLAIN),
    "text_field": lambda make: (make(), RowFormat("label")),
    "label_field": lambda make: (make(), RowFormat(label_field="label")),
}


def check_apart(make, change: str, path: str, folder: Path) -> None:
    """Another option gives an entry of its own."""
    tokenise_file(path, "--x", make(), PLAIN, str(folder))
    tokenise_file(path, "--x", make(), PLAIN, str(folder))
    assert len(entries(folder)) == 1
    tokenise_file(path, "--x", *OTHERS[change](make), str(folder))
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("change", OTHERS)
def test_other_options_are_another_entry(change, path, tmp_path):
    check_apart(encoder, change, path, tmp_path / "cache")


def test_bite_a_key_without_max_length_is_caught(path, tmp_path):
    def blind(*args, **kwargs):
        made = encoder(*args, **kwargs)
        made.max_length = 0  # all that the key sees; the room for tokens is worked out before
        return made

    with pytest.raises(AssertionError):
        check_apart(blind, "max_length", path, tmp_path / "cache")


def test_a_vocabulary_is_part_of_the_key_and_truncation_state_is_not():
    other, plain = tiny_tokenizer(), tokenizer_fingerprint(BERT)
    other("red", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_fingerprint(other) == plain
    other.add_tokens(["newword"])
    assert tokenizer_fingerprint(other) != plain


def test_the_same_content_under_another_name_is_not_tokenised_again(path, tmp_path, monkeypatch):
    folder, copy = tmp_path / "cache", tmp_path / "copy.jsonl"
    first = tokenise_file(path, "--x", encoder(), PLAIN, str(folder))
    shutil.copy(path, copy)
    monkeypatch.setattr(Encoder, "__call__", None)  # tokenising again would fail
    second = tokenise_file(str(copy), "--x", encoder(), PLAIN, str(folder))
    assert content(second) == content(first)
    assert second.meta["path"] == str(copy)
    assert len(entries(folder)) == 1


def test_an_ending_that_is_read_otherwise_is_another_entry(path, tmp_path):
    tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "cache"))
    shutil.copy(path, tmp_path / "copy.txt")
    with pytest.raises(UserError, match=r"unknown ending 'txt'"):
        tokenise_file(str(tmp_path / "copy.txt"), "--x", encoder(), PLAIN, str(tmp_path / "cache"))


def test_a_changed_file_is_read_again(path, tmp_path):
    first = tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "cache"))
    write_jsonl(Path(path), toy_rows(30, seed=1))
    assert content(tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "cache"))) != content(first)


# -- whole or not there --------------------------------------------------------------------------------------


def test_a_crash_leaves_nothing_that_looks_whole(path, tmp_path, monkeypatch):
    folder, whole = (
        tmp_path / "cache",
        content(tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "a"))),
    )
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "rmtree", lambda *args, **flags: None)  # as a kill: no clean-up
        patch.setattr(cache, "WINDOW", 10)
        calls = iter([True, False])
        call = Encoder.__call__
        patch.setattr(Encoder, "__call__", lambda *args: call(*args) if next(calls) else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tokenise_file(path, "--x", encoder(), PLAIN, str(folder))
    assert [name.rpartition(".")[2] for name in entries(folder)] == ["part"]
    # the next start can have the same process id, as the first process of a container has
    assert content(tokenise_file(path, "--x", encoder(), PLAIN, str(folder))) == whole


def test_every_full_disk_is_an_error_or_a_whole_entry(tmp_path):
    path = write_jsonl(tmp_path / "train.jsonl", toy_rows(400))
    whole = content(tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "a")))
    sizes = sorted(file.stat().st_size for file in (tmp_path / "a").glob("*/*"))
    assert sizes[-1] > 8192  # more than one block: numpy's own tofile loses the end in silence
    for limit in (0, 200, *range(1000, sizes[-1] + 1500, 1000)):
        folder = tmp_path / f"limit{limit}"
        if limit < sizes[-1]:
            wanted = "cannot be written: the disk is full. .* with --cache_dir"
            with pytest.raises(UserError, match=wanted), full_disk(limit):
                tokenise_file(path, "--x", encoder(), PLAIN, str(folder))
            assert entries(folder) == []
        else:
            with full_disk(limit):
                assert content(tokenise_file(path, "--x", encoder(), PLAIN, str(folder))) == whole


def test_two_writers_at_once(path, tmp_path, monkeypatch):
    both, tokenise, found = threading.Barrier(2), cache.tokenise_rows, []

    def meet(*args):
        columns = tokenise(*args)
        both.wait(timeout=20)  # neither is in its place yet
        return columns

    monkeypatch.setattr(cache, "tokenise_rows", meet)

    def write():
        found.append(content(tokenise_file(path, "--x", encoder(), PLAIN, str(tmp_path / "cache"))))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len(entries(tmp_path / "cache")) == 1


# -- labels --------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["red", "10", "9", "a b"])
KINDS = st.one_of(
    st.lists(NAMES, min_size=1),
    st.lists(st.lists(NAMES, max_size=3), min_size=1),
    st.lists(st.fixed_dictionaries({"10": st.integers(0, 1), "9": st.integers(0, 1)}), min_size=1),
)


@given(KINDS, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_number_the_labels(rows, rng):
    order = rng.sample(range(len(rows)), len(rows))
    found = []
    for chosen in (range(len(rows)), order):
        column = LabelColumn()
        for k in chosen:
            column.add(rows[k])
        found.append(column.finish())
    (names, labels), (again, shuffled) = found
    assert names == again
    np.testing.assert_array_equal(labels[order], shuffled)
    for row, label in zip(rows, labels, strict=True):  # the slow way back
        if isinstance(row, str):
            assert names[label] == row
        else:
            applies = [name for name in row if row[name]] if isinstance(row, dict) else row
            assert {name for name, flag in zip(names, label, strict=True) if flag} == set(applies)


def test_labels_by_hand():
    column = LabelColumn()
    for value in (["b", "10", "b"], [], ["9"]):
        column.add(value)
    names, matrix = column.finish()
    assert names == ["10", "9", "b"]
    assert (matrix.tolist(), matrix.dtype) == ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.uint8)
    column = LabelColumn()
    for value in ("10", "9", "10"):
        column.add(value)
    names, labels = column.finish()
    assert (names, labels.tolist(), labels.dtype) == (["9", "10"], [1, 0, 1], np.int32)


@pytest.mark.parametrize(("first", "second", "message"), [
    ("a", ["a"], 'labels are a list of labels (["a"]), in the rows before one label; expected one kind in all rows'),
    ({"a": 1}, "a", 'labels are one label ("a"), in the rows before 0/1 for each label; expected one kind in all rows'),
    ({"a": 1}, {"b": 1}, "labels name other classes than the rows before: a, b"),
])  # fmt: skip
def test_labels_of_another_kind(first, second, message):
    column = LabelColumn()
    column.add(first)
    with pytest.raises(RowError) as caught:
        column.add(second)
    assert str(caught.value) == message


def open_labels(tmp_path, train: list, other: list | None = None):
    """Training rows with these labels, or the rows of a second file numbered as they are."""
    source, found = RowSource(encoder(), PLAIN, str(tmp_path / "cache")), None
    for name, labels in (("train", train), ("val", other)):
        if labels is not None:
            field = "label" if isinstance(labels[0], str) else "labels"
            path = write_jsonl(
                tmp_path / f"{name}.jsonl", [{"text": "red", field: label} for label in labels]
            )
            found = source.open(path, f"--{name}_data", found)
    return found


def test_other_files_are_numbered_as_the_training_rows(tmp_path):
    found = open_labels(tmp_path, ["a", "b", "c"], ["c", "a"])
    assert (found.label_names, found.labels.tolist()) == (["a", "b", "c"], [2, 0])
    found = open_labels(tmp_path, [{"a": 1, "b": 1, "c": 1}], [["c"], []])
    assert (found.label_names, found.labels.tolist()) == (["a", "b", "c"], [[0, 0, 1], [0, 0, 0]])
    assert found.labels.dtype == np.uint8


@pytest.mark.parametrize(("train", "other", "message"), [
    (["a", "a"], None, "--train_data FOLDER/train.jsonl: all rows have the label 'a'; expected 2 or more"),
    ([[], []], None, "--train_data FOLDER/train.jsonl: no row has a label"),
    ([{"a": 1, "b": 0, "c": 0}], None, "--train_data FOLDER/train.jsonl: classes without a training row: 'b', 'c'; "
     "add rows that have them, or leave these names out of the labels"),
    (["a", "b"], ["b", "x", "c", "x"], "--val_data FOLDER/val.jsonl: labels without a training row: 'c' (line 3), "
     "'x' (line 2); the training rows have a, b"),
    ([["a", "b"]], [["a"], ["x", "b"]], "--val_data FOLDER/val.jsonl: labels without a training row: 'x' (line 2); "
     "the training rows have a, b"),
    (["a", "b"], [["a"]], "--val_data FOLDER/val.jsonl: has several labels a row; the training rows have "
     "one label a row"),
    ([["a"]], ["a"], "--val_data FOLDER/val.jsonl: has one label a row; the training rows have several labels a row"),
])  # fmt: skip
def test_labels_that_do_not_fit(train, other, message, tmp_path):
    with pytest.raises(UserError) as caught:
        open_labels(tmp_path, train, other)
    assert str(caught.value) == message.replace("FOLDER", str(tmp_path))
