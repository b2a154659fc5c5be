"""core/thresholds.py against brute force over every cut, and the flattery that cross-fitting takes away."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from core.thresholds import best_thresholds, cross_fitted


def _f1(truth, chosen):
    """F1 of two bool lists as an exact pair of whole numbers would give it, 0 where undefined."""
    total = chosen.sum() + truth.sum()
    return 2 * (chosen & truth).sum() / total if total else 0.0


def _brute_force(scores, truth):
    """The best F1 over all cuts, and the least distance to 0.5 of the cuts that reach it."""
    distinct = sorted(set(scores.tolist()), reverse=True)
    cuts = []
    for upper, lower in zip(distinct, distinct[1:] + [0.0]):
        midway = (upper + lower) / 2
        cuts.append(midway if midway > lower else upper)
    best = max(_f1(truth, scores >= cut) for cut in cuts)
    return best, min(abs(cut - 0.5) for cut in cuts if _f1(truth, scores >= cut) == best)


COARSE = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])  # ties on purpose
CLOSE = st.sampled_from([0.3, np.nextafter(0.3, 1), np.nextafter(0.3, 0), 5e-324, 1.0, np.nextafter(1.0, 0)])
SCORES = st.one_of(COARSE, CLOSE, st.floats(0, 1))


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=12))
@example([(0.0, True), (0.0, False)])
def test_no_cut_is_better(rows):
    scores, truth = np.array([s for s, _ in rows]), np.array([t for _, t in rows])
    (threshold,) = best_thresholds(scores[:, None], truth[:, None])
    if not truth.any():
        assert threshold == 0.5
        return
    best, distance = _brute_force(scores, truth)
    assert _f1(truth, scores >= threshold) == best
    assert abs(threshold - 0.5) == distance


@pytest.mark.parametrize("lower", [0.3, np.nextafter(0.3, 1)])
def test_between_neighbouring_floats_the_upper_one_is_the_threshold(lower):
    # No number lies between them, and their mean rounds to the lower one for every other pair.
    upper = np.nextafter(lower, 1)
    np.testing.assert_array_equal(best_thresholds([[upper], [lower]], [[1], [0]]), [upper])


def test_by_hand():
    # Class 0: cuts after 1, 2, 3, 4 rows have F1 2/3, 1/2, 4/5, 2/3: the third, between 0.4 and 0.2.
    # Class 1: only the whole is a cut, F1 2/3: midway between 0.6 and 0. Class 2 has no positive row.
    probs = np.array([[0.9, 0.6, 0.9], [0.5, 0.6, 0.8], [0.4, 0.6, 0.7], [0.2, 0.6, 0.6]])
    labels = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(best_thresholds(probs, labels), [0.3, 0.3, 0.5])
    assert best_thresholds(probs, labels).dtype == np.float64


def test_of_equal_cuts_the_one_nearest_a_half_is_taken():
    # Two positive rows, at places 1 and 4. F1 after 1 row is 2/3, after 4 rows 4/6; after 2, 3 and 5 rows it
    # is 2/4, 2/5 and 4/7. The two best cuts are at 0.85 and 0.45: the second is nearer to a half.
    probs = np.array([[0.9], [0.8], [0.7], [0.6], [0.3]])
    labels = np.array([[1], [0], [0], [1], [0]])
    np.testing.assert_allclose(best_thresholds(probs, labels), [0.45])
    # The same, 0.3 lower: cuts at 0.55 and 0.15, and the first is nearer.
    np.testing.assert_allclose(best_thresholds(probs - [[0.3]], labels), [0.55])


def test_splitting_ties_would_promise_an_f1_that_no_threshold_gives():
    """Bite: the usual cumulative search, without the tie rule, takes the first of two equal scores alone."""
    scores, truth = np.array([0.8, 0.8, 0.1]), np.array([True, False, False])
    hits = truth.cumsum()
    promised = (2 * hits / (np.arange(1, 4) + truth.sum())).max()
    (threshold,) = best_thresholds(scores[:, None], truth[:, None])
    assert promised == 1.0
    assert _f1(truth, scores >= threshold) == pytest.approx(2 / 3) == _brute_force(scores, truth)[0]


def test_classes_do_not_touch_each_other_and_row_order_does_not_matter():
    rng = np.random.default_rng(0)
    probs, labels = rng.random((60, 5)).round(1), rng.random((60, 5)) < 0.3
    together = best_thresholds(probs, labels)
    alone = [best_thresholds(probs[:, [c]], labels[:, [c]])[0] for c in range(5)]
    np.testing.assert_array_equal(together, alone)
    order = rng.permutation(60)
    np.testing.assert_array_equal(together, best_thresholds(probs[order], labels[order]))


def test_cross_fitting_takes_the_flattery_away():
    rng = np.random.default_rng(0)
    probs, labels = rng.random((300, 20)), rng.random((300, 20)) < 0.05  # nothing to be learnt
    in_sample = probs >= best_thresholds(probs, labels)
    flattered = f1_score(labels, in_sample, average="macro")
    honest = f1_score(labels, cross_fitted(probs, labels), average="macro")
    assert flattered > honest + 0.02
    # Without telling scores nothing is better than to call all rows positive: 2q / (1 + q) at a share of q.
    everything = np.mean([2 * q / (1 + q) for q in labels.mean(axis=0)])
    assert flattered > everything > honest


def test_no_row_helps_to_choose_its_own_threshold():
    rng = np.random.default_rng(1)
    probs, labels = rng.random((23, 3)), rng.random((23, 3)) < 0.4
    before = cross_fitted(probs, labels)
    for row in range(23):
        changed = labels.copy()
        changed[row] = ~changed[row]
        np.testing.assert_array_equal(cross_fitted(probs, changed)[row], before[row])


def test_choosing_on_all_rows_would_let_a_row_change_its_own_decision():
    """Bite: the test above fails for thresholds chosen in-sample."""
    probs, labels = np.array([[0.4], [0.2]]), np.array([[True], [False]])
    changed = ~labels
    decisions = [(probs >= best_thresholds(probs, y)).tolist() for y in (labels, changed)]
    assert decisions[0] != decisions[1]


@pytest.mark.parametrize("num_rows", [0, 1, 2, 4])
def test_fewer_rows_than_folds(num_rows):
    probs, labels = np.full((num_rows, 2), 0.7), np.ones((num_rows, 2), dtype=int)
    decisions = cross_fitted(probs, labels, num_folds=5)
    assert decisions.shape == (num_rows, 2)
    assert decisions.dtype == bool
    assert decisions.all()  # 0.7 is over 0.5 and over what the other rows teach


def test_the_seed_alone_deals_the_folds():
    rng = np.random.default_rng(2)
    probs, labels = rng.random((40, 6)), rng.random((40, 6)) < 0.3
    np.testing.assert_array_equal(cross_fitted(probs, labels, seed=3), cross_fitted(probs, labels, seed=3))
    assert (cross_fitted(probs, labels, seed=3) != cross_fitted(probs, labels, seed=4)).any()


@pytest.mark.parametrize("probs", [np.array([[1.5]]), np.array([[-0.1]]), np.array([[np.nan]])])
def test_logits_are_refused(probs):
    with pytest.raises(ValueError, match="not logits"):
        best_thresholds(probs, np.ones((1, 1)))


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="must both be"):
        best_thresholds(np.zeros((2, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="0 and 1"):
        best_thresholds(np.zeros((1, 1)), np.array([[2]]))
    with pytest.raises(ValueError, match="at least 2"):
        cross_fitted(np.zeros((2, 2)), np.zeros((2, 2)), num_folds=1)
