"""One labelling model's folder: forms of input, columns, labels, dropped rows, each on small inputs by hand."""

import json
from pathlib import Path

import pytest

from core.errors import UserError
from data.predictions import Predictions, match_label, read_predictions
from data.silver import parse_flags
from tests.data.test_silver import ask, question, strategies, write


def read(folder: Path, *flags: str) -> Predictions:
    """The folder as the command reads it."""
    flags = ("--input_folder", str(folder), "--model_name", "m", *flags)
    return read_predictions(folder, parse_flags(list(flags)))


def labels_of(made: Predictions) -> dict[str, str]:
    """id -> labels, joined."""
    return {row.id: "+".join(row.labels) for row in made.rows}


def dropped(made: Predictions) -> dict[str, tuple[int, str]]:
    return {reason: (n["rows"], n["first"]) for reason, n in made.dropped.items()}


# Forms of input

HELD = {f"q{i}": {"question": question(i), "strategies_that_answer": ["B", "A"]} for i in range(4)}
ROWS = [{"id": key} | row for key, row in HELD.items()]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.json", HELD),
        ("a.json", json.dumps(HELD, indent=2)),
        ("a.json", ROWS),
        ("deep/er/a.json", "\n".join(map(json.dumps, ROWS))),  # one object a line
        ("a.jsonl", "\n\n".join(map(json.dumps, ROWS)) + "\n"),
        ("a.jsonl", "\ufeff" + "\r\n".join(map(json.dumps, ROWS))),
    ],
)
def test_forms_of_input_are_one(name, content, tmp_path):
    made = read(write(tmp_path, content, name))
    assert sorted(made.rows) == [(f"q{i}", question(i), ("A",)) for i in range(4)]
    assert (made.read, made.order, list(made.files)) == (4, ["A", "B"], [name])


def test_files_are_read_in_order_and_only_such_files(tmp_path):
    folder = write(tmp_path, {"q0": ask(["A"])[0]}, "b.json")
    write(folder, ask(["B", "A"], first=1), "a/x.json")
    write(folder, ask(["B"], first=3)[0], "c.json")  # a file that is one row
    write(folder, [], "empty.json")
    write(folder, "not JSON", "notes.txt")
    write(folder, "not JSON", ".hidden/a.json")
    made = read(folder)
    assert list(made.files) == ["a/x.json", "b.json", "c.json", "empty.json"]
    assert labels_of(made) == {"q0": "A", "x.json:1": "B", "x.json:2": "A", "c.json:1": "B"}


def test_columns_by_flag_and_by_guess(tmp_path):
    rows = [{"title": question(i), "why": "x", "note": "y", "kind": i % 2, "key": i} for i in range(4)]
    folder = write(tmp_path / "a", rows)
    made = read(folder, "--text_field", "title,why", "--label_field", "kind", "--id_field", "key")
    assert labels_of(made) == {"0": "0", "1": "1", "2": "0", "3": "1"}
    assert made.rows[0].text == f"title: {question(0)}\nwhy: x"
    # several could be the label, but labels that hold are there
    rows = [
        {"id": i, "qid": 7, "query": question(i), "answer": 1, "output": 2, "labels": [3]} for i in range(2)
    ]
    made = read(write(tmp_path / "b", rows))
    assert made.fields == {"text": "query", "labels": "labels", "label": "", "id": "id"}


# Labels


def test_the_simplest_strategy_that_answers(tmp_path):
    folder = write(tmp_path, strategies(["C", "B"], ["B"], ["A", "C"], [" A "], ["C"], ["B", "A"]))
    by_name = {"q0": "B", "q1": "B", "q2": "A", "q3": "A", "q4": "C", "q5": "A"}
    assert labels_of(read(folder)) == by_name
    by_order = {"q0": "C", "q1": "B", "q2": "C", "q3": "A", "q4": "C", "q5": "B"}
    assert labels_of(read(folder, "--order", "C, B, A")) == by_order


def test_multiple_keeps_all_that_hold_in_order(tmp_path):
    held = [["C", "B"], ["B"], {"A": 1, "B": 0, "C": 1}, '["A"]', ["C"], ["B", "A", "B"]]
    folder = write(tmp_path, strategies(*held))
    expected = ["B+C", "B", "A+C", "A", "C", "A+B"]
    assert labels_of(read(folder, "--multiple")) == {f"q{i}": names for i, names in enumerate(expected)}
    assert labels_of(read(folder, "--multiple", "--order", "C,B,A"))["q2"] == "C+A"


def test_numbers_are_in_the_order_of_numbers(tmp_path):
    assert read(write(tmp_path, strategies([10, 9], [2], [10]))).order == ["2", "9", "10"]


