"""core/predictions.py: rows by hand, decided before they are rounded."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from core import predictions
from core.predictions import prediction_rows


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_one_label_by_hand():
    logits = np.log(np.array([[1, 2, 5], [6, 3, 1]], np.float64)).astype(np.float32)
    assert prediction_rows(logits, ["a", "b", "10"], False, None) == [
        {"label": "10", "probabilities": {"a": 0.125, "b": 0.25, "10": 0.625}},
        {"label": "a", "probabilities": {"a": 0.6, "b": 0.3, "10": 0.1}},
    ]


def test_several_labels_by_hand():
    logits = np.array([[logit(0.9), logit(0.3), 0.0], [logit(0.1), logit(0.2), logit(0.4)]])
    names = ["a", "b", "c"]
    first, second = {"a": 0.9, "b": 0.3, "c": 0.5}, {"a": 0.1, "b": 0.2, "c": 0.4}
    assert prediction_rows(logits, names, True, None) == [
        {"label": "a", "labels": ["a", "c"], "probabilities": first},  # at least its threshold: 0.5 holds
        {"label": "c", "labels": [], "probabilities": second},  # label: the likeliest, chosen or not
    ]
    assert prediction_rows(np.array([[40.0, 50.0]]), names[:2], True, None)[0]["label"] == "b"  # both are 1.0
    tuned = prediction_rows(logits, names, True, np.array([0.95, 0.2, 0.4]))
    assert [row["labels"] for row in tuned] == [["b", "c"], ["b", "c"]]


def check_decided_before_rounding(make_rows) -> None:
    """0.49999996 reads 0.5 and is below 0.5; of two that read alike the likelier one is the label."""
    (row,) = make_rows(np.array([[logit(0.49999996), 0.0]]), ["a", "b"], True, None)
    assert row == {"label": "b", "labels": ["b"], "probabilities": {"a": 0.5, "b": 0.5}}
    (row,) = make_rows(np.array([[0.0, 1e-7]]), ["a", "b"], False, None)
    assert row == {"label": "b", "probabilities": {"a": 0.5, "b": 0.5}}


def test_decided_before_rounding():
    check_decided_before_rounding(prediction_rows)


def test_bite_decisions_on_rounded_numbers_are_caught(monkeypatch):
    exact = predictions.probabilities
    monkeypatch.setattr(predictions, "probabilities", lambda *args: exact(*args).round(6))
    with pytest.raises(AssertionError):
        check_decided_before_rounding(prediction_rows)


@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-90, 90, width=32)
    ),
    st.booleans(),
    st.data(),
)
def test_rows_of_any_logits(logits, multi_label, data):
    names = [f"c{k}" for k in range(logits.shape[1])]
    thresholds = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(names), max_size=len(names))))
    rows = prediction_rows(logits, names, multi_label, thresholds if multi_label else None)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    for row, scores in zip(rows, logits.astype(np.float64), strict=True):
        assert list(row["probabilities"]) == names
        values = np.array(list(row["probabilities"].values()))
        if multi_label:
            exact = 1 / (1 + np.exp(-scores))
            certain = np.abs(exact - thresholds) > 1e-12
            chosen = np.array([name in row["labels"] for name in names])
            assert (chosen == (exact >= thresholds))[certain].all()
        else:
            exact = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            assert row["label"] == names[int(scores.argmax())]
            assert "labels" not in row
        np.testing.assert_allclose(values, exact, atol=5.1e-7)
        assert all(value == round(value, 6) for value in values)
