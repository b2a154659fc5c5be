"""core/feedback.py: rows of feedback by hand, every bad row named, both ranges, the reward formula."""

import json

import numpy as np
import pytest

from core.errors import UserError
from core.feedback import parse_feedback_row, read_feedback, row_accuracies, row_rewards
from core.rows import RowError
from tests.conftest import write_jsonl

NAMES = ["blue", "green", "red"]
CLASSES = {name: k for k, name in enumerate(NAMES)}
GOOD = {"text": "a rose", "true_labels": "red", "predicted_labels": "red", "feedback": 1}
SETS = {"text": "a rose", "true_labels": ["red"], "predicted_labels": ["red", "blue"], "feedback": 0.5}


def read(rows: list[dict], tmp_path, names=NAMES, multi_label=False, pair=False):
    return read_feedback(write_jsonl(tmp_path / "rows.jsonl", rows), "--train_data", names, multi_label, pair)


# -- what is read -----------------------------------------------------------------------------------------------


def test_one_label_a_row_by_hand(tmp_path):
    rows = [
        GOOD,
        {"text": "ink", "true_labels": None, "predicted_labels": ["blue"], "feedback": 0.25},
        GOOD | {"feedback": None},
        {"text": "leaf", "predicted_labels": "green", "feedback": 0},  # no true_labels at all
        GOOD | {"feedback": ""},
        {"text": "sky", "true_labels": ["blue"], "predicted_labels": "red"},  # no feedback at all
        {"text": "sea", "true_labels": ["blue"], "predicted_labels": "red", "feedback": 0.5, "id": 7},
    ]
    found = read(rows, tmp_path)
    assert len(found) == 4
    assert found.texts == ["a rose", "ink", "leaf", "sea"]
    assert found.pairs is None
    assert found.actions.tolist() == [2, 0, 1, 2]
    assert found.truth.tolist() == [2, -1, -1, 0]
    assert found.feedback.tolist() == [1.0, 0.25, 0.0, 0.5]
    assert found.lines.tolist() == [1, 2, 4, 7]
    assert (found.actions.dtype, found.truth.dtype, found.feedback.dtype) == (np.int64, np.int64, np.float32)
    assert (found.found_range, found.num_empty, found.path) == ("[0, 1]", 3, str(tmp_path / "rows.jsonl"))
    assert found.has_truth.tolist() == [True, False, False, True]
    assert found.summary() == (
        "4 rows with feedback in [0, 1], mean 0.438 of 0 to 1, 2 without true labels, 3 without feedback left out, "
        f"{tmp_path / 'rows.jsonl'}"
    )