def test_rows_where_no_strategy_answers_and_rows_without_the_field(tmp_path):
    content = strategies(["B"], [], None, None, None, {"A": 0})
    for row, told in zip(content.values(), ["A", "B", "B", "A", None, "A"], strict=True):
        row["prediction"] = told
    made = read(write(tmp_path, content))
    assert labels_of(made) == {"q0": "B", "q2": "B", "q3": "A"}
    assert dropped(made) == {"no strategy answers": (2, "q1"), "no label": (1, "q4")}
    made = read(tmp_path, "--label_field", "prediction")
    assert labels_of(made) == {"q0": "A", "q1": "B", "q2": "B", "q3": "A", "q5": "A"}
    made = read(tmp_path, "--label_field", "prediction", "--labels_field", "strategies_that_answer")
    assert labels_of(made) == {"q0": "B", "q2": "B", "q3": "A"}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("B", ["B"]),
        ("The answer is B.", ["B"]),
        ("(B)", ["B"]),
        ("**B**: one step", ["B"]),
        ("B, surely B", ["B"]),
        ("A or B", ["A", "B"]),
        ("Bob or ABC or b or B2", []),
        ("it is single-step", ["single-step"]),
        ("it is single", ["single"]),
        ("C++ it is", ["C++"]),
    ],
)
def test_a_label_as_a_word_by_hand(text, expected):
    assert match_label(text, ["A", "B", "single", "single-step", "C++"]) == expected


def test_labels_outside_the_order(tmp_path):
    folder = write(tmp_path, strategies(["A", "D"], ["D"], ["B is right"], ["A"], ["A or B"], ["B", "D"]))
    made = read(folder, "--order", "A,B", "--multiple")
    assert labels_of(made) == {"q0": "A", "q2": "B", "q3": "A", "q5": "B"}
    assert dropped(made) == {"names none of the labels": (1, "q1"), "names several of the labels": (1, "q4")}
    assert made.dropped["names several of the labels"]["found"] == '"A or B"'
    assert made.left_out == {"D": 2}
    assert len(read(folder).order) == 5  # without an order every label found is one


# Rows that are dropped


def test_bad_rows_are_dropped_each_with_its_reason(tmp_path):
    rows = ask(["A", "B", "A", "B", 1.5, "A", " ", "B"])
    rows[2]["question"], rows[3]["question"] = " ", 7
    rows[5]["question"] = "half \ud800"
    made = read(write(tmp_path, [*rows, "text", None, {"prediction": "A"}]))
    assert len(made.rows) == 3
    assert dropped(made) == {
        "no text": (3, "part_0.json:3"),
        "no label": (2, "part_0.json:5"),
        "not Unicode text": (1, "part_0.json:6"),
        "not an object": (2, "part_0.json:9"),
    }
    assert made.dropped["no label"]["found"] == "field 'prediction' is 1.5"


def test_a_key_that_no_file_can_hold(tmp_path):
    rows = ask(["A", "B"])
    made = read(write(tmp_path, {"q\ud800": rows[0], "q1": rows[1]}))
    assert dropped(made) == {"not Unicode text": (1, "q?")}


def test_duplicates_and_conflicts(tmp_path):
    rows = ask(["A", "B", "A", "B", "A"])
    rows[2]["question"] = "  " + question(0).upper()  # 0 again, with its label
    rows[4]["question"] = question(1)  # 1 again, with another label
    folder = write(tmp_path, [*rows, *ask(["A", "B"], first=9)])
    made = read(folder)
    assert sorted(labels_of(made)) == [f"part_0.json:{i}" for i in (1, 4, 6, 7)]
    assert dropped(made) == {"duplicate": (1, "part_0.json:3"), "conflicting labels": (2, "part_0.json:2")}
    assert made.dropped["conflicting labels"]["found"] == "A / B"
    assert len(read(folder, "--no-deduplicate").rows) == 7


# What a user can get wrong


@pytest.mark.parametrize("content, flags, message", [
    ('{"q": {"question": "a",\n "prediction": }}', [], r"part_0.json, line 2, column 16: invalid JSON: Exp"),
    ('{"question": "a", "prediction": "A"}\n{"question"', [], r"part_0.json, line 2, column 12: invalid JSON"),
    ("[" * 100_000, [], r"part_0.json, line 1: invalid JSON"),
    ("7", [], r"part_0.json: holds 7; expected rows, or an object with a row under each id"),
    ("[]", [], r"holds 1 files, but not one row in them"),
    ([{"prediction": "A"}], [], r"the columns are prediction; --text_field says which one holds the text"),
    ([{"question": "a"}], [], r"the columns are question; --label_field says which one holds the label"),
    (ask(["A"]), ["--multiple"], r"question, prediction; --labels_field says which one holds the labels"),
    ([{"text": "a", "query": "b"}], [], r"text and query could each hold the text; choose with --text_field"),
    ([{"text": "a", "label": "A", "answer": "x", "output": "y"}], [], r"json: label, answer and output could"),
    (ask(["A"]), ["--text_field", "query"], r"--text_field query: .*columns are question, prediction, none is"),
    (ask(["A"]), ["--label_field", "x"], r"--label_field x: .*none is 'x'"),
    (ask(["A"]), ["--id_field", "x"], r"--id_field x: .*none is 'x'"),
    (ask(["A", "B"]), ["--order", "C,D"], r"of 2 rows none is left: 2 names none of .*part_0.json:1: \"A\""),
])  # fmt: skip
def test_one_clear_error(content, flags, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path, content), *flags)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"holds no .json or .jsonl file"):
        read(tmp_path)
    write(tmp_path, ask(["A", "B"]))
    (tmp_path / "z.json").write_bytes(b"[\xff]")
    with pytest.raises(UserError, match=r"z.json: not UTF-8 text \(byte 2\)"):
        read(tmp_path)
