"""jobs/audit_verdicts.py: what each verdict does to the rows, in each form of labels; what is no verdict."""

import json
from pathlib import Path

import numpy as np
import pytest

from core.errors import UserError
from core.files import save_array
from core.rows import file_sha256
from core.spent import row_hash
from jobs.audit_verdicts import apply_verdicts, has_verdicts
from tests.conftest import write_jsonl

TEXTS = ["zero", "one", "two", "three", "four"]


def an_audit(folder: Path, labels: list, suggested: list, field: str = "label", **more) -> Path:
    """The folder of an audit that asks about every row but the last; a row's given labels are names."""
    folder.mkdir(exist_ok=True)
    rows = [{"text": text, field: label} for text, label in zip(TEXTS, labels, strict=True)]
    path = write_jsonl(folder / "train.jsonl", rows)
    names = sorted(
        {str(name) for label in labels for name in (label if isinstance(label, list | dict) else [label])}
    )
    several = isinstance(labels[0], list | dict)
    row_format = {"text_field": "text", "pair_field": "", "label_field": ""}
    summary = {"train_data": path, "sha256": file_sha256(path), "label_names": names, "multi_label": several}
    (folder / "summary.json").write_text(json.dumps(summary | {"row_format": row_format} | more))
    asked = []
    for number, (text, label, own) in enumerate(zip(TEXTS[:-1], labels, suggested, strict=False), 1):
        given = [str(n) for n in label if not isinstance(label, dict) or label[n]] if several else str(label)
        asked.append({"row": number, "text": text, "given": given, "suggested": own})
    write_jsonl(folder / "audit.jsonl", asked)
    return folder


def applied(folder: Path, *verdicts: str, **more) -> tuple[list, dict]:
    rows = [{"row": k, "verdict": verdict} for k, verdict in enumerate(verdicts, 1)]
    return apply_verdicts(write_jsonl(folder / "verdicts.jsonl", rows), folder)


def test_each_verdict(tmp_path):
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b", "a", "b", "a"])
    before = (folder / "train.jsonl").read_bytes()
    rows, counts = applied(folder, "keep", " Fix ", "drop", "fix/a")
    assert [(row["text"], row["label"]) for row in rows] == [
        ("zero", "a"),
        ("one", "a"),
        ("three", "a"),
        ("four", "a"),
    ]
    assert counts == {"kept": 1, "fixed": 2, "dropped": 1, "dropped_test_rows": 0, "undecided": 0}
    assert (folder / "train.jsonl").read_bytes() == before


def test_rows_without_a_verdict_stay_as_they_were(tmp_path):
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b", "a", "b", "a"])
    rows, counts = applied(folder, "", "drop")
    assert [row["text"] for row in rows] == ["zero", "two", "three", "four"]
    assert [row["label"] for row in rows] == ["a", "a", "b", "a"]
    assert (counts["undecided"], counts["dropped"]) == (3, 1)


def test_integers_stay_integers(tmp_path):
    rows, _ = applied(an_audit(tmp_path, [1, 2, 1, 2, 1], ["2"] * 4), "fix", "keep", "fix/2")
    assert [row["label"] for row in rows] == [2, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "verdict, expected",
    [("fix", ["b"]), ("fix/a, b", ["a", "b"]), ('fix/["b", "a"]', ["b", "a"]), ("fix/", []), ("keep", ["a"])],
)
def test_lists_of_labels(tmp_path, verdict, expected):
    folder = an_audit(tmp_path, [["a"], ["b"], [], ["a", "b"], ["a"]], [["b"]] * 4, "labels")
    rows, _ = applied(folder, verdict)
    assert rows[0]["labels"] == expected
    assert rows[3]["labels"] == ["a", "b"]


def test_labels_as_0_and_1_keep_their_names(tmp_path):
    labels = [{"b": 1, "a": 0}] * 5
    rows, _ = applied(an_audit(tmp_path, labels, [["a"]] * 4, "labels"), "fix", "fix/", "fix/a, b")
    assert [row["labels"] for row in rows[:3]] == [{"b": 0, "a": 1}, {"b": 0, "a": 0}, {"b": 1, "a": 1}]