def test_label_sets_by_hand(tmp_path):
    rows = [
        SETS,
        {"text": "ink", "true_labels": None, "predicted_labels": [], "feedback": 1},
        {
            "text": "sea",
            "true_labels": {"blue": 1, "red": 0},
            "predicted_labels": {"green": 1},
            "feedback": 0,
        },
        {"text": "it", "true_labels": [], "predicted_labels": ["red", "red"], "feedback": 0},
    ]
    found = read(rows, tmp_path, multi_label=True)
    assert found.actions.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert (found.actions.dtype, found.truth.dtype) == (np.uint8, np.float32)
    nan = np.nan
    expected = [[0, 0, 1], [nan, nan, nan], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(found.truth, np.array(expected, np.float32))
    assert found.has_truth.tolist() == [True, False, True, True]
    assert "1 without true labels" in found.summary()


def test_a_json_list_is_read_too_and_integers_are_labels(tmp_path):
    path = tmp_path / "rows.json"
    rows = [{"text": "a", "true_labels": 2, "predicted_labels": 10, "feedback": 1, "pair": "b"}]
    path.write_text(json.dumps(rows, indent=1))
    found = read_feedback(str(path), "--x", ["2", "10"], False, pair=True)
    assert (found.texts, found.pairs) == (["a"], ["b"])
    assert (found.actions.tolist(), found.truth.tolist(), found.lines.tolist()) == ([1], [0], [1])


# -- ranges -----------------------------------------------------------------------------------------------------

RANGES = {  # case: (given, range, read)
    "zero to one": ([0, 1, 0.25], "[0, 1]", [0, 1, 0.25]),
    "minus one to one": ([-1, 1, 0, 0.5], "[-1, 1]", [0, 1, 0.5, 0.75]),
    "one negative value decides": ([0.5, -1], "[-1, 1]", [0.75, 0]),
    "a small negative value decides": ([1, -0.001], "[-1, 1]", [1, 0.4995]),
    "minus zero is not negative": ([-0.0, 1], "[0, 1]", [0, 1]),
    "no negative value": ([0.5], "[0, 1]", [0.5]),
}


@pytest.mark.parametrize("case", RANGES)
def test_the_range_is_found_from_the_values(case, tmp_path):
    given, name, expected = RANGES[case]
    found = read([GOOD | {"feedback": value} for value in given], tmp_path)
    assert found.found_range == name
    assert found.feedback.tolist() == np.array(expected, np.float32).tolist()


# -- bad rows ---------------------------------------------------------------------------------------------------

OUTSIDE = "expected a number in [0, 1], or in [-1, 1]"
ONE = "expected one label (a string or an integer)"
HAS = "it has blue, green, red"
GONE = object()
BAD = {  # case: (what differs from GOOD, message)
    "no text": ({"text": GONE}, "no field 'text' (found: true_labels, predicted_labels, feedback)"),
    "text is null": ({"text": None}, "field 'text' is null; expected text"),
    "text is blank": ({"text": " \n"}, "field 'text' is \" \\n\"; expected text"),
    "text is a number": ({"text": 3}, "field 'text' is 3; expected text"),
    "half a character": ({"text": "a \ud83d"}, "field 'text': character 3 is '\\ud83d', half of a surrogate pair"),
    "no prediction": ({"predicted_labels": GONE}, "no field 'predicted_labels' (found: text, true_labels, feedback)"),
    "prediction is null": ({"predicted_labels": None}, f"field 'predicted_labels' is null; {ONE}"),
    "prediction is empty": ({"predicted_labels": ""}, f"field 'predicted_labels' is \"\"; {ONE}"),
    "two labels": ({"predicted_labels": ["red", "blue"]}, f"field 'predicted_labels' is [\"red\", \"blue\"]; {ONE}"),
    "no label in it": ({"predicted_labels": []}, f"field 'predicted_labels' is []; {ONE}"),
    "0/1 for each": ({"predicted_labels": {"red": 1}}, f"field 'predicted_labels' is {{\"red\": 1}}; {ONE}"),
    "true is no label": ({"predicted_labels": True}, f"field 'predicted_labels' is true; {ONE}"),
    "1.0 is no label": ({"true_labels": 1.0}, f"field 'true_labels' is 1.0; {ONE}"),
    "unknown prediction": ({"predicted_labels": "pink"}, f"field 'predicted_labels': the model has no label \"pink\"; {HAS}"),  # noqa: E501
    "unknown truth": ({"true_labels": ["pink"]}, f"field 'true_labels': the model has no label \"pink\"; {HAS}"),
    "an integer": ({"true_labels": 2}, f"field 'true_labels': the model has no label \"2\"; {HAS}"),
    "another case": ({"true_labels": "Red"}, f"field 'true_labels': the model has no label \"Red\"; {HAS}"),
    "feedback is text": ({"feedback": "0.5"}, f"field 'feedback' is \"0.5\"; {OUTSIDE}"),
    "feedback is blank": ({"feedback": " "}, f"field 'feedback' is \" \"; {OUTSIDE}"),
    "feedback is true": ({"feedback": True}, f"field 'feedback' is true; {OUTSIDE}"),
    "feedback is false": ({"feedback": False}, f"field 'feedback' is false; {OUTSIDE}"),
    "feedback is a list": ({"feedback": [1]}, f"field 'feedback' is [1]; {OUTSIDE}"),
    "NaN": ({"feedback": float("nan")}, f"field 'feedback' is NaN; {OUTSIDE}"),
    "infinity": ({"feedback": float("-inf")}, f"field 'feedback' is -Infinity; {OUTSIDE}"),
    "above": ({"feedback": 1.001}, f"field 'feedback' is 1.001; {OUTSIDE}"),
    "below": ({"feedback": -2}, f"field 'feedback' is -2; {OUTSIDE}"),
    "a huge integer": ({"feedback": 10**400}, "field 'feedback' is 1000"),
}  # fmt: skip
BAD_SETS = {  # case: (what differs from SETS, message)
    "one label": ({"predicted_labels": "red"}, "field 'predicted_labels' is \"red\"; expected a list of labels, or"),
    "a number in it": ({"true_labels": ["red", 0.5]}, "field 'true_labels' holds 0.5; expected labels (strings or"),
    "neither 0 nor 1": ({"true_labels": {"red": 0.5}}, "field 'true_labels': 'red' is 0.5; expected 0 or 1"),
    "unknown at 0": ({"true_labels": {"pink": 0}}, f"field 'true_labels': the model has no label \"pink\"; {HAS}"),
    "two unknown": ({"predicted_labels": ["pink", "red", "rot"]}, f"field 'predicted_labels': the model has no label \"pink\", \"rot\"; {HAS}"),  # noqa: E501
}  # fmt: skip


def changed(good: dict, change: dict) -> dict:
    return {name: value for name, value in (good | change).items() if value is not GONE}


@pytest.mark.parametrize("case", [*BAD, *BAD_SETS])
def test_a_bad_row_is_named(case, tmp_path):
    good, (change, message) = (GOOD, BAD[case]) if case in BAD else (SETS, BAD_SETS[case])
    with pytest.raises(UserError) as error:
        read([good, changed(good, change), good], tmp_path, multi_label=case in BAD_SETS)
    said = str(error.value).splitlines()
    assert said[0] == f"{tmp_path / 'rows.jsonl'}: 1 bad row:"
    assert said[1].startswith(f"  line 2: {message}")
    assert len(said) == 2


def test_all_bad_rows_are_named_together(tmp_path):
    rows = [changed(GOOD, change) for change, _ in BAD.values()]
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n[1]\n" + "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as error:
        read_feedback(str(path), "--x", NAMES, False)
    said = str(error.value).splitlines()
    assert said[0] == f"{path}: {len(BAD) + 2} bad rows:"
    assert said[1].startswith("  line 1: invalid JSON")
    assert said[2] == "  line 2: the row is [1]; expected an object"
    for k, (_, message) in enumerate(list(BAD.values())[:18], 3):
        assert said[k].startswith(f"  line {k}: {message}")
    assert said[21] == f"  ... and {len(BAD) - 18} more"


def test_rows_without_feedback_are_checked_too(tmp_path):
    with pytest.raises(UserError, match=r'line 2: .*the model has no label "pink"'):
        read([GOOD, GOOD | {"feedback": None, "predicted_labels": "pink"}], tmp_path)


def test_no_row_with_feedback(tmp_path):
    with pytest.raises(
        UserError, match=r"--train_data .*: no row has feedback \(2 are empty\); fill in 'feedback'"
    ):
        read([GOOD | {"feedback": None}, GOOD | {"feedback": ""}], tmp_path)
    with pytest.raises(UserError, match=r"--train_data .*has no rows"):
        read([], tmp_path)


def test_pairs_are_wanted_where_the_run_takes_them(tmp_path):
    for change, message in (
        ({}, r"no field 'pair' \(found: text, true_labels"),
        ({"pair": " "}, "field 'pair' is \" \"; expected text"),
        ({"pair": ["a"]}, r"field 'pair' is \[\"a\"\]; expected text"),
        ({"pair": "b\udc00"}, r"field 'pair': character 2 is '\\udc00', half of a surrogate pair"),
    ):
        with pytest.raises(UserError, match=message):
            read([GOOD | change], tmp_path, pair=True)
    assert read([GOOD | {"pair": "so"}], tmp_path, pair=True).pairs == ["so"]
    assert read([GOOD | {"pair": 3}], tmp_path).pairs is None  # not read


def test_many_labels_are_not_all_listed(tmp_path):
    names = [f"c{k}" for k in range(40)]
    with pytest.raises(UserError) as error:
        read([GOOD], tmp_path, names)
    assert str(error.value).endswith(f"it has {', '.join(names[:30])}, ... (40 in all)")


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows", "-"])
def test_other_files_are_refused(name, tmp_path):
    with pytest.raises(
        UserError, match=r"--x .*: expected a file of feedback that ends in \.json or \.jsonl"
    ):
        read_feedback(name, "--x", NAMES, False)


def test_one_row_alone():
    row = parse_feedback_row(SETS | {"pair": "b"}, CLASSES, True, pair=True)
    assert (row.text, row.pair, row.predicted, row.true, row.feedback) == ("a rose", "b", [2, 0], [2], 0.5)
    row = parse_feedback_row(GOOD | {"feedback": -1, "true_labels": None}, CLASSES, False)
    assert (row.pair, row.predicted, row.true, row.feedback) == (None, [2], None, -1)  # not yet mapped
    with pytest.raises(RowError, match="field 'feedback' is 2"):
        parse_feedback_row(GOOD | {"feedback": 2}, CLASSES, False)


# -- rewards ----------------------------------------------------------------------------------------------------


def test_rewards_of_one_label_by_hand(tmp_path):
    rows = [
        GOOD | {"feedback": 0.5},  # right
        GOOD | {"feedback": 0.5, "true_labels": "blue"},  # wrong
        GOOD | {"feedback": 0.5, "true_labels": None},  # nobody knows
        GOOD | {"feedback": -1},  # right, but disliked: 0 after mapping
    ]
    found = read(rows, tmp_path)
    assert found.feedback.tolist() == [0.75, 0.75, 0.75, 0.0]
    np.testing.assert_array_equal(row_accuracies(found), [1, 0, np.nan, 1])
    rewards = row_rewards(found, 0.7, 0.3)
    assert rewards.dtype == np.float32
    np.testing.assert_allclose(rewards, [0.525 + 0.3, 0.525, 0.75, 0.3], rtol=1e-6)
    np.testing.assert_allclose(row_rewards(found, 2.0, 0.0), [1.5, 1.5, 1.5, 0], rtol=1e-6)
    np.testing.assert_allclose(row_rewards(found, 0.0, 2.0), [2, 0, 1.5, 2], rtol=1e-6)


def test_rewards_of_label_sets_by_hand(tmp_path):
    rows = [
        SETS,  # red, blue for red: 2 of 3 labels are as they are
        SETS | {"true_labels": ["green"]},  # 0 of 3
        SETS | {"true_labels": ["blue", "red"]},  # 3 of 3
        SETS | {"true_labels": None},
        SETS | {"true_labels": [], "predicted_labels": []},  # 3 of 3
    ]
    found = read(rows, tmp_path, multi_label=True)
    np.testing.assert_allclose(row_accuracies(found), [2 / 3, 0, 1, np.nan, 1])
    rewards = row_rewards(found, 0.6, 0.3)
    assert (rewards.dtype, rewards.shape) == (np.float32, (5,))
    np.testing.assert_allclose(rewards, [0.3 + 0.2, 0.3, 0.6, 0.45, 0.6], rtol=1e-6)


def test_a_part_of_the_rows(tmp_path):
    rows = read([GOOD, GOOD | {"true_labels": None, "text": "other"}, GOOD | {"text": "third"}], tmp_path)
    known = rows.part(rows.has_truth)
    assert (known.texts, known.lines.tolist(), len(known)) == ([GOOD["text"], "third"], [1, 3], 2)
    assert known.has_truth.all()
    assert len(rows) == 3
