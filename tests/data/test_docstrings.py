"""Docstring rows: traits and groups by hand, then the files made from this interpreter's own library."""

import errno
import json
import os
import random
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from core.errors import UserError
from data import docstrings
from data.docstrings import (
    NUM_CLASSES,
    TRAITS,
    Docstring,
    drop_duplicates,
    group_near_duplicates,
    join_groups,
    list_sources,
    main,
    parse_source,
    read_docstrings,
    split_by_group,
)

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Both tasks written once, from one reading of the library: task -> (folder, what main returned)."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    library = read_docstrings(stdlib)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "read_docstrings", lambda root: library if root == stdlib else ([], {}))
        folders = {task: tmp_path_factory.mktemp(task) / "rows" for task in ("package", "traits")}
        yield {task: (f, main(["--task", task, "--output_dir", str(f)])) for task, f in folders.items()}


def load(folder: Path) -> dict[str, list[dict]]:
    """The rows of each split, read line by line as the loops do."""
    lines = {split: (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines() for split in SPLITS}
    return {split: [json.loads(line) for line in rows] for split, rows in lines.items()}


def traits_of(source: str) -> list[set[str]]:
    return [{n for n, holds in d.traits.items() if holds} for d in parse_source(source, "x") if d.traits]


# By hand


@pytest.mark.parametrize(
    "source, expected",
    [
        ("def f():\n 'D.'", set()),
        ("def f(a):\n 'D.'\n if a:\n  return 1", {"returns"}),
        ("def f():\n 'D.'\n return None", set()),
        ("def f():\n 'D.'\n return", set()),
        ("def f():\n 'D.'\n return 0", {"returns"}),
        ("def f():\n 'D.'\n def g():\n  raise E\n  yield 1\n  return 1", set()),
        ("def f():\n 'D.'\n class A:\n  def g(self):\n   return 1", set()),
        ("def f():\n 'D.'\n h(lambda: (yield))", set()),
        ("def f():\n 'D.'\n try:\n  yield 1\n except E:\n  raise", {"yields", "raises"}),
        ("def f():\n 'D.'\n yield from g()", {"yields"}),
        ("async def f():\n 'D.'\n return await g()", {"async", "returns"}),
        ("def f(a, *, b):\n 'D.'", {"keyword_arguments"}),
        ("def f(a, *, b=1):\n 'D.'", {"keyword_arguments", "defaults"}),
        ("def f(a=1, /, *b, **c):\n 'D.'", {"defaults", "variable_arguments", "keyword_arguments"}),
        ("@g\ndef _f():\n 'D.'", {"decorated", "private"}),
        ("class A:\n def __len__(self):\n  'D.'\n  return 1", {"method", "special", "returns"}),
        ("class A:\n if b:\n  def f(self):\n   'D.'", {"method"}),
        ("class A:\n def f(self):\n  def g():\n   'D.'", set()),
        ("@g\nclass _A(B):\n 'D.'\n def f(self, a=1):\n  return a", {"class", "decorated", "private"}),
    ],
)
def test_traits_by_hand(source, expected):
    assert traits_of(source) == [expected]


def test_docstrings_of_a_file_in_order():
    source = '"""Module\n\n  text."""\nclass A:\n  """Class."""\n  def f(self):\n    "F."\ndef g():\n  pass\n'
    found = parse_source(source, "email")
    assert [(d.text, d.package, d.traits is None) for d in found] == [
        ("Module text.", "email", True),  # white space collapsed
        ("Class.", "email", False),
        ("F.", "email", False),
    ]
    assert tuple(found[1].traits) == TRAITS


def test_sources_are_sorted_and_named(tmp_path, monkeypatch):
    names = ["email/b.py", "email/a.py", "email/test/t.py", "io.py", "_pyio.py", "_pyrepl/x.py", "mine.py"]
    for name in names + ["site-packages/email/a.py", "config-3/python.py", "email/a.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("'Text.'")
    monkeypatch.setattr(sys, "stdlib_module_names", frozenset({"email", "io", "_pyio", "_pyrepl"}))
    expected = [("io", "_pyio.py"), ("_pyrepl", "_pyrepl/x.py")]
    expected += [("email", "email/a.py"), ("email", "email/b.py"), ("io", "io.py")]
    assert [(package, path.as_posix()) for package, path in list_sources(tmp_path)] == expected
    (tmp_path / "email/a.py").write_text("def broken(:")
    rows, files = read_docstrings(tmp_path)
    assert len(rows) == 4
    assert files == {"read": 4, "not_parsed": ["email/a.py"]}


def test_a_text_with_two_labels_is_dropped_whole():
    pairs = [("Same text.", "a"), ("same  TEXT.", "a"), ("Both.", "a"), ("both.", "b"), ("One.", "b")]
    rows = [Docstring(text, package, None) for text, package in pairs]
    kept, duplicates, ambiguous = drop_duplicates(rows, lambda row: row.package)
    assert [(row.text, row.package) for row in kept] == [("One.", "b"), ("Same text.", "a")]
    assert (duplicates, ambiguous) == (1, 2)


def test_near_duplicates_by_hand():
    texts = [
        "a b c d e f g h",  # 0
        "A, b c d e f (g) i",  # 1: 7 of 9 words in common with 0
        "b c d e f g i j",  # 2: 6 of 10 with 0, but 7 of 9 with 1: same group by way of it
        "p q r s t u v",  # 3
        "p q r s t u v x y z",  # 4: exactly 7 of 10
        "p q r s t u v w x y z",  # 5: 7 of 11 with 3, 10 of 11 with 4
        "k l m n o",  # 6: 3 of 7 with 7
        "k l m w x",  # 7
    ]
    groups = group_near_duplicates(texts)
    assert [[i for i, g in enumerate(groups) if g == group] for group in dict.fromkeys(groups)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [7],
    ]


def test_near_duplicates_against_all_pairs():
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 9))) for _ in range(150)]
    sets = [set(text.split()) for text in texts]
    group = list(range(len(texts)))
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            if len(a & b) * 10 >= len(a | b) * 7:
                group = [group[i] if g == group[j] else g for g in group]
    found = group_near_duplicates(texts)
    assert len(set(group)) > 10
    assert len(set(zip(found, group))) == len(set(found)) == len(set(group))


