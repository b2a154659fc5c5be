"""Decision thresholds for several labels at once: for each class the cut that maximises F1, found exactly.

Legend: n rows, C classes, R resamples. A row is positive for a class when p >= threshold.
"""

from collections.abc import Callable

import numpy as np

from core.statistics import resampled

# positive rows that the expected threshold weighs as much as; which of them is found by cross-fitting
STRENGTHS = (0, 5, 10, 20, 50, 100, 200, 1000)


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
    order, cuts, is_tie = _cuts(probs)
    hits = np.take_along_axis(labels, order, axis=0).cumsum(axis=0)
    f1 = 2 * hits / (np.arange(1, num_rows + 1)[:, None] + hits[-1])
    f1[is_tie] = -1.0  # a tie is not a cut
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
    fold, decisions = deal_folds(len(probs), num_folds, seed), np.zeros(probs.shape, dtype=bool)
    for held_out in np.unique(fold):
        inside = fold == held_out
        decisions[inside] = probs[inside] >= best_thresholds(probs[~inside], labels[~inside])
    return decisions


def deal_folds(num_rows: int, num_folds: int, seed: int) -> np.ndarray:
    """(n,) int: the fold of each row, by chance, sizes alike to one row; with few rows each is one of its own."""
    return np.random.default_rng(seed).permutation(num_rows) % num_folds


