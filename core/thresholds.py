"""Decision thresholds for several labels at once: for each class the cut that maximises F1, found exactly.

Legend: n rows, C classes. A row is positive for a class when p >= threshold.
"""

import numpy as np


def best_thresholds(probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each class the threshold with the highest F1 over all cuts between distinct scores.

    The threshold lies midway between the lowest score above the cut and the highest one below it (0 when
    every row is above). Rows with the same score are never parted. Of several cuts with the same F1 it is the
    one nearest 0.5, then the higher one. A class without a positive row keeps 0.5.

    Args:    probs: (n, C) float in 0..1.
             labels: (n, C) of 0 and 1.
    Returns: (C,) float64; `probs >= thresholds` gives the decisions. They flatter the rows they were chosen
             on: score them on other rows, or see cross_fitted.
    Raises:  ValueError when the shapes differ or a probability is outside 0..1 (logits, NaN).
    Cost:    one sort a class; O(n * C) memory.
    """
    probs, labels = _checked(probs, labels)
    num_rows, num_classes = probs.shape
    if num_rows == 0:
        return np.full(num_classes, 0.5)
    order = np.argsort(-probs, axis=0, kind="stable")
    lowest = np.take_along_axis(probs, order, axis=0)  # (n, C): the lowest score above cut k = 1..n
    hits = np.take_along_axis(labels, order, axis=0).cumsum(axis=0)
    highest_below = np.vstack([lowest[1:], np.zeros((1, num_classes))])
    f1 = 2 * hits / (np.arange(1, num_rows + 1)[:, None] + hits[-1])
    f1[:-1][lowest[:-1] == highest_below[:-1]] = -1.0  # a tie is not a cut
    midway = (lowest + highest_below) / 2
    cuts = np.where(midway > highest_below, midway, lowest)  # neighbouring floats have no number between them
    # f1 is a quotient of small whole numbers, rounded once: equal quotients are equal floats.
    distance = np.where(f1 == f1.max(axis=0), np.abs(cuts - 0.5), np.inf)
    best = np.take_along_axis(cuts, distance.argmin(axis=0)[None, :], axis=0)[0]
    return np.where(hits[-1] > 0, best, 0.5)


def cross_fitted(probs: np.ndarray, labels: np.ndarray, num_folds: int = 5, seed: int = 0) -> np.ndarray:
    """Each row's decisions, at the thresholds found on the other folds.

    Thresholds chosen and scored on the same rows flatter themselves: they fit the chance of those rows, and
    most of all for rare classes. Here no row helps to choose its own threshold, so the F1 of these decisions
    estimates, without flattery, what thresholds from that many rows less one fold do on new rows.

    Args:    probs, labels: as in best_thresholds.
             num_folds: at least 2; with fewer rows than that, each row is a fold of its own.
             seed: of the permutation that deals the rows to the folds.
    Returns: (n, C) bool.
    """
    probs, labels = _checked(probs, labels)
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2, found {num_folds}")
    fold = np.random.default_rng(seed).permutation(len(probs)) % num_folds
    decisions = np.zeros(probs.shape, dtype=bool)
    for held_out in np.unique(fold):
        inside = fold == held_out
        decisions[inside] = probs[inside] >= best_thresholds(probs[~inside], labels[~inside])
    return decisions


def _checked(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities as float64 and labels as bool, or a ValueError that says what does not fit."""
    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    if probs.ndim != 2 or probs.shape != labels.shape:
        raise ValueError(f"probs and labels must both be (n, C), found {probs.shape} and {labels.shape}")
    if not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probs must lie in 0..1: pass probabilities, not logits")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 and 1")
    return probs, labels == 1
