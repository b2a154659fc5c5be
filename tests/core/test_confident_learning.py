"""core/confident_learning.py: the equations on paper, cleanlab's answers, and noise that is known."""

import numpy as np
import pytest

from core.confident_learning import (
    METHODS,
    class_thresholds,
    confident_classes,
    confident_joint,
    find_issues,
    label_scores,
    noise_matrix,
    one_vs_rest,
    wrong_share,
)

THEIRS = {"off_diagonal": "confident_learning"}

# -- by hand ----------------------------------------------------------------------------------------------------

PROBS = np.array(
    [
        [0.9, 0.1],  # given 0
        [0.8, 0.2],
        [0.6, 0.4],
        [0.1, 0.9],  # wrong
        [0.2, 0.8],  # given 1
        [0.4, 0.6],
    ]
)
LABELS = np.array([0, 0, 0, 0, 1, 1])


def test_thresholds_are_mean_self_confidences():
    np.testing.assert_allclose(class_thresholds(PROBS, LABELS), [2.4 / 4, 1.4 / 2])


def test_a_class_without_rows_is_never_counted():
    thresholds = class_thresholds(np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]), np.array([0, 1]))
    assert np.isinf(thresholds[2])
    assert confident_classes(np.array([[0.0, 0.1, 0.9]]), thresholds).tolist() == [-1]


