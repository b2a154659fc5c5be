"""Built-in findings: each rule by hand, both ways, then the files made of a part of this interpreter's library."""

import errno
import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from core.errors import UserError
from core.rows import RowFormat
from data import smells
from data.smell_rules import SMELLS
from data.smells import drop_copies, find_detections, main, show_context
from data.splits import group_near_duplicates

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")
PACKAGES = {
    "asyncio",
    "email",
    "http",
    "importlib",
    "json",
    "logging",
    "multiprocessing",
    "unittest",
    "xml",
    "zipfile",
}


# For each rule, sources whose lines end in the label that the rule is to give; a line without one: no finding
def test_a_detection_by_hand():
    source = "import os\n\ndef f(a):\n    b = 1\n    if a:\n        assert a > 0\n    return b\n"
    assert find_detections(source, "pack/mod.py") == [
        {
            "smell": "assert_as_check",
            "file": "pack/mod.py",
            "content": "assert a > 0",
            "line": 6,
            "with_context": "import os\n\ndef f(a):\nb = 1\nif a:\n6:         assert a > 0\nreturn b\n",
            "label": "TP",
        }
    ]
    assert show_context([f" {n}" for n in range(1, 20)], 10) == "5\n6\n7\n8\n9\n10:  10\n11\n12\n13\n14\n15"


def test_lines_are_counted_as_the_parser_does():
    """Form feeds and other breaks of str.splitlines, which stand in real sources, end no line."""
    source = "x = 1\n\x0c\ny = 'a\x1cb\u2028c'\ndef f():\n    print(1)\n"
    assert [(row["line"], row["label"]) for row in find_detections(source, "a.py")] == [(5, "TP")]


def test_a_source_without_findings_is_not_parsed():
    assert find_detections("def broken(:", "a.py") == []
    with pytest.raises(SyntaxError):
        find_detections("def broken(:\n    assert x", "a.py")


def test_copies_of_a_context_stay_in_one_file():
    same, other = "3: a b c d e f g h\ni j", "9: k l m n o\np"
    rows = [{"file": "b.py", "with_context": same}, {"file": "a.py", "with_context": same.replace("3", "7")}]
    rows += [{"file": "a.py", "with_context": other}, {"file": "c.py", "with_context": same + " q"}]
    rows += [{"file": "c.py", "with_context": same + " r"}]
    assert drop_copies(rows) == [rows[2], rows[3], rows[4]]
    assert drop_copies(rows[:3]) == rows[1:3]  # as many rows each: the first file by name


# On a part of the real library


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Rows of PACKAGES, written once: the folder and what main returned."""
    folder = tmp_path_factory.mktemp("smells") / "rows"
    with pytest.MonkeyPatch.context() as patch:
        use_packages(patch)
        return folder, main(["--output_dir", str(folder)])


def use_packages(patch) -> None:
    whole = smells.list_sources
    patch.setattr(smells, "list_sources", lambda root: [s for s in whole(root) if s[0] in PACKAGES])


def load(folder: Path) -> dict[str, list[dict]]:
    lines = {
        split: (folder / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")[:-1] for split in SPLITS
    }
    return {split: [json.loads(line) for line in rows] for split, rows in lines.items()}


def test_rows_and_summary(written):
    folder, summary = written
    splits = load(folder)
    rows = [row for split in SPLITS for row in splits[split]]
    assert len(rows) == summary["rows"]["all"] > 500
    assert abs(len(splits["train"]) / len(rows) - 0.8) < 0.05
    assert len({(row["smell"], row["file"], row["line"]) for row in rows}) == len(rows)
    fields = ["smell", "file", "content", "line", "with_context", "label", "code", "with_prompt"]
    for row in rows:
        assert list(row) == fields
        assert f"--> {row['content']}"[:40] in row["code"]
        assert SMELLS[row["smell"]].__doc__ in row["with_prompt"]
        assert row["with_prompt"].startswith("A static analyser for Python code")
        RowFormat(text_field="with_prompt").text(row)
    for split in SPLITS:
        labels = [row["label"] for row in splits[split]]
        assert set(labels) == {"TP", "FP"}
        assert min(labels.count("TP"), labels.count("FP")) > 0.2 * len(labels)
        counted = {(row["smell"], row["label"]) for row in splits[split]}
        told = {(s, k) for s, counts in summary["smells"].items() for k in counts if counts[k][split]}
        assert counted == told
    assert summary == json.loads((folder / "summary.json").read_text()) | {"output_dir": str(folder)}


def test_labels_are_what_the_sources_say(written):
    """Each row's line stands in its file, and the file read alone gives the same label."""
    library = Path(sysconfig.get_path("stdlib"))
    rows = [row for own in load(written[0]).values() for row in own]
    for file in sorted({row["file"] for row in rows})[::8]:
        source = smells.importlib.util.decode_source((library / file).read_bytes())
        found = {(row["smell"], row["line"]): row for row in find_detections(source, file)}
        for row in rows:
            if row["file"] == file:
                assert found[row["smell"], row["line"]].items() <= row.items()
                assert source.split("\n")[row["line"] - 1].strip() == row["content"]