def test_json_in_a_csv_cell_stays_json(tmp_path):
    folder = an_audit(tmp_path, [["a"], ["b"], ["a"], ["a"], ["a"]], [["a", "b"]] * 4, "labels")
    csv = folder / "train.csv"
    csv.write_text("text,labels\n" + "".join(f'{text},"[""a"", ""b""]"\n' for text in TEXTS))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(
        json.dumps(summary | {"train_data": str(csv), "sha256": file_sha256(csv)})
    )
    rows, _ = applied(folder, "fix/b")
    assert rows[0] == {"text": "zero", "labels": '["b"]'}


def test_a_test_row_is_never_written(tmp_path):
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b"] * 4)
    (folder / "rows").mkdir()
    save_array(folder / "rows" / "test.npy", np.array([row_hash("zero"), row_hash(" four ")], np.uint64))
    rows, counts = applied(folder, "keep")
    assert [row["text"] for row in rows] == ["one", "two", "three"]
    assert counts["dropped_test_rows"] == 2


BAD = {
    "an unknown verdict": ({"row": 1, "verdict": "yes"}, 'verdict is "yes"; expected keep, drop, fix'),
    "an unknown label": ({"row": 1, "verdict": "fix/c"}, 'there is no label "c"; there are a, b'),
    "two labels where there is one": ({"row": 1, "verdict": "fix/a, b"}, 'there is no label "a, b"'),
    "nothing suggested": ({"row": 4, "verdict": "fix"}, 'verdict is "fix"'),
    "no such row": ({"row": 5, "verdict": "keep"}, "row 5 is none of the audit's"),
    "no number": ({"row": "x", "verdict": "keep"}, "field 'row' is \"x\"; expected the row's number"),
    "no row": ({"verdict": "keep"}, "field 'row' is null"),
    "another row's text": (
        {"row": 1, "verdict": "drop", "text": "one"},
        'field \'text\' is "one"; row 1 is "zero"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_verdicts_are_named(tmp_path, case):
    row, message = BAD[case]
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b", "b", "b", None])
    path = write_jsonl(tmp_path / "verdicts.jsonl", [{"row": 2, "verdict": "keep"}, row])
    with pytest.raises(UserError) as error:
        apply_verdicts(path, folder)
    assert message in str(error.value)
    assert "line 2" in str(error.value)


def test_a_row_twice(tmp_path):
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b"] * 4)
    path = write_jsonl(
        tmp_path / "verdicts.jsonl", [{"row": 1, "verdict": "keep"}, {"row": 1, "verdict": "drop"}]
    )
    with pytest.raises(UserError, match="line 2: row 1 is there twice"):
        apply_verdicts(path, folder)


def test_rows_that_changed_since(tmp_path):
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b"] * 4)
    with open(folder / "train.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="is not there or has changed since; audit it again"):
        applied(folder, "keep")


def test_a_folder_that_is_no_audit(tmp_path):
    with pytest.raises(UserError, match="holds no audit"):
        applied(tmp_path, "keep")


def test_all_rows_dropped(tmp_path):
    folder = an_audit(tmp_path, ["a", "b", "a", "b", "a"], ["b"] * 4)
    (folder / "rows").mkdir()
    save_array(folder / "rows" / "test.npy", np.array([row_hash(text) for text in TEXTS], np.uint64))
    with pytest.raises(UserError, match="leaves no row"):
        applied(folder, "keep")


@pytest.mark.parametrize("name", ["audit.csv", "audit.jsonl"])
def test_a_filled_in_table_is_seen(tmp_path, name):
    assert not has_verdicts(tmp_path)
    (tmp_path / "audit.csv").write_text("\ufeffverdict,row\n")
    (tmp_path / "audit.jsonl").write_text("")
    assert not has_verdicts(tmp_path)
    for verdict, expected in (("", False), ("keep", True)):
        row = {"verdict": verdict, "row": 1}
        text = json.dumps(row) if name.endswith("l") else f"\ufeffverdict,row\n{verdict},1\n"
        (tmp_path / name).write_text(text + "\n")
        assert has_verdicts(tmp_path) == expected


def test_a_table_saved_in_another_form_is_somebodys(tmp_path):
    (tmp_path / "audit.csv").write_text("verdict;text;row\n;a, b;1\n")
    assert has_verdicts(tmp_path)
