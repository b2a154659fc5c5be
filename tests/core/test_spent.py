"""Rows are spent once: known again by their text, refused where test rows would choose, recorded by every loop."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rank_train
import train
from core.errors import UserError
from core.spent import check_uses, count_common, read_uses, refuse_test_rows, row_hash, row_hashes, write_uses
from tests.helpers import rank_flags, replaced


def read_jsonl(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows(texts: list[str], path: str = "rows.jsonl") -> SimpleNamespace:
    return SimpleNamespace(hashes=row_hashes(texts), meta={"path": path})


def test_a_row_is_known_by_its_texts_whitespace_aside():
    assert row_hash("a  text\n") == row_hash(" a text") == row_hash("a text", None) == row_hash("a text", "")
    different = [("a", "b"), ("a b",), ("b", "a"), ("A", "b"), ("", "a b"), ("a", "b", "c")]
    assert len({row_hash(*texts) for texts in different}) == len(different)
    row_hash("half a pair \ud800")


def test_hashes_are_those_of_each_row():
    assert row_hashes(["a", "b"], ["x", None]).tolist() == [row_hash("a", "x"), row_hash("b")]
    assert row_hashes([]).dtype == np.uint64


def test_uses_are_written_and_read(tmp_path):
    write_uses(tmp_path, {"train": rows(["a", "b"]), "test": rows(["c"])})
    found = read_uses(tmp_path)
    assert set(found) == {"train", "test"}
    assert found["train"].tolist() == row_hashes(["a", "b"]).tolist()
    assert read_uses(tmp_path / "nowhere") == {}


def test_common_rows_are_counted_by_the_rows_of_the_first():
    assert count_common(row_hashes(["a", "a", "b", "c"]), row_hashes(["a", "c", "d"])) == 3


def test_rows_that_serve_two_ends_are_told():
    data = {"train": rows(["a", "b"]), "validation": rows(["b", "c", "c"]), "test": rows(["c", "d"])}
    assert check_uses(data) == [
        "note: 1 of 3 validation rows are train rows too, by their text",
        "note: 1 of 2 test rows are validation rows too, by their text",
    ]
    assert check_uses({"train": rows(["a"]), "validation": rows(["b"])}) == []


@pytest.mark.parametrize(
    "use, flag", [("train", "--train_data"), ("validation", "--val_data"), ("calibration", "--calibration_data")]
)  # fmt: skip
def test_test_rows_of_a_split_do_not_train_or_choose(use, flag, tmp_path):
    write_uses(tmp_path, {"test": rows(["c", "d"])})
    path = str(tmp_path / "given.jsonl")
    with pytest.raises(UserError, match=rf"{flag} .*given.jsonl: 1 of its 2 rows are test rows of "):
        check_uses({use: rows(["x", "d"], path)})
    check_uses({"test": rows(["c", "d"], path), use: rows(["x"], path)})  # as test rows they are welcome
    check_uses({use: rows(["x", "d"], str(tmp_path / "elsewhere" / "given.jsonl"))})


def test_feedback_names_its_own_flag(tmp_path):
    write_uses(tmp_path, {"test": rows(["c"])})
    with pytest.raises(UserError, match="--feedback "):
        check_uses({"train": rows(["c"], str(tmp_path / "f.json"))}, "--feedback")


def test_test_rows_of_a_run_are_refused_for_a_choice(tmp_path):
    write_uses(tmp_path / "run", {"test": rows(["c"])})
    refuse_test_rows(row_hashes(["a"]), "--data", "rows.jsonl", [tmp_path / "run"])
    with pytest.raises(UserError, match=r"--data rows.jsonl: 2 of its 2 rows are test rows of .*run"):
        refuse_test_rows(row_hashes(["c", "c"]), "--data", "rows.jsonl", [tmp_path / "run"])


def test_a_run_records_its_rows_and_says_which_serve_two_ends(toy_flags, toy_files, tmp_path, capsys):
    run = train.main([*toy_flags, "--test_data", toy_files["val"], "--max_steps", "1"])["run"]
    found = read_uses(run)
    assert set(found) == {"train", "validation", "test"}
    texts = [row["text"] for row in read_jsonl(toy_files["train"])]
    assert found["train"].tolist() == row_hashes(texts).tolist()
    num_rows = len(found["test"])
    assert f"note: {num_rows} of {num_rows} test rows are validation rows too" in capsys.readouterr().out


def test_a_loop_refuses_the_test_part_of_a_split(toy_flags, toy_files, tmp_path):
    texts = [row["text"] for row in read_jsonl(toy_files["val"])]
    write_uses(Path(toy_files["val"]).parent, {"test": rows(texts[:3])})
    with pytest.raises(UserError, match=r"--val_data .*: 3 of its .* rows are test rows of"):
        train.main(toy_flags)


def test_a_ranker_records_its_questions_with_their_contexts(tmp_path):
    flags = replaced(rank_flags(tmp_path, "bert"), output_dir=tmp_path / "run", max_steps=1)
    rank_train.main(flags)
    path = flags[flags.index("--val_data") + 1]
    expected = [row_hash(row["question"], row.get("context")) for row in read_jsonl(path)]
    assert read_uses(tmp_path / "run")["validation"].tolist() == expected
