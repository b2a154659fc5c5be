"""Means of several classifiers' probabilities: the mean itself, weights by F1, weights by greedy selection.

Legend: M members, n rows, C classes. Logits are (M, n, C) floats of any width, their columns in one order; weights
are (M,) float64 that sum to 1.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import log_expit, log_softmax, logsumexp

from core.statistics import score_decisions

ROUNDS = (
    10  # members added after the sorted start (assumption: for few members weights in tenths are fine enough)
)
BAGS = 5  # climbs, each on rows drawn with replacement, whose weights are averaged (assumption)
CUTS = 200  # thresholds tried for a class: exact ones take 50 times as long (measured, n = 5426, C = 28, 2026-11-20)


def equal_weights(num_members: int) -> np.ndarray:
    """(M,) weights of the plain mean."""
    return np.full(num_members, 1 / num_members)


def mean_logits(logits: np.ndarray, weights: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, C) float64: the log of the weighted mean of the members' probabilities, with several labels its log-odds.

    core.metrics.probabilities gives the mean back. All in logs: nothing rounds to 0 or 1, and finite stays finite.
    """
    kept = weights > 0
    shares, logits = np.log(weights[kept])[:, None, None], np.asarray(logits, np.float64)[kept]
    if not multi_label:
        return logsumexp(shares + log_softmax(logits, axis=2), axis=0)
    return logsumexp(shares + log_expit(logits), axis=0) - logsumexp(shares + log_expit(-logits), axis=0)


def f1_weights(probs: np.ndarray, truth: np.ndarray, multi_label: bool) -> np.ndarray:
    """(M,): w_m = F1_m / sum of all F1, with the macro F1 of goodness; equal ones where every F1 is 0.

    Args: probs: (M, n, C) | truth: (n, C) bool.
    """
    f1 = np.array([goodness(own, truth, multi_label, "macro_f1") for own in probs])
    return f1 / f1.sum() if f1.sum() else equal_weights(len(probs))


def goodness(probs: np.ndarray, truth: np.ndarray, multi_label: bool, metric: str) -> float:
    """How well (n, C) probabilities do on these very rows, higher is better: what weights are chosen by.

    Args: metric: macro_f1, accuracy, or loss, which counts negatively, in nats. With several labels a row decisions
          are at each class's best cut among multiples of 1 / CUTS, which flatters all members alike.
    """
    if metric == "loss":
        likelihood = np.where(truth, probs, 1 - probs) if multi_label else probs[truth]
        return float(np.log(np.maximum(likelihood, 1e-12)).mean())
    if multi_label:
        f1, cuts = best_cuts(probs, truth)
        if metric == "macro_f1":
            return float(f1.mean())
        chosen = probs >= cuts
    else:
        chosen = one_hot(probs)
    return float(score_decisions(truth, chosen[None])[metric][0])


def one_hot(scores: np.ndarray) -> np.ndarray:
    """(n, C) bool: the class with the highest score."""
    return scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])


def best_cuts(probs: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each class the best F1 over the cuts p >= k / CUTS, and the highest cut that has it; (C,) both.

    Cost: O(n C): counts by cell, no sorting.
    """
    num_classes = truth.shape[1]
    cells = (probs * CUTS).astype(np.int64) + (CUTS + 1) * np.arange(num_classes)
    told, hits = (
        np.bincount(found.ravel(), minlength=num_classes * (CUTS + 1))
        .reshape(num_classes, -1)[:, ::-1]
        .cumsum(axis=1)
        for found in (cells, cells[truth])
    )  # (C, CUTS + 1), from the highest cut down
    f1 = 2 * hits / np.maximum(told + hits[:, -1:], 1)
    best = f1.argmax(axis=1)
    return f1[np.arange(num_classes), best], (CUTS - best) / CUTS


def greedy_weights(
    probs: np.ndarray,
    truth: np.ndarray,
    multi_label: bool,
    metric: str,
    num_bags: int = BAGS,
    seed: int = 0,
) -> np.ndarray:
    """Weights by greedy selection with replacement: how often each member was added.

    Args:    probs: (M, n, C) | truth: (n, C) bool | metric: see goodness | num_bags: climbs on rows drawn with
             replacement, whose weights are averaged; 0: one climb, on the rows themselves.
    Source:  Caruana, Niculescu-Mizil, Crew, Ksikes 2004, "Ensemble selection from libraries of models", ICML,
             sections 2.1 to 2.3, sorted initialisation included. Their bags are of models, out of thousands; ours are
             of rows: a bag that lacks the best of five members says nothing.
    """
    rng, num_rows = np.random.default_rng(seed), len(truth)
    bags = [rng.integers(num_rows, size=num_rows) for _ in range(num_bags)] or [np.arange(num_rows)]
    found = [
        climb(probs[:, bag], lambda p, t=truth[bag]: goodness(p, t, multi_label, metric)) for bag in bags
    ]
    return np.mean(found, axis=0)


def climb(probs: np.ndarray, score: Callable[[np.ndarray], float]) -> np.ndarray:
    """(M,) shares in the best mean on the way: the k best members, then ROUNDS times the one that helps most."""
    order = np.argsort([-score(own) for own in probs], kind="stable")
    prefixes = np.cumsum(probs[order], axis=0) / np.arange(1, len(probs) + 1)[:, None, None]
    reached = [score(mean) for mean in prefixes]
    size = int(np.argmax(reached)) + 1  # of equal ones the smaller
    counts = np.bincount(order[:size], minlength=len(probs))
    best, best_counts, total = reached[size - 1], counts.copy(), prefixes[size - 1] * size
    for now in range(size + 1, size + 1 + ROUNDS):
        found = [score((total + probs[m]) / now) for m in order]
        added = order[int(np.argmax(found))]  # of equal ones the member that is better alone
        counts[added] += 1
        total = total + probs[added]
        if max(found) > best:
            best, best_counts = max(found), counts.copy()
    return best_counts / best_counts.sum()
