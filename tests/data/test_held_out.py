"""data/held_out.py: which rows are held out, who is refused, what is near; and what data.augment makes of a split."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core.errors import UserError
from core.rows import RowFormat
from core.spent import row_hash, write_uses
from data import split
from data.held_out import HeldOut, read_held_out, refuse_held_out, split_folders, why_held_out
from tests.conftest import write_jsonl
from tests.data.augment_rows import augmented, long_rows, read


def spent(folder: Path, use: str, *texts: str) -> None:
    """Let a folder hold the hashes of rows that were used."""
    write_uses(folder, {use: SimpleNamespace(hashes=[row_hash(text) for text in texts])})


def refuse(
    path: Path, form: RowFormat | None = None, texts: tuple[str, ...] = ("a b",), runs: tuple = ()
) -> None:
    hashes = [row_hash(text) for text in texts]
    refuse_held_out(hashes, "--given", str(path), form or RowFormat(), runs, "do so")


@pytest.fixture
def parts(tmp_path) -> Path:
    """A folder of data.split."""
    rows = write_jsonl(tmp_path / "all.jsonl", long_rows(60))
    split.main(["--input", rows, "--output_dir", str(tmp_path / "parts")])
    return tmp_path / "parts"


# who is refused


@pytest.mark.parametrize("use", ["validation", "calibration", "test"])
def test_held_out_rows_of_the_split_are_refused(tmp_path, use):
    spent(tmp_path, use, "a b", "c")
    with pytest.raises(
        UserError, match=rf"--given .*: 1 of its 2 rows are {use} rows of .*; .* give the train part"
    ):
        refuse(tmp_path / "some.jsonl", texts=("a  b", "d"))


def test_train_rows_are_taken(tmp_path):
    spent(tmp_path, "train", "a b")
    refuse(tmp_path / "some.jsonl")


def test_test_rows_of_a_run_are_refused_others_not(tmp_path):
    runs = (tmp_path / "run",)
    for use in ("train", "validation", "calibration"):
        spent(runs[0], use, "a b")
    refuse(tmp_path / "some.jsonl", runs=runs)
    spent(runs[0], "test", "a b")
    with pytest.raises(UserError, match=r"are test rows of .*run"):
        refuse(tmp_path / "some.jsonl", runs=runs)


@pytest.mark.parametrize(
    "form, name, was",
    [
        (RowFormat("id"), "text_field", "text"),
        (RowFormat("id,text"), "text_field", "text"),
        (RowFormat(pair_field="id"), "pair_field", ""),
    ],
)
def test_other_columns_than_the_splits_are_refused(parts, form, name, was):
    own = getattr(form, name)
    with pytest.raises(UserError, match=rf"was made with --{name} '{was}', here it is '{own}': .*; do so"):
        refuse(parts / "train.jsonl", form)


def test_another_column_of_labels_is_no_other_split(parts):
    refuse(parts / "train.jsonl", RowFormat(label_field="id"))


def test_a_broken_split_file_is_told(tmp_path):
    for content in ("{", "[]"):
        (tmp_path / "split.json").write_text(content)
        with pytest.raises(UserError, match=r"split.json cannot be read"):
            refuse(tmp_path / "some.jsonl")


def trained(run: Path, **fields: str) -> tuple[Path]:
    run.mkdir()
    form = vars(RowFormat()) | fields
    (run / "run.json").write_text(json.dumps({"model": {"row_format": form}}))
    return (run,)


@pytest.mark.parametrize("fields", [{"pair_field": "b"}, {"text_field": "a,b"}])
def test_a_run_of_another_form_is_refused(tmp_path, fields):
    runs = trained(tmp_path / "run", **fields)
    with pytest.raises(UserError, match=r"--check_run .*run: was trained with .*; give a run of such rows"):
        refuse(tmp_path / "some.jsonl", runs=runs)
    refuse(tmp_path / "some.jsonl", RowFormat(**fields), runs=runs)


def test_a_run_may_name_its_one_column_otherwise(tmp_path):
    refuse(tmp_path / "some.jsonl", runs=trained(tmp_path / "run", text_field="content", label_field="topic"))


def test_behind_a_link_both_folders_count(tmp_path):
    (tmp_path / "here").mkdir()
    spent(tmp_path / "there", "test", "a b")
    real = write_jsonl(tmp_path / "there" / "some.jsonl", [{"text": "a b"}])
    link = tmp_path / "here" / "some.jsonl"
    link.symlink_to(real)
    assert split_folders(str(link)) == [tmp_path / "there", tmp_path / "here"]
    assert split_folders(real) == [tmp_path / "there"]
    with pytest.raises(UserError, match=r"are test rows of .*there"):
        refuse(link)


# which they are


def test_parts_of_the_split_are_read(parts):
    found = read_held_out(str(parts / "train.jsonl"), [], [], RowFormat())
    expected = [
        row["text"] for use in ("validation", "calibration", "test") for row in read(parts / f"{use}.jsonl")
    ]
    assert found.texts == expected
    assert found.hashes == {row_hash(text) for text in expected}
    assert list(found.num_rows.values()) == [6, 6, 6]
    assert "known by their hash" not in found.told()


def test_a_part_that_is_excluded_too_is_read_once(parts):
    path = str(parts / "test.jsonl")
    found = read_held_out(str(parts / "train.jsonl"), [path, path], [], RowFormat())
    assert len(found.texts) == 18


def test_a_part_whose_file_is_gone_is_known_by_its_hashes(parts):
    expected = {row_hash(row["text"]) for row in read(parts / "test.jsonl")}
    (parts / "test.jsonl").unlink()
    found = read_held_out(str(parts / "train.jsonl"), [], [], RowFormat())
    assert expected < found.hashes
    assert found.told().endswith(f"{parts} (6 rows, known by their hash)")


def test_files_without_a_split_are_not_read(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", [{"no": "text"}])
    found = read_held_out(str(tmp_path / "some.jsonl"), [], [], RowFormat())
    assert found == HeldOut()
    assert "nothing is known" in found.told()


def test_what_a_run_chose_and_was_tested_by_counts_not_what_it_learnt(tmp_path):
    for use in ("train", "validation", "calibration", "test"):
        spent(tmp_path / "run", use, use)
    found = read_held_out(str(tmp_path / "some.jsonl"), [], [tmp_path / "run"], RowFormat())
    assert found.hashes == {row_hash(use) for use in ("validation", "calibration", "test")}
    assert found.told() == f"{tmp_path / 'run'} (3 rows, known by their hash)"


def test_pairs_are_read_whole(tmp_path):
    path = write_jsonl(tmp_path / "dev.jsonl", [{"text": "a", "answer": "b"}])
    found = read_held_out(str(tmp_path / "some.jsonl"), [path], [], RowFormat(pair_field="answer"))
    assert (found.texts, found.hashes) == (["a\nb"], {row_hash("a", "b")})


def test_bad_rows_are_all_told(tmp_path):
    path = write_jsonl(tmp_path / "dev.jsonl", [{"a": "b"}, {"text": "good"}, {"text": 3}])
    with pytest.raises(UserError, match=r"dev.jsonl: 2 bad rows:\n.*line 1: .*\n.*line 3: "):
        read_held_out(str(tmp_path / "some.jsonl"), [path], [], RowFormat())


# what is near one


def test_near_ones_copies_and_others_are_told_apart():
    held_out = HeldOut(["one two three four"], {row_hash("known by its hash"), row_hash("!!")})
    texts = [
        "Four one, two three!",
        "one two three",
        "one two",
        "known  by its hash",
        "by its hash known",
        "!!",
    ]
    near = "near-duplicate of a row to be scored on"
    expected = [near, near, "", "a row to be scored on", "", "a row to be scored on"]
    assert why_held_out(texts, [row_hash(text) for text in texts], held_out, 0.75) == expected


def test_nothing_is_near_to_nothing():
    assert why_held_out(["a"], [1], HeldOut(), 0.7) == [""]
    assert why_held_out([], np.zeros(0, np.uint64), HeldOut(["a"], {1}), 0.7) == []


# data.augment


@pytest.fixture
def run(tmp_path):
    """Call with rows and flags: what data.augment returns, and the rows written."""
    return partial(augmented, tmp_path)


def test_train_part_is_taken(run, parts):
    assert run(str(parts / "train.jsonl"))[0]["made"] > 40


@pytest.mark.parametrize("use", ["validation", "calibration", "test"])
def test_held_out_parts_are_refused(run, parts, use):
    with pytest.raises(UserError, match=f"--input .*: 6 of its 6 rows are {use} rows of .*parts"):
        run(str(parts / f"{use}.jsonl"))


def test_one_held_out_row_is_enough(run, parts):
    rows = [*read(parts / "train.jsonl"), read(parts / "test.jsonl")[0] | {"label": "b"}]
    with pytest.raises(UserError, match=f"1 of its {len(rows)} rows are test rows"):
        run(write_jsonl(parts / "mixed.jsonl", rows))


def test_parts_beside_the_input_are_excluded(run, parts):
    near = read(parts / "validation.jsonl")[0]
    near["text"] = " ".join([*near["text"].split()[:7], "more"])  # 7 of 11 words: no copy of it
    source = write_jsonl(parts / "more.jsonl", [near])
    assert run(source, "--methods", "swap", "--near", "0.6")[0]["rows_near_held_out"] == 1
    assert run(source, "--methods", "swap", "--near", "0.7")[0]["rows_near_held_out"] == 0


def test_hashes_alone_exclude_copies(run, parts):
    text = read(parts / "test.jsonl")[0]["text"]
    for path in parts.glob("*.jsonl"):
        path.unlink()
    first, second, *rest = text.split()
    source = write_jsonl(parts / "more.jsonl", [{"text": " ".join([second, first, *rest]), "label": "a"}])
    dropped = Counter()
    for seed in range(20):
        dropped.update(run(source, "--methods", "swap", "--rate", "0.01", "--seed", str(seed))[0]["dropped"])
    assert dropped["near a held-out row"] > 0


def test_augment_says_what_to_do_about_other_columns(run, parts):
    source = write_jsonl(parts / "other.jsonl", [{"id": "a b", "label": "a"}])
    with pytest.raises(
        UserError, match=r"--input .*split.json was made with .*; give the same \(--change_field"
    ):
        run(source, "--text_field", "id")
