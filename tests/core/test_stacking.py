"""core/stacking.py: the same probabilities as scikit-learn's own, classes without rows, the penalty that is chosen."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from core.calibration import row_losses
from core.mixing import equal_weights, mean_logits
from core.stacking import (
    FARTHEST,
    STRENGTHS,
    choose_strength,
    fit_stacking,
    own_weights,
    stacked_logits,
    stacking_features,
)
from core.thresholds import deal_folds


def some_members(num_rows: int, num_classes: int, multi_label: bool, skills=(1.0, 2.0)) -> tuple:
    """(M, n, C) logits of members that know more or less, and (n, C) bool labels."""
    rng = np.random.default_rng(0)
    if multi_label:
        truth = rng.random((num_rows, num_classes)) < 0.3
    else:
        truth = rng.integers(num_classes, size=num_rows)[:, None] == np.arange(num_classes)
    return np.stack([skill * truth + rng.normal(size=truth.shape) for skill in skills]), truth


@pytest.mark.parametrize("num_classes", [2, 4])
def test_probabilities_are_those_of_scikit_learn(num_classes):
    logits, truth = some_members(90, num_classes, False)
    new = some_members(20, num_classes, False)[0]
    features, held_out = (np.hstack(log_softmax(part, axis=2)) for part in (logits, new))
    model = LogisticRegression(C=0.1, max_iter=1000).fit(features, truth.argmax(axis=1))
    found = softmax(stacked_logits(new, fit_stacking(logits, truth, False, 0.1), False), axis=1)
    assert np.allclose(found, model.predict_proba(held_out), atol=1e-9)


def test_several_labels_are_scikit_learn_a_class():
    logits, truth = some_members(90, 3, True)
    new = some_members(20, 3, True)[0]
    found = expit(stacked_logits(new, fit_stacking(logits, truth, True, 1.0), True))
    for c in range(3):
        model = LogisticRegression(C=1.0, max_iter=1000).fit(logits[:, :, c].T, truth[:, c])
        assert np.allclose(found[:, c], model.predict_proba(new[:, :, c].T)[:, 1], atol=1e-9)


def test_a_class_without_rows_keeps_the_mean_and_the_others_share_the_rest():
    logits, truth = some_members(90, 3, False)
    kept = ~truth[:, 1]
    table = fit_stacking(logits[:, kept], truth[kept], False, 1.0)
    assert np.isnan(table[1]).all()
    found = np.exp(stacked_logits(logits, table, False))
    mean = np.exp(mean_logits(logits, equal_weights(2), False))
    assert np.allclose(found.sum(axis=1), 1)
    assert np.allclose(found[:, 1], mean[:, 1])
    assert not np.allclose(found[:, 0], mean[:, 0])


def test_a_label_that_all_rows_or_none_have_keeps_the_mean():
    logits, truth = some_members(40, 3, True)
    truth[:, 0], truth[:, 2] = True, False
    table = fit_stacking(logits, truth, True, 1.0)
    assert np.isnan(table[:, 0]).tolist() == [True, False, True]
    mean = mean_logits(logits, equal_weights(2), True)
    assert np.allclose(stacked_logits(logits, table, True)[:, [0, 2]], mean[:, [0, 2]])


def test_one_class_alone_is_the_mean():
    logits, truth = some_members(10, 3, False)
    table = fit_stacking(logits, np.tile([True, False, False], (10, 1)), False, 1.0)
    assert np.allclose(stacked_logits(logits, table, False), mean_logits(logits, equal_weights(2), False))


def test_scores_far_off_are_cut():
    logits = np.zeros((2, 1, 2))
    logits[0, 0] = [0, 100]
    assert stacking_features(logits, False).tolist() == [[-FARTHEST, 0.0, np.log(0.5), np.log(0.5)]]
    assert stacking_features(logits, True).tolist() == [[[0.0, 0.0]], [[FARTHEST, 0.0]]]


def test_own_weights_by_hand():
    table = np.array([[1.0, 9, 3, 9, 0], [9, 2, 9, 4, 0]])  # two members of two classes, the intercept last
    assert own_weights(table, 2, False).tolist() == [1.5, 3.5]
    assert own_weights(np.array([[1.0, 2.0, 0], [3.0, 6.0, 0], [np.nan] * 3]), 2, True).tolist() == [2, 4]


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_strength_is_that_of_least_loss_on_held_out_rows(multi_label):
    logits, truth = some_members(60, 3, multi_label)
    fold, losses = deal_folds(60, 3, 0), []
    for strength in STRENGTHS:
        total = 0.0
        for k in range(3):
            table = fit_stacking(logits[:, fold != k], truth[fold != k], multi_label, strength)
            held_out = stacked_logits(logits[:, fold == k], table, multi_label)
            total += row_losses(held_out, truth[fold == k], multi_label).sum()
        losses.append(total)
    assert choose_strength(logits, truth, multi_label) == STRENGTHS[int(np.argmin(losses))]


def test_members_that_know_nothing_are_held_down():
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=60)[:, None] == np.arange(4)
    assert choose_strength(rng.normal(size=(3, 60, 4)), truth, False) == min(STRENGTHS)