def f1_of(labels: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """(C,) float64: F1 of each class; 0 for one without rows and decisions. Args: (n, C) bool each."""
    told = labels.sum(axis=0) + decisions.sum(axis=0)
    return 2 * (labels & decisions).sum(axis=0) / np.maximum(told, 1)


def f1_curves(probs: np.ndarray, labels: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(len(at), C) float64: F1 of each class at each of some thresholds. Args: (n, C) float and bool."""
    return np.stack([f1_of(labels, probs >= cut) for cut in at])


def expected_thresholds(probs: np.ndarray) -> np.ndarray:
    """For each class the threshold with the highest F1 to be expected if the probabilities are right: no label is read.

    Of the k rows with the highest p, sum(p) are expected to be positive: F1 = 2 sum(p above) / (k + sum(p)). That needs
    no positive row of the class, and does not follow the chance of the few that there are.

    Args:    probs: (n, C) calibrated probabilities.
    Returns: (C,) float64; 0.5 where every probability is 0.
    Source:  Lipton, Elkan & Narayanaswamy 2014, arXiv:1402.1892 (it comes to half of the F1 that it reaches), on the
             empirical distribution of the scores, expectations of numerator and denominator taken apart.
    """
    order, cuts, is_tie = _cuts(probs)
    hits = np.take_along_axis(probs, order, axis=0).cumsum(axis=0)
    f1 = 2 * hits / (np.arange(1, len(probs) + 1)[:, None] + hits[-1])
    f1[is_tie] = -1.0
    best = np.take_along_axis(cuts, f1.argmax(axis=0)[None, :], axis=0)[0]
    return np.where(hits[-1] > 0, best, 0.5)


def drawn_thresholds(
    exact: np.ndarray, num_positive: np.ndarray, expected: np.ndarray, strength: float
) -> np.ndarray:
    """The exact thresholds of classes drawn towards the expected ones, the rarer a class the more.

    t = (n_c t_c + m e_c) / (n_c + m): a class with as many positive rows as the strength goes half of the way.

    Args:    exact: (C,) t_c, of best_thresholds | num_positive: (C,) n_c | expected: (C,) e_c, of expected_thresholds |
             strength: m, in positive rows; 0 leaves them where they are.
    Returns: (C,) float64.
    """
    share = strength / np.maximum(num_positive + strength, 1e-12)
    return exact + share * (expected - exact)


def tune_thresholds(
    labels: np.ndarray,
    calibrated: Callable[[np.ndarray], np.ndarray],
    judge: str = "together",
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """A threshold for each class: the exact one, drawn to the expected one, or 0.5 where that gains nothing for real.

    Args:    labels: (n, C) bool | calibrated: rows (k,) int -> (n, C) probabilities of all n rows, by a calibration
             that was fitted on those rows alone |
             judge: together: all stay at 0.5 when the 95 % interval of the gain in macro F1 over 0.5 includes 0; else
             a class stays there whose own gain's interval lies below 0. each: a class stays at 0.5 when its own
             interval includes 0. With 28 simulated classes, the rarest 0.2 % of 4000 rows, `each` kept a third to a
             half of the gain in macro F1 on new rows, `together` all of it (2026-11-20): rare classes cannot prove it.
    Returns: thresholds, drawn, exact, expected: (C,); f1, f1_half, gain, gain_low, gain_high: (C,), drawn against 0.5;
             is_left: (C,) bool; strength. Every F1 is cross-fitted, calibration included: no row helps to choose
             what it is scored with. The strength is the one of the highest macro F1 among STRENGTHS.
    """
    fold, half = deal_folds(len(labels), 5, seed), np.zeros(labels.shape, bool)
    decided = np.zeros((len(STRENGTHS), *labels.shape), bool)
    for held_out in np.unique(fold):
        inside = fold == held_out
        probs = calibrated(np.flatnonzero(~inside))
        found = _candidates(probs[~inside], labels[~inside])
        for k, strength in enumerate(STRENGTHS):
            decided[k, inside] = probs[inside] >= drawn_thresholds(*found, strength)
        half[inside] = probs[inside] >= 0.5
    scores = [f1_of(labels, decisions).mean() for decisions in decided]
    best = max(range(len(STRENGTHS)), key=lambda k: (scores[k], k))  # of equal ones the strongest
    samples = _gain_samples(labels, half, decided[best], num_resamples, seed)
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    gains_together = np.quantile(samples.mean(axis=1), 0.025) > 0
    is_left = low <= 0 if judge == "each" else (high < 0) | ~gains_together
    exact, num_positive, expected = _candidates(calibrated(np.arange(len(labels))), labels)
    drawn = drawn_thresholds(exact, num_positive, expected, STRENGTHS[best])
    f1, f1_half = f1_of(labels, decided[best]), f1_of(labels, half)
    return {
        "thresholds": np.where(is_left, 0.5, drawn), "drawn": drawn, "exact": exact, "expected": expected,
        "f1": f1, "f1_half": f1_half, "gain": f1 - f1_half, "gain_low": low, "gain_high": high,
        "is_left": is_left, "strength": STRENGTHS[best],
    }  # fmt: skip


def cross_fitted_tuning(
    labels: np.ndarray,
    calibrated: Callable[[np.ndarray], np.ndarray],
    judge: str = "together",
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each row's decisions by what tune_thresholds finds on the other folds, all of its own choices included.

    Args:    as in tune_thresholds.
    Returns: (n, C) bool each: "at 0.5"; "exact"; "drawn"; "chosen": drawn, or 0.5 where a class is left there.
    """
    fold = deal_folds(len(labels), 5, seed)
    out = {name: np.zeros(labels.shape, bool) for name in ("at 0.5", "exact", "drawn", "chosen")}
    for held_out in np.unique(fold):
        inside, rows = fold == held_out, np.flatnonzero(fold != held_out)
        found = tune_thresholds(
            labels[rows], lambda some, rows=rows: calibrated(rows[some])[rows], judge, num_resamples, seed
        )
        cuts = {"at 0.5": 0.5, "chosen": found["thresholds"]} | {n: found[n] for n in ("exact", "drawn")}
        probs = calibrated(rows)[inside]
        for name, cut in cuts.items():
            out[name][inside] = probs >= cut
    return out


def threshold_intervals(
    probs: np.ndarray, labels: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """(C, 2) float64: low and high, 95 % of the exact thresholds that resampled rows would have led to.

    Args:    probs: (n, C) | labels: (n, C) bool. A resample's threshold is one of the cuts between distinct scores of
             all rows; 0.5 where it has no positive row.
    Cost:    O(R * n * C), in blocks: 1.3 s for 2000 x 5000 x 28 (measured, one core, 2026-11-20).
    """
    order, cuts, is_tie = _cuts(probs)
    found = [[] for _ in range(labels.shape[1])]
    for counts in resampled(len(probs), num_resamples, seed):
        for c, values in enumerate(found):
            positive = labels[order[:, c], c]
            ends = np.flatnonzero(~is_tie[:, c])  # the last row of each score, the highest score first
            num_hits = np.diff(positive.cumsum()[ends], prepend=0)
            ends = ends[
                num_hits > 0
            ]  # F1 falls with every negative row: the best cut is behind a positive one
            if not len(ends):
                values.append(np.full(len(counts), 0.5))
                continue
            starts, drawn = np.append(0, ends[:-1] + 1), counts[:, order[:, c]]
            told = np.add.reduceat(drawn, starts, axis=1)
            told[:, -1] -= drawn[:, ends[-1] + 1 :].sum(axis=1)  # reduceat goes on to the end
            hits = np.add.reduceat(drawn * positive, starts, axis=1).cumsum(axis=1)
            f1 = 2 * hits / np.maximum(told.cumsum(axis=1) + hits[:, -1:], 1)
            is_best = f1 == f1.max(axis=1, keepdims=True)
            best = np.where(is_best, np.abs(cuts[ends, c] - 0.5), np.inf).argmin(axis=1)
            values.append(np.where(hits[:, -1] > 0, cuts[ends[best], c], 0.5))
    return np.stack([np.quantile(np.concatenate(values), [0.025, 0.975]) for values in found])


def _cuts(probs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class's rows, the highest score first: order, the threshold below each, and where it would part a tie."""
    order = np.argsort(-probs, axis=0, kind="stable")
    lowest = np.take_along_axis(probs, order, axis=0)  # (n, C): the lowest score above cut k = 1..n
    highest_below = np.vstack([lowest[1:], np.zeros((1, probs.shape[1]))])
    midway = (lowest + highest_below) / 2
    cuts = np.where(midway > highest_below, midway, lowest)  # neighbouring floats have no number between them
    is_tie = lowest == highest_below
    is_tie[-1] = False  # all rows together are a cut, with a lowest score of 0 too
    return order, cuts, is_tie


def _candidates(probs: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C,) each, what drawn_thresholds takes: exact thresholds, positive rows, expected thresholds."""
    return best_thresholds(probs, labels), labels.sum(axis=0), expected_thresholds(probs)


def _gain_samples(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, num_resamples: int, seed: int
) -> np.ndarray:
    """(R, C): the gain in F1 of each class on resampled rows. Args: (n, C) bool each."""
    real, gains = labels.astype(np.float32), []
    parts = [((labels & d).astype(np.float32), d.astype(np.float32)) for d in (before, after)]
    for counts in resampled(len(labels), num_resamples, seed):
        support = counts @ real
        scores = [2 * (counts @ hits) / np.maximum(counts @ told + support, 1) for hits, told in parts]
        gains.append(scores[1] - scores[0])
    return np.concatenate(gains)


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
