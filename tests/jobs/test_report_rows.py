"""jobs/report_rows.py: confusions, contradictions, threshold curves and descriptions of files, worked out by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from core.rows import RowFormat
from jobs.report_rows import Rows, confusions, contradicted, describe_files, threshold_curve
from tests.conftest import write_jsonl


def rows_of(probs: list, truth: list, several: bool = False, cuts: float = 0.5) -> Rows:
    """Rows with these probabilities."""
    probs, truth = np.array(probs, float), np.array(truth, bool)
    logits = np.log(probs / (1 - probs)) if several else np.log(probs)
    said = probs >= cuts if several else probs.argmax(axis=1)[:, None] == np.arange(probs.shape[1])
    names = [f"class {c}" for c in range(probs.shape[1])]
    return Rows("x.jsonl", ["a text"] * len(probs), names, several, truth, logits, logits, "none", said)


ONE = rows_of(
    [
        [0.7, 0.2, 0.1],
        [0.3, 0.6, 0.1],
        [0.02, 0.95, 0.03],
        [0.1, 0.8, 0.1],
        [0.96, 0.03, 0.01],
        [0.2, 0.3, 0.5],
    ],
    [[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]],
)
SEVERAL = rows_of([[0.95, 0.2], [0.04, 0.6], [0.6, 0.97]], [[1, 1], [1, 0], [0, 1]], several=True)


def test_confusions_with_one_label():
    found = confusions(ONE)
    assert found == [
        {"true": 0, "said": 1, "rows": 2, "of": 3, "examples": [2, 1]},  # the surest first
        {"true": 2, "said": 0, "rows": 1, "of": 2, "examples": [4]},
    ]


def test_confusions_with_several_labels():
    found = confusions(SEVERAL)
    assert sorted(found, key=str) == sorted(
        [
            {"true": 0, "said": None, "rows": 1, "of": 2, "examples": [1]},
            {"true": None, "said": 0, "rows": 1, "of": 1, "examples": [2]},
            {"true": 1, "said": None, "rows": 1, "of": 2, "examples": [0]},
            {"true": None, "said": 1, "rows": 1, "of": 1, "examples": [1]},
        ],
        key=str,
    )


def test_contradicted_with_one_label():
    found = contradicted(ONE)
    assert found["decisions"] == 2
    assert found["wrong"] == 2
    assert found["rows"] == [4, 2]
    assert found["expected"] == pytest.approx(0.05 + 0.04)
    assert contradicted(ONE, sure=0.65)["decisions"] == 4
    assert contradicted(ONE, sure=0.65)["wrong"] == 2


def test_contradicted_with_several_labels():
    found = contradicted(SEVERAL)
    assert found["decisions"] == 3  # 0.95, 1 - 0.04, 0.97
    assert found["wrong"] == 1
    assert found["rows"] == [1]
    assert found["expected"] == pytest.approx(0.05 + 0.04 + 0.03)


def test_threshold_curve_is_scikit_learns():
    rng = np.random.default_rng(0)
    probs, truth, at = rng.random(200).round(2), rng.random(200) < 0.3, np.array([0.1, 0.5, 0.77, 0.99])
    found = threshold_curve(probs, truth, at)
    for k, cut in enumerate(at):
        said = probs >= cut
        assert found["precision"][k] == pytest.approx(precision_score(truth, said))
        assert found["recall"][k] == pytest.approx(recall_score(truth, said))
        assert found["f1"][k] == pytest.approx(f1_score(truth, said))


def test_threshold_curve_where_nothing_is_claimed_or_true():
    found = threshold_curve(np.array([0.2, 0.4]), np.array([False, False]), np.array([0.3, 0.5]))
    assert found["f1"].tolist() == [0.0, 0.0]
    assert found["precision"][0] == 0.0
    assert np.isnan(found["precision"][1])


def test_describe_files(tmp_path):
    train = [{"text": "a b c", "label": "x"}, {"text": "a  b c", "label": "y"}, {"text": "d e", "label": "x"}]
    test = [{"text": "d e", "label": "x"}, {"text": "one", "label": "z"}, {"text": "d e", "label": "x"}]
    paths = {
        "train": write_jsonl(tmp_path / "train.jsonl", train),
        "test": write_jsonl(tmp_path / "test.jsonl", test),
    }
    with open(tmp_path / "test.jsonl", "a") as file:
        file.write('{"text": "no label"}\nno json\n')
    found = describe_files({part: tmp_path / path for part, path in paths.items()}, RowFormat())
    assert found["rows"] == {"train": 3, "test": 3}
    assert found["labels"] == {
        "x": {"train": 2, "test": 2},
        "y": {"train": 1, "test": 0},
        "z": {"train": 0, "test": 1},
    }
    assert found["exact_duplicates"] == {
        "rows": 3,
        "with_different_labels": 1,
    }  # "a b c" twice, "d e" three times
    assert found["in_train"] == {"test": 2}
    assert found["bad"] == 2
    assert found["words"]["train"].tolist() == [3, 3, 2]
    assert found["characters"]["test"].tolist() == [3, 3, 3]


def test_describe_files_with_several_labels_and_pairs(tmp_path):
    rows = [
        {"a": "p q", "b": "r", "labels": {"x": 1, "y": 0}},
        {"a": "p q", "b": "s", "labels": {"x": 0, "y": 0}},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = describe_files({"train": path, "test": tmp_path / "gone.jsonl"}, RowFormat("a", "b"))
    assert found["rows"] == {"train": 2}
    assert found["labels"] == {"x": {"train": 1}}
    assert found["exact_duplicates"]["rows"] == 0  # the second text counts
    assert found["words"]["train"].tolist() == [3, 3]
