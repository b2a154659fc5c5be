"""core/thresholds.py against brute force over every cut, and the flattery that cross-fitting takes away."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import f1_score

from core.calibration import apply_calibration, fit_calibration
from core.statistics import resampled
from core.thresholds import (
    best_thresholds,
    cross_fitted,
    cross_fitted_tuning,
    deal_folds,
    drawn_thresholds,
    expected_thresholds,
    f1_curves,
    f1_of,
    threshold_intervals,
    tune_thresholds,
)


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


# -- thresholds drawn towards what calibrated probabilities expect ----------------------------------------------


def _made_up(num_rows, seed=0, shares=(0.4, 0.2, 0.05), tells=2.0):
    """Calibrated log-odds of classes of these shares, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_rows, len(shares))) < shares
    scores = tells * (rng.normal(size=labels.shape) + tells * labels) - tells**2 / 2
    return scores + np.log(np.divide(shares, np.subtract(1, shares))), labels


def _platt(scores, labels):
    """As jobs.calibrate does: rows -> probabilities of all rows by the fit on those."""

    def calibrated(rows):
        return expit(
            apply_calibration(
                "platt", fit_calibration("platt", scores[rows], labels[rows], True), scores, True
            )
        )

    return calibrated


def test_the_expected_threshold_by_hand():
    # Expected F1 of the first k rows: 2 (0.9) / (1 + 1.8), 2 (1.5) / (2 + 1.8), 2 (1.8) / (3 + 1.8): the second.
    np.testing.assert_allclose(expected_thresholds(np.array([[0.9], [0.6], [0.3]])), [0.45])
    np.testing.assert_allclose(expected_thresholds(np.array([[0.0], [0.0]])), [0.5])
    np.testing.assert_allclose(expected_thresholds(np.array([[0.2], [0.2]])), [0.1])  # a tie is not a cut


def test_the_expected_threshold_is_half_of_the_f1_that_it_reaches():
    probs = np.random.default_rng(0).beta(0.3, 2, (200_000, 1))
    (threshold,) = expected_thresholds(probs)
    above = probs[probs >= threshold]
    assert threshold == pytest.approx(
        above.sum() / (len(above) + probs.sum()), abs=1e-4
    )  # Lipton et al. 2014


def test_with_certain_probabilities_expected_is_exact():
    labels = np.random.default_rng(1).random((40, 3)) < 0.3
    np.testing.assert_allclose(
        expected_thresholds(labels.astype(float)), best_thresholds(labels.astype(float), labels)
    )


def test_expected_thresholds_do_better_on_new_rows_where_a_class_is_rare():
    fresh_scores, fresh = _made_up(40_000, 99, (0.02,))
    exact, expected = [], []
    for seed in range(20):
        scores, labels = _made_up(300, seed, (0.02,))
        for found, cuts in (
            (exact, best_thresholds(expit(scores), labels)),
            (expected, expected_thresholds(expit(scores))),
        ):
            found.append(f1_of(fresh, expit(fresh_scores) >= cuts)[0])
    assert np.mean(expected) > np.mean(exact) + 0.02


def test_drawing_by_hand():
    exact, expected = np.array([0.2, 0.2, 0.5]), np.array([0.4, 0.4, 0.3])
    np.testing.assert_allclose(drawn_thresholds(exact, np.array([10, 30, 0]), expected, 10), [0.3, 0.25, 0.3])
    np.testing.assert_allclose(drawn_thresholds(exact, np.array([10, 30, 0]), expected, 0), exact)


def test_f1_is_scikit_learns():
    scores, labels = _made_up(80, 3)
    at = np.array([0.1, 0.5, 0.9])
    expected = [f1_score(labels, expit(scores) >= cut, average=None, zero_division=0) for cut in at]
    np.testing.assert_allclose(f1_curves(expit(scores), labels, at), expected)


