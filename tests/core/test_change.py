"""core/change.py: what a run changed, by hand and against a slow bootstrap."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from core.cache import TokenRows
from core.change import change_text, measure_change
from core.statistics import RESAMPLES, resampled


def rows_of(labels, num_classes: int = 3) -> TokenRows:
    """Rows of nothing but labels: indices, or 0 and 1 for each class."""
    labels, empty = np.asarray(labels), np.zeros(len(labels), np.int32)
    names = [f"c{k}" for k in range(num_classes)]
    return TokenRows(empty, empty, empty, empty, empty, labels, names, labels.ndim == 2, {}, empty)


def scores_for(decisions, several: bool = False, num_classes: int = 3) -> np.ndarray:
    """Scores whose decisions are these."""
    if several:
        return np.where(np.asarray(decisions) > 0, 0.0, -0.25).astype(np.float32)  # a score of 0 holds
    return np.eye(num_classes, dtype=np.float32)[decisions] - 5  # all below 0: the largest counts


def drawn(several: bool, num_rows: int = 40):
    """Rows, and two decisions for each that are right more often than not."""
    rng = np.random.default_rng(3)
    shape = (num_rows, 3) if several else (num_rows,)
    truth, *others = (rng.integers(2 if several else 3, size=shape) for _ in range(3))
    kept = [np.where(rng.random(shape) < share, truth, other) for share, other in zip((0.4, 0.7), others)]
    return rows_of(truth.astype(np.uint8) if several else truth), *kept


# -- by hand ----------------------------------------------------------------------------------------------------


def test_one_label_a_row_by_hand():
    rows = rows_of([0, 0, 1, 1], num_classes=2)
    before, after = (scores_for(decisions, num_classes=2) for decisions in ([0, 1, 1, 0], [0, 0, 1, 0]))
    found = measure_change(before, after, rows)
    assert list(found) == ["accuracy", "macro_f1"]
    assert all(
        list(values) == ["before", "after", "difference", "low", "high", "p"] for values in found.values()
    )
    accuracy, f1 = found["accuracy"], found["macro_f1"]
    assert (accuracy["before"], accuracy["after"], accuracy["difference"]) == (0.5, 0.75, 0.25)
    assert f1["before"] == pytest.approx(0.5)
    assert f1["after"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert f1["difference"] == f1["after"] - f1["before"]
    assert (accuracy["low"], accuracy["high"]) == (0.0, 0.75)  # one of four rows: binomial, paired
    assert accuracy["p"] == pytest.approx(
        2 * 0.75**4, rel=0.1
    )  # a resample without that row has no difference


def test_several_labels_are_cut_at_zero_and_all_must_be_right():
    rows = rows_of(np.array([[1, 0], [1, 1], [0, 0]], np.uint8), num_classes=2)
    before = np.array([[0.5, -0.5], [2.0, -0.1], [-1.0, -1.0]], np.float32)  # misses the second of row 1
    after = np.array([[0.0, -9.0], [2.0, 0.0], [-1.0, 0.3]], np.float32)  # 0 holds; a false one in row 2
    found = measure_change(before, after, rows)
    assert (found["accuracy"]["before"], found["accuracy"]["after"]) == pytest.approx((2 / 3, 2 / 3))
    assert found["macro_f1"]["before"] == pytest.approx((1 + 0) / 2)
    assert found["macro_f1"]["after"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["macro_f1"]["difference"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("several", [False, True])
def test_the_same_scores_are_no_change(several):
    rows, before, _ = drawn(several)
    scores = scores_for(before, several)
    for moved in (scores, scores * 2 + (0 if several else 7)):  # the same decisions
        for found in measure_change(scores, moved, rows).values():
            assert found["before"] == found["after"] < 1
            assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_a_change_of_all_rows_is_as_sure_as_it_gets():
    truth = np.array([0, 1, 2] * 5)
    found = measure_change(scores_for((truth + 1) % 3), scores_for(truth), rows_of(truth))
    for values in found.values():
        assert (values["before"], values["after"], values["difference"]) == (0, 1, 1)
        assert (values["low"], values["high"]) == (1, 1)
        assert values["p"] == pytest.approx(2 / (RESAMPLES + 1))


# -- against others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True])
def test_scores_and_the_paired_interval_are_those_of_a_slow_bootstrap(several):
    rows, *decisions = drawn(several)
    found = measure_change(*(scores_for(part, several) for part in decisions), rows)
    rights = [part == rows.labels for part in decisions]
    rights = [right.all(axis=1) if several else right for right in rights]
    for name, right, part in zip(("before", "after"), rights, decisions):
        assert found["accuracy"][name] == right.mean()
        assert found["macro_f1"][name] == pytest.approx(f1_score(rows.labels, part, average="macro"))
    assert found["accuracy"]["difference"] > 0.1
    lost_and_won = rights[1].astype(int) - rights[0].astype(int)
    samples = np.concatenate([counts @ lost_and_won / 40 for counts in resampled(40, RESAMPLES, 0)])
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx(
        (np.quantile(samples, 0.025), np.quantile(samples, 0.975)), abs=1e-6
    )
    rarer = (samples <= 0).sum()
    assert found["accuracy"]["p"] == pytest.approx(2 * (rarer + 1) / (RESAMPLES + 1))
    f1 = found["macro_f1"]
    assert f1["low"] < f1["difference"] < f1["high"]
    back = measure_change(*(scores_for(part, several) for part in decisions[::-1]), rows)
    assert back["macro_f1"]["difference"] == -f1["difference"]
    assert (back["macro_f1"]["low"], back["macro_f1"]["high"]) == pytest.approx((-f1["high"], -f1["low"]))


def test_a_line_a_score():
    change = {
        "accuracy": {
            "before": 0.5,
            "after": 0.75,
            "difference": 0.25,
            "low": -0.01,
            "high": 0.5,
            "p": 0.0312,
        },
        "macro_f1": {"before": 0.9, "after": 0.8, "difference": -0.1, "low": -0.2, "high": 0.0, "p": 1.0},
    }
    assert change_text(change, "test", False).splitlines() == [
        "test: accuracy 0.5000 before, 0.7500 after: +0.2500 (95 % of resampled rows -0.0100 to +0.5000, p 0.031)",
        "test: macro_f1 0.9000 before, 0.8000 after: -0.1000 (95 % of resampled rows -0.2000 to +0.0000, p 1.000)",
    ]
