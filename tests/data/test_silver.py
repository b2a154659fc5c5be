"""Silver labels: splits, agreement and files by hand and by property, then the real predictions."""

import errno
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from core.cache import RowSource
from core.errors import UserError, run_main
from core.rows import RowFormat
from core.tokens import Encoder
from data.predictions import Row, same_text
from data.silver import main, split_rows
from tests.conftest import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data"


def write(folder: Path, content: object, name: str = "part_0.json") -> Path:
    """One file of a labelling model's folder: text as it is, anything else as JSON."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


def question(i: int) -> str:
    """Questions of which no two are near-duplicates."""
    return " ".join(f"w{i}x{k}" for k in range(5))


def ask(labels: list, first: int = 0) -> list[dict]:
    """Rows with one prediction each."""
    return [{"question": question(i), "prediction": label} for i, label in enumerate(labels, first)]


def strategies(*held: object) -> dict[str, dict]:
    """Rows with the labels that hold, under their ids."""
    rows = [{"question": question(i), "strategies_that_answer": names} for i, names in enumerate(held)]
    return {f"q{i}": row for i, row in enumerate(rows)}


def run(folder: Path, *flags: str, model: str = "m") -> tuple[dict, dict[str, list[dict]]]:
    """The summary and the rows of both files."""
    out = folder.parent / "out"
    flags = ("--validation_ratio", "0.5", *flags)
    summary = main(["--input_folder", str(folder), "--model_name", model, "--output_dir", str(out), *flags])
    target = out / "silver" / model
    assert summary["output_dir"] == str(target)
    return summary, {name: json.loads((target / f"{name}.json").read_text()) for name in ("train", "val")}


# Splits


@pytest.mark.parametrize("seed", range(5))
def test_the_same_question_is_on_one_side(seed):
    texts = [question(i // 2).upper() if i % 2 else question(i // 2) for i in range(20)]
    texts += ["?!", " ?!", "?! ", "!"] * 2  # without a word
    rows = [Row(str(i), text, ("A",)) for i, text in enumerate(texts)]
    splits, _ = split_rows(rows, 0.5, seed)
    sides = [{same_text(row.text) for row in rows} for rows in splits.values()]
    assert sum(map(len, splits.values())) == 28
    assert not sides[0] & sides[1]


def count_near(texts: list[str], others: list[str]) -> int:
    """Pairs with at least 70 % of their different words in common."""
    sets = [[{*re.findall(r"\w+", text.lower())} for text in side] for side in (texts, others)]
    return sum(10 * len(a & b) >= 7 * len(a | b) for a in sets[0] for b in sets[1])


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_never_divided_and_labels_are_level(seed):
    rng = random.Random(seed)
    texts = []
    for _ in range(90):
        words = rng.choices([f"w{k}" for k in range(400)], k=rng.randint(4, 9))
        texts += [" ".join([*words, f"more{k}"][: len(words) + k]) for k in range(rng.randint(1, 2))]
    rows = [Row(str(i), text, (rng.choice("AAAAAABBBC"),)) for i, text in enumerate(texts)]
    splits, told = split_rows(rows, 0.2, seed)
    assert sorted(int(row.id) for rows in splits.values() for row in rows) == list(range(len(rows)))
    assert count_near(*([row.text for row in rows] for rows in splits.values())) == 0
    assert told["rows"] > 50
    count = {name: Counter(row.labels[0] for row in rows) for name, rows in splits.items()}
    for label in "ABC":
        assert abs(count["val"][label] - 0.2 * (count["train"][label] + count["val"][label])) <= 3
    rng.shuffle(texts)
    assert count_near(texts[:50], texts[50:]) > 5  # what rows dealt one by one would do


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
def test_each_label_has_its_share_to_the_row(ratio):
    rows = [Row(str(i), question(i), ("AAAAAABBBC"[i % 10],)) for i in range(200)]
    splits, told = split_rows(rows, ratio, seed=3)
    assert told == {"rows": 0, "largest_group": 1}
    count = Counter(row.labels[0] for row in splits["val"])
    assert all(abs(count[name] - ratio * n) < 1 for name, n in {"A": 120, "B": 60, "C": 20}.items())
    assert len(splits["val"]) == 200 * ratio


@pytest.mark.parametrize("seed", range(5))
def test_label_sets_are_level(seed):
    """Sets that can be in both splits to the row, rarer ones by their labels."""
    held = [("A", "B"), ("C", "D"), ("A", "C"), ("B", "D"), ("A", "D"), ("B", "C")]  # a label is in 3 sets
    rows = [Row(str(i), question(i), held[i % 6]) for i in range(180)]
    count = Counter(row.labels for row in split_rows(rows, 0.2, seed)[0]["val"])
    assert all(abs(count[labels] - 6) <= 1 for labels in held)
    rows = [Row(str(i), question(i), (("X", "Y")[i % 2], f"with {i // 8}")) for i in range(160)]
    count = Counter(row.labels[0] for row in split_rows(rows, 0.2, seed)[0]["val"])
    assert abs(count["X"] - 16) <= 1
    assert abs(count["Y"] - 16) <= 1


def test_a_label_of_val_is_in_train_too():
    """train.py refuses any other: what has one row, or one group of near-duplicates, is for training."""
    rows = [Row(str(i), question(i), ("A" if i < 20 else f"once {i}",)) for i in range(40)]
    rows += [Row(str(40 + i), question(40) + " more" * i, ("twice",)) for i in range(2)]
    for seed in range(5):
        for ratio in (0.2, 0.5, 0.7):
            splits = split_rows(rows, ratio, seed)[0]
            assert sum(map(len, splits.values())) == 42
            assert {row.labels for row in splits["val"]} == {("A",)}


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path):
    folder = write(tmp_path / "in", ask(list("ABBCAABCBA") * 4))
    run(folder, "--seed", "5")
    command = [sys.executable, "-m", "data.silver", "--input_folder", str(folder), "--model_name", "m"]
    command += ["--output_dir", str(tmp_path / "again"), "--validation_ratio", "0.5", "--seed", "5"]
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["output_dir"] == str(tmp_path / "again" / "silver" / "m")
    assert last["rows"] == {"read": 40, "train": 20, "val": 20}
    target = tmp_path / "out" / "silver" / "m"
    for name in ("train.json", "val.json", "summary.json"):
        assert (tmp_path / "again" / "silver" / "m" / name).read_bytes() == (target / name).read_bytes()
    before = (target / "val.json").read_bytes()
    run(folder, "--seed", "6")
    assert (target / "val.json").read_bytes() != before


# Agreement


def test_agreement_by_hand(tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "m", ask(list("AAAABBBBAB")))
    write(folder / "other", ask(list("AAABBBBB")) + ask(["A"], first=70), "x.json")
    write(folder / "third", ask(["A", "B"], first=80))
    summary, _ = run(folder)
    found = {tuple(pair["models"]): pair for pair in summary["agreement"]}
    assert list(found) == [("m", "other"), ("m", "third"), ("other", "third")]
    assert found["m", "third"] == {"models": ["m", "third"], "questions": 0}
    # of 8 equal: 3 A and 4 B; equal by chance: 4/8 * 3/8 for A, 4/8 * 5/8 for B
    assert found["m", "other"]["questions"] == 8
    assert found["m", "other"]["equal"] == 0.875
    assert found["m", "other"]["kappa"] == pytest.approx((0.875 - 0.5) / (1 - 0.5))
    assert found["m", "other"]["confusion"] == {"A": {"A": 3, "B": 1}, "B": {"A": 0, "B": 4}}
    said = capsys.readouterr().out
    assert "m and other: 8 questions in both, equal 0.8750, kappa 0.7500\nlines m, columns other\n" in said
    assert "m and third: 0 questions in both\n" in said


def test_agreement_of_label_sets_by_hand(tmp_path):
    folder = tmp_path / "in"
    write(folder / "m", strategies(["A"], ["A", "B"], ["B", "C"], ["C"], ["A"], ["A", "B"]))
    write(tmp_path / "far", strategies(["A"], ["B"], ["C", "B"], ["A"], ["A", "B"], ["B", "C"]))
    summary, _ = run(folder, "--multiple", "--compare_with", str(tmp_path / "far"))
    [pair] = summary["agreement"]
    assert pair["models"] == ["m", str(tmp_path / "far")]
    assert pair["equal"] == pytest.approx(2 / 6)
    assert pair["jaccard"] == pytest.approx((1 + 1 / 2 + 1 + 0 + 1 / 2 + 1 / 3) / 6)


def test_agreement_where_kappa_is_not_defined(tmp_path):
    folder = write(tmp_path / "in", ask(["A"] * 4))
    write(tmp_path / "in2", ask(["A"] * 4))
    summary, _ = run(folder, "--compare_with", str(tmp_path / "in2"))
    assert [(pair["equal"], pair["kappa"]) for pair in summary["agreement"]] == [(1.0, None)]


def test_a_model_without_a_folder_among_those_of_others(tmp_path):
    """Its name misspelt, it would be given their labels."""
    write(tmp_path / "in" / "a", ask(["A", "A"]))
    write(tmp_path / "in" / "b", ask(["A", "A"], first=2))
    with pytest.raises(UserError, match=r"--model_name m: no such folder in .*/in; there are a, b"):
        run(tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_folders_beside_that_hold_no_rows_are_passed_over(tmp_path, capsys):
    folder = tmp_path / "in"
    write(folder / "m", ask(list("ABAB")))
    write(folder / "broken", "{", "a.json")
    assert run(folder)[0]["agreement"] == []
    assert "not compared: " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"broken/a.json, line 1, column 2: invalid JSON"):
        run(folder, "--compare_with", "broken")


# What reads the files


def test_what_is_written_and_said(tmp_path, capsys):
    write(tmp_path / "in", "not read", "broken.json")  # beside the model's own folder
    write(
        tmp_path / "in" / "m", strategies(["B", "A"], ["B"], ["A", "D"], ["B"], ["A"], ["B"], [], ["A or B"])
    )
    summary, splits = run(tmp_path / "in", "--order", "A,B", "--multiple")
    rows = sorted(splits["train"] + splits["val"], key=lambda row: row["id"])
    assert rows[:2] == [
        {"id": "q0", "text": question(0), "labels": ["A", "B"]},
        {"id": "q1", "text": question(1), "labels": ["B"]},
    ]
    assert summary["rows"] == {"read": 8, "train": 3, "val": 3}
    assert {name: sum(n.values()) for name, n in summary["classes"].items()} == {"A": 3, "B": 4}
    assert {name: sum(n.values()) for name, n in summary["label_sets"].items()} == {"B": 3, "A": 2, "A+B": 1}
    assert list(summary["files"]) == ["part_0.json"]
    said = capsys.readouterr().out
    assert f"{tmp_path}/in/m: 1 files, 8 rows read, 6 kept\n  text    question (guessed)\n" in said
    assert "simplest first (as given): A, B\n" in said
    assert re.search(r"\nA +\d +\d +0\.\d{4}\nB", said)
    assert "dropped: 2 rows\n" in said
    assert '     1  names several of the labels (first: q7: "A or B")\n' in said
    assert '     1  rows lost the label "D", which is none of --order, and keep another\n' in said
    last = json.loads(said.splitlines()[-1])
    assert last["rows"] == summary["rows"]
    assert Path(last["output_dir"]).is_dir()


@pytest.mark.parametrize("flags", [[], ["--multiple"]])
def test_the_loops_read_what_is_written(flags, tmp_path):
    held = [["A", "B"], ["B"], ["A"], ["B", "A"]] * 3
    run(write(tmp_path / "in", strategies(*held)), *flags)
    source = RowSource(Encoder(tiny_tokenizer(), 8, "head", False), RowFormat(), str(tmp_path / "cache"))
    folder = tmp_path / "out" / "silver" / "m"
    train = source.open(str(folder / "train.json"), "--train_data")
    val = source.open(str(folder / "val.json"), "--val_data", train)
    assert sorted([*train.lengths, *val.lengths]) == [7] * 12
    assert train.label_names == val.label_names == ["A", "B"]
    assert train.multi_label == val.multi_label == bool(flags)


# What a user can get wrong


@pytest.mark.parametrize("flags, message", [
    (["--validation_ratio", "0.1"], r"--validation_ratio 0.1: 4 rows in 4 groups of near-duplicates leave val"),
    (["--validation_ratio", "1"], r"--validation_ratio 1: expected a number between 0 and 1"),
    (["--validation_ratio", "nan"], r"--validation_ratio nan: expected a number between 0 and 1"),
    (["--validation_ratio", "x"], r"--validation_ratio: invalid float value: 'x'"),
    (["--order", "A,,B"], r"--order A,,B: expected different names"),
    (["--order", "A,A"], r"--order A,A: expected different names"),
    (["--compare_with", "far"], r"--compare_with far: no such folder, nor is there one in"),
])  # fmt: skip
def test_flags_that_cannot_be(flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        run(write(tmp_path / "in", ask(list("AABB"))), *flags)
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match=r"--input_folder .*missing: no such folder"):
        run(tmp_path / "missing")
    write(tmp_path, "text", "file")
    with pytest.raises(UserError, match=r"--input_folder .*file: is a file"):
        run(tmp_path / "file")
    with pytest.raises(UserError, match=r"lies in .*, which is read"):
        run(write(tmp_path / "out", ask(["A", "B"])))


def test_a_full_disk_leaves_the_old_files_and_files_of_other_names(tmp_path, monkeypatch):
    folder = write(tmp_path / "in", ask(list("ABAB")))
    run(folder)
    target = tmp_path / "out" / "silver" / "m"
    write(target, "mine", "test.json")
    run(folder, "--seed", "1")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert sorted(before) == ["summary.json", "test.json", "train.json", "val.json"]

    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=r"the disk is full.*--output_dir"):
        run(folder, "--seed", "2")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_an_error_is_one_line_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_main(lambda: run(tmp_path / "no"))
    assert re.fullmatch(r"error: --input_folder .*no: no such folder\n", capsys.readouterr().err)


# The real predictions


def test_real_predictions_are_the_labels_that_people_train_on(tmp_path):
    source, labelled = REAL / "silver_predictions", REAL / "question_complexity"
    if not (source.is_dir() and labelled.is_dir()):
        pytest.skip(f"no {source.name} and {labelled.name} in ../shared/data")
    flags = ["--input_folder", str(source), "--model_name", "flan-t5-xl", "--output_dir", str(tmp_path)]
    summary = main(flags)
    assert summary["rows"] == {"read": 1292, "train": 1034, "val": 258}
    written = [
        json.loads((Path(summary["output_dir"]) / f"{name}.json").read_text()) for name in ("train", "val")
    ]
    assert count_near(*([row["text"] for row in rows] for rows in written)) == 0
    known = [(labelled / f"{name}.jsonl").read_text().splitlines() for name in ("train", "dev")]
    rows = [json.loads(line) for lines in known for line in lines]
    expected = {same_text(row["text"]): row["label"] for row in rows}
    assert {same_text(row["text"]): row["label"] for rows in written for row in rows} == expected
    counts = main([*flags, "--multiple"])["classes"]
    assert {name: sum(n.values()) for name, n in counts.items()} == {"A": 424, "B": 1008, "C": 1110}