def test_the_strength_is_the_one_of_the_best_cross_fitted_f1():
    scores, labels = _made_up(200, 4)
    calibrated, fold = _platt(scores, labels), deal_folds(200, 5, 0)
    found = tune_thresholds(labels, calibrated, num_resamples=100)
    decided = {strength: np.zeros(labels.shape, bool) for strength in (0, 5, 10, 20, 50, 100, 200, 1000)}
    for held_out in range(5):  # the slow way, from the outside
        rows, inside = np.flatnonzero(fold != held_out), fold == held_out
        probs = calibrated(rows)
        exact = best_thresholds(probs[rows], labels[rows])
        for strength, decisions in decided.items():
            weight = labels[rows].sum(axis=0)
            cuts = (weight * exact + strength * expected_thresholds(probs[rows])) / (weight + strength)
            decisions[inside] = probs[inside] >= cuts
    macro = {
        strength: f1_score(labels, decisions, average="macro") for strength, decisions in decided.items()
    }
    best = max(reversed(macro), key=macro.get)
    assert found["strength"] == best
    np.testing.assert_allclose(found["f1"], f1_score(labels, decided[best], average=None))


def test_what_is_chosen_is_drawn_or_a_half():
    scores, labels = _made_up(400, 5)
    for judge in ("together", "each"):
        found = tune_thresholds(labels, _platt(scores, labels), judge, 200)
        np.testing.assert_array_equal(found["thresholds"], np.where(found["is_left"], 0.5, found["drawn"]))
        np.testing.assert_allclose(found["gain"], found["f1"] - found["f1_half"])
    np.testing.assert_array_equal(found["is_left"], found["gain_low"] <= 0)  # each


def test_where_nothing_is_gained_all_stay_at_a_half():
    rng = np.random.default_rng(6)
    labels = rng.random((400, 3)) < 0.5
    probs = np.where(labels, 0.7, 0.3)  # no threshold does better
    found = tune_thresholds(labels, lambda rows: probs, num_resamples=200)
    np.testing.assert_array_equal(found["thresholds"], 0.5)


def test_rare_classes_are_judged_with_the_others():
    scores, labels = _made_up(400, 7, (0.3, 0.2, 0.1, 0.1, 0.03), 1.5)
    together, each = (
        tune_thresholds(labels, _platt(scores, labels), judge, 300) for judge in ("together", "each")
    )
    assert each["is_left"].any()  # too few rows to prove a gain
    assert not together["is_left"].any()


def test_no_row_helps_to_decide_itself():
    scores, labels = _made_up(50, 8)
    before = cross_fitted_tuning(labels, _platt(scores, labels), num_resamples=20)
    assert not before["exact"].all()
    for row in (0, 17, 33):
        changed = labels.copy()
        changed[row] = ~changed[row]
        after = cross_fitted_tuning(changed, _platt(scores, changed), num_resamples=20)
        for rule, decisions in after.items():
            np.testing.assert_array_equal(decisions[row], before[rule][row], err_msg=rule)


def test_a_calibration_on_all_rows_would_let_a_row_decide_itself():
    """Bite: the test above fails for probabilities that were calibrated on all rows beforehand."""
    scores, labels = _made_up(50, 8)

    def decision(row, truth):
        probs = _platt(scores, truth)(np.arange(50))
        return cross_fitted_tuning(truth, lambda rows: probs, num_resamples=2)["exact"][row].tolist()

    flipped = (np.where(np.arange(50)[:, None] == row, ~labels, labels) for row in range(50))
    assert any(decision(row, labels) != decision(row, truth) for row, truth in enumerate(flipped))


def test_intervals_are_those_of_thresholds_found_on_resampled_rows():
    scores, labels = _made_up(120, 9)
    probs, slow = expit(scores).round(2), []
    labels[:, 2] = False
    for counts in resampled(120, 200, 3):
        for count in counts.astype(int):
            rows = np.repeat(np.arange(120), count)
            slow.append(best_thresholds(probs[rows], labels[rows]))
    expected = np.quantile(slow, [0.025, 0.975], axis=0).T
    found = threshold_intervals(probs, labels, 200, 3)
    np.testing.assert_allclose(found, expected, atol=0.03)  # cuts of all rows, not of those that were drawn
    np.testing.assert_array_equal(found[2], 0.5)
