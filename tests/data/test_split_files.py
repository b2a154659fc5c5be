"""data/split.py: hashes are those of the loops, a split is made once and whole, given test rows, bad input."""

import json
import shutil
from pathlib import Path

import pytest

import train
from core.cache import tokenise_file
from core.errors import UserError
from core.rows import RowFormat, file_sha256
from core.spent import USES, read_uses, refuse_test_rows, row_hashes
from core.tokens import Encoder
from data import split
from tests.conftest import Killed, full_disk, killed_at, tiny_tokenizer, toy_rows, write_jsonl
from tests.data.split_rows import made_rows, read_parts, run
from tests.helpers import replaced

# -- hashes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row_format, flags",
    [
        (RowFormat(), []),
        (RowFormat("text,id"), ["--text_field", "text,id"]),
        (RowFormat("text", "second", "kind"), ["--pair_field", "second", "--label_field", "kind"]),
    ],
)
def test_hashes_are_those_that_train_records(tmp_path, row_format, flags):
    rows = [row | {"second": f"b  {row['id']}\n", "kind": row["id"] % 2} for row in made_rows(80)]
    run(tmp_path, rows, *flags)
    encoder = Encoder(tiny_tokenizer(), 8, "head", bool(row_format.pair_field))
    found = read_uses(tmp_path / "out")
    assert set(found) == set(USES)
    for part in USES:
        path = str(tmp_path / "out" / f"{part}.jsonl")
        tokens = tokenise_file(path, "--train_data", encoder, row_format, str(tmp_path / "cache"))
        assert tokens.hashes.tolist() == found[part].tolist()
        assert len(found[part]) > 0


def test_a_loop_refuses_to_train_on_the_test_part_or_on_the_file_beside_it(toy_flags, tmp_path):
    rows = [row | {"text": f"{row['text']} {k} {k}x {k}y"} for k, row in enumerate(toy_rows(60))]
    run(tmp_path, rows)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"--train_data .*: 6 of its 6 rows are test rows of .*out"):
        train.main(replaced(toy_flags, train_data=out / "test.jsonl", val_data=out / "validation.jsonl"))
    shutil.copy(tmp_path / "rows.jsonl", out / "all.jsonl")
    with pytest.raises(UserError, match=r"--train_data .*all.jsonl: 6 of its 60 rows are test rows of"):
        train.main(replaced(toy_flags, train_data=out / "all.jsonl", val_data=out / "validation.jsonl"))
    for part in USES[:3]:
        refuse_test_rows(read_uses(out)[part], "--train_data", str(out / f"{part}.jsonl"))


# -- made once --------------------------------------------------------------------------------------------------