def test_the_likeliest_of_those_that_reach_their_thresholds():
    thresholds = np.array([0.8, 0.3, 0.2])
    probs = np.array([[0.4, 0.35, 0.25], [0.85, 0.15, 0.0], [0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    assert confident_classes(probs, thresholds).tolist() == [1, 0, -1, 2]


def test_the_joint_by_hand():
    # reached: rows 0, 1, 2 class 0 (0.6), row 3 class 1, row 4 class 1; row 5 none: [[3, 1], [0, 1]] of 4 and 2 rows
    assert confident_joint(PROBS, LABELS).tolist() == [[3, 1], [0, 2]]


def test_calibrated_counts_are_whole_and_sum_to_the_rows():
    rng = np.random.default_rng(0)
    probs, labels = rng.dirichlet(np.ones(7), 500), rng.integers(0, 7, 500)
    joint = confident_joint(probs, labels)
    assert joint.dtype == np.int64
    assert np.array_equal(joint.sum(axis=1), np.bincount(labels, minlength=7))
    assert (joint >= 0).all()


def test_the_noise_by_hand():
    joint = np.array([[3, 1], [0, 2]])
    np.testing.assert_allclose(noise_matrix(joint), [[1, 1 / 3], [0, 2 / 3]])
    assert wrong_share(joint) == pytest.approx(1 / 6)


@pytest.mark.parametrize("method", METHODS)
def test_the_wrong_row_is_found(method):
    assert np.flatnonzero(find_issues(PROBS, LABELS, method)).tolist() == [3]


def test_methods_by_hand():
    probs = np.array([[0.5, 0.1, 0.4], [0.3, 0.35, 0.35], [0.32, 0.6, 0.08], [0.4, 0.25, 0.35]])
    probs = np.vstack([probs, np.eye(3)[[1, 2]]])
    labels = np.array([0, 0, 0, 0, 1, 2])
    joint = np.array([[2, 1, 1], [0, 1, 0], [0, 0, 1]])
    # by noise rate: largest p1 - p0 is row 2, largest p2 - p0 is row 1; by class: the two smallest p0 are rows 1, 2
    assert np.flatnonzero(find_issues(probs, labels, "prune_by_noise_rate", joint)).tolist() == [1, 2]
    assert np.flatnonzero(find_issues(probs, labels, "prune_by_class", joint)).tolist() == [1, 2]
    joint = np.array([[2, 2, 0], [0, 1, 0], [0, 0, 1]])  # row 1: p1 - p0 is the second largest
    assert np.flatnonzero(find_issues(probs, labels, "prune_by_noise_rate", joint)).tolist() == [1, 2]
    joint = np.array([[3, 0, 1], [0, 1, 0], [0, 0, 1]])  # p2 - p0: row 1; smallest p0: row 1
    assert np.flatnonzero(find_issues(probs, labels, "both", joint)).tolist() == [1]
    probs[0] = [0.25, 0.2, 0.55]  # now p2 - p0 is largest in row 0, p0 smallest there, too
    assert np.flatnonzero(find_issues(probs, labels, "both", joint)).tolist() == [0]
    probs[1] = [0.2, 0.5, 0.3]  # and p0 smallest in row 1: the two disagree
    assert not find_issues(probs, labels, "both", joint).any()


def test_a_row_whose_likeliest_class_is_given_is_no_issue():
    probs, labels = np.array([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]]), np.array([0, 0, 1])
    joint = np.array([[0, 2], [0, 1]])
    assert not find_issues(probs, labels, "prune_by_noise_rate", joint).any()


def test_scores_by_hand():
    probs, labels = np.array([[0.2, 0.5, 0.3], [0.7, 0.2, 0.1]]), np.array([2, 0])
    np.testing.assert_allclose(label_scores(probs, labels, "self_confidence"), [0.3, 0.7])
    np.testing.assert_allclose(label_scores(probs, labels, "normalised_margin"), [0.4, 0.75])


def test_several_labels_are_two_classes_each():
    probs, truth = np.array([[0.9, 0.2], [0.3, 0.6]]), np.array([[True, False], [True, True]])
    (first, given), (second, other) = one_vs_rest(probs, truth)
    np.testing.assert_allclose(first, [[0.1, 0.9], [0.7, 0.3]])
    np.testing.assert_allclose(second, [[0.8, 0.2], [0.4, 0.6]])
    assert (given.tolist(), other.tolist()) == ([1, 1], [0, 1])


# -- invariants -------------------------------------------------------------------------------------------------


def invented(seed: int, noise: float = 0.15) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a fair model, given labels, which of them are wrong."""
    rng = np.random.default_rng(seed)
    num_classes, n = int(rng.integers(3, 7)), int(rng.integers(100, 900))
    true = rng.integers(0, num_classes, n)
    logits = rng.normal(size=(n, num_classes))
    logits[np.arange(n), true] += 2.5
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shift = rng.integers(1, num_classes, n) * (rng.random(n) < noise)
    return probs, (true + shift) % num_classes, shift > 0


def test_the_order_of_the_rows_does_not_count():
    probs, labels, _ = invented(3)
    order = np.random.default_rng(0).permutation(len(labels))
    for method in METHODS:
        assert np.array_equal(
            find_issues(probs, labels, method)[order], find_issues(probs[order], labels[order], method)
        )


def test_a_model_that_is_right_finds_the_noise():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 600)
    probs = np.full((600, 3), 0.05)
    probs[np.arange(600), true] = 0.9
    given = true.copy()
    given[(true == 0) & (np.arange(600) % 4 == 0)] = 1  # a quarter of class 0 is called 1
    for method in METHODS:
        assert np.array_equal(find_issues(probs, given, method), given != true)
    joint = confident_joint(probs, given)
    assert np.array_equal(joint, [[((given == i) & (true == j)).sum() for j in range(3)] for i in range(3)])
    assert noise_matrix(joint)[1, 0] == pytest.approx((given[true == 0] == 1).mean())


def test_labels_that_the_model_agrees_with_are_let_alone():
    probs, labels, _ = invented(1)
    labels = probs.argmax(axis=1)
    assert not any(find_issues(probs, labels, method).any() for method in METHODS)


# -- cleanlab ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", METHODS[:3])
def test_the_same_rows_as_cleanlab_of_one_joint(seed, method):
    """The joint is ours: where cells tie, cleanlab's rounding hangs on an unstable sort."""
    cleanlab = pytest.importorskip("cleanlab.filter")
    probs, labels, _ = invented(seed)
    expected = cleanlab.find_label_issues(
        labels, probs, filter_by=method, n_jobs=1, confident_joint=confident_joint(probs, labels)
    )
    assert expected.any()
    assert np.array_equal(find_issues(probs, labels, method), expected)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_joint_as_cleanlab(seed):
    count = pytest.importorskip("cleanlab.count")
    probs, labels, _ = invented(seed)
    np.testing.assert_allclose(class_thresholds(probs, labels), count.get_confident_thresholds(labels, probs))
    theirs = count.compute_confident_joint(labels, probs)
    ours = confident_joint(probs, labels)
    assert np.abs(ours - theirs).max() <= 1  # of cells that tie in a row another may be rounded up
    assert np.array_equal(ours.sum(axis=1), theirs.sum(axis=1))


@pytest.mark.parametrize("seed", range(6))
def test_the_same_off_diagonal_rows_and_scores_as_cleanlab(seed):
    cleanlab, rank = pytest.importorskip("cleanlab.filter"), pytest.importorskip("cleanlab.rank")
    probs, labels, _ = invented(seed)
    expected = cleanlab.find_label_issues(labels, probs, filter_by="confident_learning", n_jobs=1)
    assert np.array_equal(find_issues(probs, labels, "off_diagonal"), expected)
    for ours, theirs in (("self_confidence", "self_confidence"), ("normalised_margin", "normalized_margin")):
        scores = rank.get_label_quality_scores(labels, probs, method=theirs)
        np.testing.assert_allclose(label_scores(probs, labels, ours), scores)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_labels_as_cleanlab_of_several(method):
    theirs = pytest.importorskip("cleanlab.multilabel_classification.filter")
    rng = np.random.default_rng(5)
    true = rng.random((600, 3)) < [0.5, 0.3, 0.1]
    probs = 1 / (1 + np.exp(-(rng.normal(size=true.shape) + np.where(true, 1.5, -1.5))))
    given = true ^ (rng.random(true.shape) < 0.08)
    expected = theirs.find_multilabel_issues_per_class(
        [np.flatnonzero(row).tolist() for row in given], probs, filter_by=THEIRS.get(method, method), n_jobs=1
    )
    found = np.stack([find_issues(*problem, method) for problem in one_vs_rest(probs, given)], axis=1)
    assert expected.any(axis=0).all()
    assert np.array_equal(found, expected)
