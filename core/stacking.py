"""Stacking: a meta-learner on the scores of several classifiers, by scikit-learn's logistic regression.

Legend: M members, n rows, C classes, F features of a row. Logits are (M, n, C) floats, their columns in one order. A
fitted meta-learner is one array, (C, F + 1): each class's weights, its intercept last.
"""

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.linear_model import LogisticRegression

from core.calibration import row_losses
from core.mixing import equal_weights, mean_logits
from core.thresholds import deal_folds

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C; small is strongly regularised
INNER_FOLDS = 3  # that choose among STRENGTHS
FARTHEST = 13.8  # nats, ln 1e6: scores beyond are cut; a single row's could bend the weights


def stacking_features(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, M * C): all log-probabilities of all members; with several labels (C, n, M): each class's own log-odds.

    Several labels: a class does not look at the others, so that a rare one has M weights to learn, not M * C.
    """
    logits = np.asarray(logits, np.float64)
    if multi_label:
        return np.clip(logits, -FARTHEST, FARTHEST).transpose(2, 1, 0)
    found = np.maximum(log_softmax(logits, axis=2), -FARTHEST)
    return found.transpose(1, 0, 2).reshape(logits.shape[1], -1)


def fit_stacking(logits: np.ndarray, truth: np.ndarray, multi_label: bool, strength: float) -> np.ndarray:
    """A meta-learner: logistic regression on stacking_features, with an L2 penalty on its weights.

    Args:    logits: (M, n, C), of rows that the members were not trained on | truth: (n, C) bool | strength:
             scikit-learn's C, see choose_strength.
    Returns: (C, F + 1) float64. A row of NaN is a class without a row here (several labels: or in every row).
    Source:  Wolpert 1992, "Stacked generalization"; Ting and Witten 1999: probabilities as features, not decisions.
    """
    features, num_classes = stacking_features(logits, multi_label), truth.shape[1]
    table = np.full((num_classes, features.shape[-1] + 1), np.nan)
    if multi_label:
        for c in np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0)):
            table[c] = _weights(features[c], truth[:, c], strength)[1]
    else:
        known = np.flatnonzero(truth.any(axis=0))
        if len(known) > 1:
            table[known] = _weights(features, truth.argmax(axis=1), strength)
    return table


def _weights(features: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """(K, F + 1) of the K classes that the labels hold, in order; of two, the first scores 0."""
    model = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
    found = np.column_stack([model.coef_, model.intercept_])
    return np.vstack([np.zeros_like(found), found]) if len(found) == 1 else found


def choose_strength(logits: np.ndarray, truth: np.ndarray, multi_label: bool, seed: int = 0) -> float:
    """That of STRENGTHS with the least loss on held-out rows, in INNER_FOLDS folds."""
    fold = deal_folds(len(truth), INNER_FOLDS, seed)
    losses = np.zeros(len(STRENGTHS))
    for k in np.unique(fold):
        inside = fold == k
        for place, strength in enumerate(STRENGTHS):
            table = fit_stacking(logits[:, ~inside], truth[~inside], multi_label, strength)
            held_out = stacked_logits(logits[:, inside], table, multi_label)
            losses[place] += row_losses(held_out, truth[inside], multi_label).sum()
    return STRENGTHS[int(losses.argmin())]


def stacked_logits(logits: np.ndarray, table: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, C) float64: the meta-learner's log-probabilities, with several labels its log-odds.

    A class whose row is NaN keeps the probability of the members' mean; the others share the rest.
    """
    features, known = stacking_features(logits, multi_label), ~np.isnan(table[:, 0])
    out = mean_logits(logits, equal_weights(len(logits)), multi_label)
    if multi_label:
        out[:, known] = np.einsum("cnm,cm->nc", features[known], table[known, :-1]) + table[known, -1]
    elif known.any():
        scores = features @ table[known, :-1].T + table[known, -1]
        out[:, known] = log_softmax(scores, axis=1) + logsumexp(out[:, known], axis=1, keepdims=True)
    return out


def own_weights(table: np.ndarray, num_members: int, multi_label: bool) -> np.ndarray:
    """(M,): the mean over the classes of the weight on a member's own score of the class; NaN where none was fitted."""
    classes = np.flatnonzero(~np.isnan(table[:, 0]))
    if not len(classes):
        return np.full(num_members, np.nan)
    if multi_label:
        return table[classes, :-1].mean(axis=0)
    weights = table[:, :-1].reshape(len(table), num_members, len(table))
    return weights[classes, :, classes].mean(axis=0)