def test_a_second_split_is_refused_and_overwrite_leaves_nothing_of_the_first(tmp_path):
    rows = made_rows(100)
    run(tmp_path, rows)
    before = (tmp_path / "out" / "test.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"holds a split already \(split.json\).*--overwrite"):
        run(tmp_path, rows, "--seed", "1")
    assert (tmp_path / "out" / "test.jsonl").read_bytes() == before
    (tmp_path / "out" / "mine.txt").write_text("kept")
    parts, summary = run(tmp_path, rows, "--overwrite", "--seed", "1", "--shares", "0.8,0.1,0,0.1")
    assert list(parts) == list(read_uses(tmp_path / "out")) == ["train", "validation", "test"]
    assert list(summary["rows"]) == ["train", "validation", "test"]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["mine.txt", "rows", "split.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    (tmp_path / "out" / "split.json").unlink()
    with pytest.raises(UserError, match=r"holds a split already \(train.jsonl\)"):
        run(tmp_path, rows)


def test_rows_that_test_another_split_are_refused(tmp_path):
    run(tmp_path, made_rows(100))
    with pytest.raises(UserError, match=r"--input .*test.jsonl: 10 of its 10 rows are test rows of"):
        split.main(["--input", str(tmp_path / "out" / "test.jsonl"), "--output_dir", str(tmp_path / "again")])
    split.main(["--input", str(tmp_path / "out" / "train.jsonl"), "--output_dir", str(tmp_path / "again")])
    path = str(tmp_path / "out" / "train.jsonl")
    with pytest.raises(UserError, match=r"--input .*: is in --output_dir and would be replaced"):
        split.main(["--input", path, "--output_dir", str(tmp_path / "out"), "--overwrite"])


def test_a_split_beside_its_input_can_be_made_anew(tmp_path):
    (tmp_path / "out").mkdir()
    path = write_jsonl(tmp_path / "out" / "all.jsonl", made_rows(60))
    run(tmp_path, path)
    first, _ = read_parts(tmp_path / "out")
    run(tmp_path, path, "--overwrite", "--seed", "3")
    assert read_parts(tmp_path / "out")[0] != first
    assert Path(path).is_file()


def check_killed_anywhere(tmp_path: Path) -> None:
    """Kill a second split before each of its changes to the disk: there is the first, the second or none."""
    path = write_jsonl(tmp_path / "rows.jsonl", made_rows(40))
    run(tmp_path, path)
    call, refused, found = 0, True, set()
    while refused:
        folder = tmp_path / f"killed{call}"
        shutil.copytree(tmp_path / "out", folder / "out")
        refused = False
        try:
            with killed_at(call):
                run(folder, path, "--overwrite", "--seed", "1", "--calibration", "0")
        except Killed:
            refused = True
        if (folder / "out" / "split.json").exists():
            parts, summary = read_parts(folder / "out")
            found.add(summary["seed"])
            assert set(parts) == set(summary["files"]) == set(read_uses(folder / "out"))
            for part, about in summary["files"].items():
                assert about["sha256"] == file_sha256(folder / "out" / about["file"])
                hashes = row_hashes([row["text"] for row in parts[part]])
                assert read_uses(folder / "out")[part].tolist() == hashes.tolist()
        run(folder, path, "--overwrite")  # the next one finds nothing in its way
        call += 1
    assert found == {0, 1}
    assert call > 10


def test_killed_anywhere_a_split_is_whole_or_none(tmp_path):
    check_killed_anywhere(tmp_path)


def test_bite_files_replaced_under_the_old_split_json_are_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "WRITTEN", [])
    with pytest.raises(AssertionError):
        check_killed_anywhere(tmp_path)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", made_rows(300))
    with pytest.raises(UserError, match=r"the disk is full.*--output_dir"), full_disk(5000):
        run(tmp_path, path)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    run(tmp_path, path)
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.*")}
    with pytest.raises(UserError, match="the disk is full"), full_disk(5000):
        run(tmp_path, path, "--overwrite", "--seed", "1")
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.*")} == before


# -- given test rows --------------------------------------------------------------------------------------------


def test_given_test_rows_stay_and_what_is_near_to_them_is_dropped(tmp_path):
    test = [{"text": "a b c d e f g h", "label": "x", "author": "ann"}, {"text": "?", "label": "y"}]
    rows = [{"text": f"t{k} u{k}", "label": "xy"[k % 2], "author": f"n{k}"} for k in range(40)]
    rows[3] = {"text": "b c d e f g h i", "label": "x", "author": ""}  # 7 of 9 words
    rows[4] = {"text": "c d e f g h i j", "label": "x", "author": "?"}  # near to line 4 alone: it stays
    rows[5] = {"text": "A, b c d e f g h", "label": "y", "author": "ann"}
    rows[6] = {"text": "? ", "label": "y", "author": "n0"}
    rows[7] |= {"author": "ann"}
    given = write_jsonl(tmp_path / "given.jsonl", test)
    parts, summary = run(
        tmp_path, rows, "--test_data", given, "--group_field", "author", "--validation", "0.2"
    )
    assert parts["test"] == test
    assert summary["dropped"] == [
        {"line": 4, "test_line": 1, "why": "near-duplicate"},
        {"line": 6, "test_line": 1, "why": "near-duplicate"},
        {"line": 7, "test_line": 2, "why": "near-duplicate"},
        {"line": 8, "test_line": 1, "why": "same author"},
    ]
    assert rows[4] in [row for part in USES[:3] for row in parts[part]]
    assert summary["rows"] == {"train": 25, "validation": 7, "calibration": 4, "test": 2}
    assert {part: share["asked"] for part, share in summary["shares"].items()} == {
        "train": 0.7, "validation": 0.2, "calibration": 0.1
    }  # fmt: skip
    assert summary["test_data"] == {"path": given, "sha256": file_sha256(given)}
    assert read_uses(tmp_path / "out")["test"].tolist() == row_hashes([row["text"] for row in test]).tolist()
    run(
        tmp_path,
        rows,
        "--test_data",
        given,
        "--group_field",
        "author",
        "--overwrite",
        "--shares",
        "0.6,0.2,0.2",
    )


def test_a_test_label_that_is_not_trained_is_told(tmp_path):
    given = write_jsonl(tmp_path / "given.jsonl", [{"text": "zz", "label": "new"}])
    _, summary = run(tmp_path, made_rows(60), "--test_data", given)
    assert "labels without a train row: new" in summary["warnings"]
    with pytest.raises(UserError, match="--test: the test rows are those of --test_data"):
        run(tmp_path, made_rows(60), "--test_data", given, "--test", "0.2", "--overwrite")
    path = str(tmp_path / "rows.jsonl")
    with pytest.raises(
        UserError, match=r"0 rows in 0 indivisible groups leave .*\(60 rows dropped for the test"
    ):
        run(tmp_path, path, "--test_data", path, "--overwrite")


# -- bad input, output ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, told",
    [
        (
            ["--shares", "0.7,0.1,0.1"],
            r"--shares 0.7,0.1,0.1: expected 4 numbers that sum to 1: train, validation",
        ),
        (["--shares", "0.7,0.1,0.1,0.2"], "expected 4 numbers that sum to 1"),
        (["--shares", "1.2,-0.2,0,0"], "expected 4 numbers that sum to 1"),
        (["--shares", "a,b,c,d"], "expected 4 numbers that sum to 1"),
        (["--shares", "0.7,0.1,0.1,0.1", "--test", "0.1"], "says all shares; leave out --test"),
        (["--validation", "0.5", "--test", "0.4"], "no share is left for train"),
        (["--shares", "0,0.5,0.25,0.25"], "no share is left for train"),
        (["--near", "0.2"], "argument --near: 0.2: expected a number from 0.3 to 1"),
        (
            ["--group_field", "who"],
            r"20 bad rows:\n  line 1: no field 'who' \(found: id.*--group_field names it",
        ),
        (["--text_field", "body"], r"20 bad rows:\n  line 1: no field 'body'"),
        (["--input", "gone.jsonl"], "--input gone.jsonl: no such file"),
        (["--input", "-"], "--input -: not a regular file"),
        (["--test_data", "gone.jsonl"], "--test_data gone.jsonl: no such file"),
    ],
)
def test_what_a_user_can_get_wrong(tmp_path, flags, told):
    with pytest.raises(UserError, match=told):
        run(tmp_path, made_rows(20), *flags)
    assert not (tmp_path / "out").exists()


def test_rows_that_cannot_be_divided(tmp_path):
    with pytest.raises(
        UserError, match=r"3 rows in 1 indivisible groups leave validation, calibration, test empty"
    ):
        run(tmp_path, [{"text": "a b", "label": name} for name in "xyx"])
    with pytest.raises(UserError, match="no row has a label"):
        run(tmp_path, [{"text": f"t{k}", "labels": []} for k in range(20)])
    with pytest.raises(UserError, match=r"line 2: labels are a list of labels"):
        run(tmp_path, [{"text": "a", "label": "x"}, {"text": "b", "labels": ["x"]}])
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"--output_dir .*out: is a file"):
        run(tmp_path, made_rows(20))


def test_the_last_line_is_the_result(tmp_path, capsys):
    path = write_jsonl(tmp_path / "rows.jsonl", made_rows(100))
    result = split.main(["--input", path, "--output_dir", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == result
    assert result["rows"] == {"train": 70, "validation": 10, "calibration": 10, "test": 10}
    assert max(map(len, out.split("\n\nnear")[0].splitlines()[1:])) <= 110  # the first line has the path