def test_split_keeps_groups_whole_and_labels_level():
    groups = [i // 3 if i < 90 else i for i in range(400)]  # 30 groups of three, then single rows
    labels = [["a"] if i % 4 else ["b"] for i in range(400)]
    splits = split_by_group(groups, labels, seed=0)
    assert sorted(i for rows in splits.values() for i in rows) == list(range(400))
    held_by = [{s for s, rows in splits.items() if any(groups[i] == g for i in rows)} for g in set(groups)]
    assert all(len(names) == 1 for names in held_by)
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(sum(labels[i] == ["b"] for i in splits[split]) - share * 100) <= 2
    assert splits == split_by_group(groups, labels, seed=0)
    assert splits != split_by_group(groups, labels, seed=1)
    large = split_by_group([0] * 60 + [1] * 15 + list(range(2, 27)), [["a"]] * 100, seed=0)
    assert [len(rows) for rows in large.values()] == [80, 10, 10]  # 15 rows would overfill the small splits


# On the real library


def count_straddling(splits: dict[str, list[dict]]) -> int:
    """Pairs of rows of different splits that share 70 % of their words, or of their runs of three words."""
    straddling = 0
    for size in (1, 3):
        vectorizer = CountVectorizer(binary=True, token_pattern=r"\w+", ngram_range=(size, size))
        vectorizer.fit([row["text"] for rows in splits.values() for row in rows])
        counts = {split: vectorizer.transform([row["text"] for row in splits[split]]) for split in SPLITS}
        for one, other in (("test", "train"), ("test", "validation"), ("validation", "train")):
            a, b = counts[one], counts[other]
            shared = (a @ b.T).tocoo()  # every pair that shares anything
            union = np.asarray(a.sum(axis=1))[shared.row, 0] + np.asarray(b.sum(axis=1))[shared.col, 0]
            straddling += int((10 * shared.data >= 7 * (union - shared.data)).sum())
    return straddling


@pytest.mark.parametrize("task", ["package", "traits"])
def test_no_near_duplicate_straddles(written, task):
    splits = load(written[task][0])
    assert count_straddling(splits) == 0


def test_rows_dealt_one_by_one_would_straddle(written):
    splits = load(written["package"][0])
    rows = [row for split in SPLITS for row in splits[split]]
    random.Random(0).shuffle(rows)
    assert count_straddling({"train": rows[800:], "validation": rows[:400], "test": rows[400:800]}) > 50


def test_package_rows_and_classes(written):
    folder, summary = written["package"]
    splits = load(folder)
    rows = [row for split in SPLITS for row in splits[split]]
    assert all(set(row) == {"text", "label"} for row in rows)
    assert all(row["text"] == " ".join(row["text"].split()) for row in rows)
    assert all(len(row["text"].split()) >= docstrings.MIN_WORDS for row in rows)
    assert len({row["text"].lower() for row in rows}) == len(rows) == summary["rows"]["all"] > 2000
    for split, least in (("train", 40), ("validation", 4), ("test", 4)):
        labels = [row["label"] for row in splits[split]]
        counts = {name: labels.count(name) for name in set(labels)}
        assert len(counts) == NUM_CLASSES
        assert min(counts.values()) >= least
        assert counts == {name: count[split] for name, count in summary["classes"].items()}
    assert abs(len(splits["train"]) / len(rows) - 0.8) < 0.02
    assert {"email", "asyncio", "unittest"} < set(summary["classes"])
    on_disk = json.loads((folder / "summary.json").read_text())
    assert summary == on_disk | {"output_dir": str(folder)}


def test_trait_rows(written):
    folder, summary = written["traits"]
    splits = load(folder)
    rows = [row for split in SPLITS for row in splits[split]]
    names = list(rows[0]["labels"])
    assert sorted(names + summary["left_out_traits"]) == sorted(TRAITS)
    assert 8 <= len(names) <= 12
    assert all(list(row["labels"]) == names and set(row["labels"].values()) <= {0, 1} for row in rows)
    for name in names:
        share = sum(row["labels"][name] for row in rows) / len(rows)
        assert 0.005 < share < 0.8
        for split in SPLITS:
            part = sum(row["labels"][name] for row in splits[split]) / len(splits[split])
            assert part == pytest.approx(share, rel=0.25)


def test_same_files_from_another_process(written, tmp_path):
    folder, _ = written["package"]
    command = [sys.executable, "-m", "data.docstrings", "--output_dir", str(tmp_path / "again")]
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert str(tmp_path / "again") in done.stdout
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "summary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_writing_again_replaces_and_keeps_other_files(written, tmp_path):
    first = main(["--output_dir", str(tmp_path), "--seed", "1"])
    (tmp_path / "notes.txt").write_text("mine")
    again = main(["--output_dir", str(tmp_path)])
    assert first["sha256"] != again["sha256"] == written["package"][1]["sha256"]
    expected = ["notes.txt", "summary.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert sorted(os.listdir(tmp_path)) == expected


# What a user can get wrong


def test_a_folder_that_cannot_be_written(written, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "rows"):
        with pytest.raises(UserError, match="--output_dir"):
            main(["--output_dir", str(folder)])


def test_a_full_disk_leaves_the_old_files(written, tmp_path, monkeypatch):
    main(["--output_dir", str(tmp_path / "rows")])
    before = (tmp_path / "rows" / "train.jsonl").read_bytes()

    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match="the disk is full"):
        main(["--output_dir", str(tmp_path / "rows"), "--seed", "1"])
    assert (tmp_path / "rows" / "train.jsonl").read_bytes() == before
    assert len(os.listdir(tmp_path / "rows")) == 4  # nothing half-written stays


@pytest.mark.parametrize("task", ["package", "traits"])
def test_an_interpreter_without_sources(tmp_path, task):
    with pytest.raises(UserError, match="standard library"):
        docstrings.build(tmp_path, task, seed=0)


def test_classes_stay_whole_by_hand():
    groups = join_groups([0, 1, 2, 2, 4], ["a:A", "a:A", "b:B", "", "b:B"])
    assert groups[0] == groups[1]
    assert groups[2] == groups[3] == groups[4]
    assert groups[0] != groups[2]
    source = 'class A:\n "of a"\n class B:\n  "of b"\n  def f(self):\n   "of f"\ndef g():\n "of g"\n'
    owners = {row.text: row.owner for row in parse_source(source, "x", "x.py")}
    assert owners == {"of a": "x.py:A", "of b": "x.py:A", "of f": "x.py:A", "of g": ""}


def test_no_class_straddles(written):
    """Texts of one class, looked up anew in the sources, are in one split."""
    found, _ = docstrings.read_docstrings(Path(sysconfig.get_path("stdlib")))
    count = Counter(row.text for row in found)
    owner = {row.text: row.owner for row in found if row.owner and count[row.text] == 1}
    splits = load(written["package"][0])
    held = {
        name: {owner[row["text"]] for row in rows if row["text"] in owner} for name, rows in splits.items()
    }
    assert len(held["train"]) > 100
    assert not held["train"] & held["test"]
    assert not held["train"] & held["validation"]