def test_no_file_and_no_near_duplicate_on_two_sides(written):
    splits = load(written[0])
    files = {split: {row["file"] for row in rows} for split, rows in splits.items()}
    assert not files["train"] & files["validation"]
    assert not files["train"] & files["test"]
    assert not files["validation"] & files["test"]
    rows = [(split, row) for split in SPLITS for row in splits[split]]

    def count_divided(sides: list[str]) -> int:
        texts = [row["with_context"].replace(f"{row['line']}: ", "", 1) for _, row in rows]
        held: dict[int, set] = {}
        for group, side in zip(group_near_duplicates(texts), sides):
            held.setdefault(group, set()).add(side)
        return sum(len(names) > 1 for names in held.values())

    assert count_divided([split for split, _ in rows]) == 0
    dealt = [split for split, _ in rows]
    random.Random(0).shuffle(dealt)
    assert count_divided(dealt) > 20  # rows dealt one by one would be divided


def test_same_files_from_another_process(written, tmp_path):
    folder, _ = written
    code = (
        "import sys; from data import smells; from pytest import MonkeyPatch; whole = smells.list_sources; "
    )
    code += f"smells.list_sources = lambda root: [s for s in whole(root) if s[0] in {sorted(PACKAGES)}]; "
    code += f"smells.main(['--output_dir', {str(tmp_path / 'again')!r}])"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["output_dir"] == str(tmp_path / "again")
    for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "summary.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_rule_gives_no_more_than_its_share(monkeypatch, tmp_path):
    library = find_detections("\n".join(["print(1)"] * 50), "a.py")
    for row in library:
        row["file"] = f"{row['line']}.py"
        row["with_context"] = f"{row['line']}: word{row['line']} print"
    library += [row | {"smell": "use_of_eval", "label": "TP", "with_context": "x y"} for row in library[:3]]
    monkeypatch.setattr(smells, "MOST_OF_A_RULE", 10)
    monkeypatch.setattr(smells, "drop_copies", list)
    monkeypatch.setattr(smells, "read_detections", lambda root: (library, {"read": 1, "not_parsed": []}))
    monkeypatch.setattr(smells, "FEWEST_FILES", 5)
    _, summary = smells.build(tmp_path, seed=0)
    assert summary["rows"]["all"] == 13
    assert summary["dropped"] == {"near_duplicates": 0, "over_the_most_of_a_rule": 40}


# What a user can get wrong


def test_an_interpreter_without_sources(tmp_path):
    with pytest.raises(UserError, match="standard library"):
        smells.build(tmp_path, seed=0)


def test_a_full_disk_leaves_nothing(monkeypatch, tmp_path):
    rows = {split: [{"smell": "a"}] for split in SPLITS}
    count = {label: dict.fromkeys(SPLITS, 1) for label in ("TP", "FP")}
    summary = {
        "rows": {},
        "smells": {"a": count},
        "dropped": {},
        "files": {"read": 0, "not_parsed": []},
        "python": "",
    }
    monkeypatch.setattr(smells, "build", lambda root, seed: (rows, summary))
    main(["--output_dir", str(tmp_path / "whole")])

    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=r"the disk is full.*--output_dir"):
        main(["--output_dir", str(tmp_path / "rows")])
    assert os.listdir(tmp_path) == ["whole"]


def test_without_docstrings_there_is_no_prompt(tmp_path):
    command = [sys.executable, "-OO", "-m", "data.smells", "--output_dir", str(tmp_path / "rows")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: python -OO")
    assert os.listdir(tmp_path) == []
