"""Several classifiers as one: how their scores are combined, how that is chosen, what each member is worth.

Legend: M members, n rows, C classes, R resamples. Logits are (M, n, C) floats, their columns in one order. A
combination is an array, so that it can be stored and used again: (M,) weights of a mean (core/mixing.py), or the
(C, F + 1) table of a meta-learner (core/stacking.py).

What is chosen and scored on the same rows flatters itself. fair_logits gives each row the combination that the other
folds choose, as core.thresholds.cross_fitted does for thresholds.
"""

from dataclasses import dataclass, replace

import numpy as np

from core.calibration import row_losses
from core.metrics import probabilities
from core.mixing import equal_weights, f1_weights, greedy_weights, mean_logits, one_hot
from core.stacking import choose_strength, fit_stacking, own_weights, stacked_logits
from core.statistics import RESAMPLES, bootstrap_scores, score_decisions
from core.thresholds import cross_fitted, deal_folds

METHODS = ("mean", "weighted", "greedy", "stacking")
METRICS = ("macro_f1", "accuracy", "loss")
NUM_FOLDS = 5


@dataclass(frozen=True)
class Members:
    """What a combination is chosen on."""

    logits: np.ndarray  # (M, n, C)
    truth: np.ndarray  # (n, C) bool
    multi_label: bool
    metric: str = "macro_f1"  # of METRICS; with several labels a row decided at tuned thresholds
    seed: int = 0
    oof: tuple[np.ndarray, np.ndarray] | None = None  # for stacking: (M, N, C), (N, C) of out-of-fold models
    strength: float | None = None  # for stacking; None: chosen anew in every fit

    def rows(self, kept: np.ndarray) -> "Members":
        """The same members on some of the rows."""
        return replace(self, logits=self.logits[:, kept], truth=self.truth[kept])

    def without(self, member: int) -> "Members":
        """All members but one, on the same rows."""
        oof = self.oof and (np.delete(self.oof[0], member, axis=0), self.oof[1])
        return replace(self, logits=np.delete(self.logits, member, axis=0), oof=oof)


def combine(logits: np.ndarray, combination: np.ndarray, multi_label: bool) -> np.ndarray:
    """(n, C) float64: the log of the combined probabilities, with several labels a row their log-odds.

    core.metrics.probabilities gives the combined probabilities back.
    """
    how = mean_logits if combination.ndim == 1 else stacked_logits
    return how(logits, combination, multi_label)


def fit(method: str, members: Members) -> np.ndarray:
    """The combination that a method chooses on all these rows (stacking: on members.oof where there is one).

    Args: method: of METHODS; weighted: see f1_weights.
    """
    if method == "mean":
        return equal_weights(len(members.logits))
    if method == "stacking":
        return fit_stacking(*stacking_rows(members), members.multi_label, stacking_strength(members))
    probs = np.stack([probabilities(own, members.multi_label) for own in members.logits])
    if method == "weighted":
        return f1_weights(probs, members.truth, members.multi_label)
    return greedy_weights(probs, members.truth, members.multi_label, members.metric, seed=members.seed)


def stacking_rows(members: Members) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels that a meta-learner is fitted on."""
    return members.oof or (members.logits, members.truth)


def stacking_strength(members: Members) -> float:
    """The given strength, or the one chosen on the rows that a meta-learner is fitted on."""
    return members.strength or choose_strength(*stacking_rows(members), members.multi_label, members.seed)


def fair_logits(method: str, members: Members) -> np.ndarray:
    """(n, C) scores of the ensemble in which no row helped to choose its own combination.

    Each fold is combined as the other folds choose. A mean chooses nothing, and a meta-learner of out-of-fold rows has
    seen none of these: both combine all rows at once.
    """
    if method == "mean" or (method == "stacking" and members.oof):
        return combine(members.logits, fit(method, members), members.multi_label)
    out = np.empty(members.truth.shape)
    fold = deal_folds(len(out), NUM_FOLDS, members.seed)
    for k in np.unique(fold):
        inside = fold == k
        combination = fit(method, members.rows(~inside))
        out[inside] = combine(members.logits[:, inside], combination, members.multi_label)
    return out


def decide(
    logits: np.ndarray, truth: np.ndarray, multi_label: bool, thresholds: np.ndarray | None = None
) -> np.ndarray:
    """(n, C) bool: the best class; with several labels p >= thresholds, cross-fitted on these rows where None."""
    if not multi_label:
        return one_hot(logits)
    probs = probabilities(logits, True)
    return cross_fitted(probs, truth) if thresholds is None else probs >= thresholds


def score(logits: np.ndarray, members: Members, thresholds: np.ndarray | None = None) -> float:
    """members.metric of (n, C) scores of their rows."""
    if members.metric == "loss":
        return float(row_losses(logits, members.truth, members.multi_label).mean())
    chosen = decide(logits, members.truth, members.multi_label, thresholds)
    return float(score_decisions(members.truth, chosen[None])[members.metric][0])


def resample(logits: np.ndarray, members: Members, thresholds: np.ndarray | None = None) -> np.ndarray:
    """(R,) the metric on resampled rows; the same rows in every call for the same n, so that results are paired."""
    if members.metric == "loss":
        losses = row_losses(logits, members.truth, members.multi_label)
        num_rows, rng = len(losses), np.random.default_rng(0)
        return np.array([losses[rng.integers(num_rows, size=num_rows)].mean() for _ in range(RESAMPLES)])
    chosen = decide(logits, members.truth, members.multi_label, thresholds)
    return bootstrap_scores(members.truth, chosen[None])[members.metric]


def choose_method(fair: dict[str, np.ndarray], members: Members) -> tuple[str, dict[str, dict]]:
    """The method with the best fair metric; the mean, unless another gains more than its gain's standard error.

    Args:    fair: fair_logits by method, the mean's among them.
    Returns: the method, and for each {"value", "gain", "gain_se"}: its metric, by how much it beats the mean's (a loss:
             is lower), and the standard error of that, by a paired bootstrap over rows. The best of several values is
             still a little flattered; the standard error asked for is there against that.
    """
    sign, told = (-1 if members.metric == "loss" else 1), {}
    plain, plain_samples = score(fair["mean"], members), resample(fair["mean"], members)
    for method, logits in fair.items():
        value = score(logits, members)
        spread = 0.0 if method == "mean" else float((resample(logits, members) - plain_samples).std())
        told[method] = {"value": value, "gain": sign * (value - plain), "gain_se": spread}
    real = [method for method in told if told[method]["gain"] > told[method]["gain_se"]]
    return max(real, key=lambda method: told[method]["gain"], default="mean"), told


def leave_one_out(method: str, members: Members) -> list[float]:
    """M numbers: the fair metric of the ensemble without each member, its combination chosen anew from the others."""
    alone = [members.without(m) for m in range(len(members.logits))]
    return [score(fair_logits(method, others), others) for others in alone]


def disagreement(chosen: np.ndarray) -> np.ndarray:
    """(M, M) shares of the rows that two members decide differently. Args: chosen: (M, n, C) bool."""
    return np.stack([(chosen != own).any(axis=2).mean(axis=1) for own in chosen])


def member_weights(combination: np.ndarray, num_members: int, multi_label: bool) -> np.ndarray:
    """(M,): the weights of a mean; of a meta-learner see own_weights."""
    if combination.ndim == 1:
        return combination
    return own_weights(combination, num_members, multi_label)
