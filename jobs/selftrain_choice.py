"""Which round of jobs.selftrain is kept, and when the rounds end.

The audit rows decide: they have chosen nothing before. Being few they are noisy, so that a difference that is not
above the margin counts as chance: it ends no round, and between rounds that differ by chance alone the validation
score decides, which has chosen each run's best step already. n audit rows, C classes, M models, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from core.statistics import bootstrap_scores, score_decisions

NORMAL_95 = 1.96  # standard errors to either side


@dataclass(frozen=True)
class Judged:
    """A round's models on the audit rows."""

    macro_f1: float  # the mean over the models, of the labels that an audit row has
    validation: float  # the score on validation rows, the mean over the models
    samples: np.ndarray  # (R,) macro_f1 on resampled rows, the same rows in each round


def judge(truth: np.ndarray, chosen: np.ndarray, validation: float, num_resamples: int, seed: int) -> Judged:
    """A round's scores. Args: truth: (n, C) bool | chosen: (M, n, C) bool, the decisions of each model."""
    seen = truth.any(axis=0)
    truth, chosen = truth[:, seen], chosen[..., seen]
    samples = bootstrap_scores(truth, chosen, num_resamples, seed)["macro_f1"]
    return Judged(float(score_decisions(truth, chosen)["macro_f1"].mean()), validation, samples)


def behind(one: Judged, other: Judged, margin: float | str) -> bool:
    """Whether a round lies below another by more than the margin.

    Args: margin: of macro F1; auto: half of the difference's 95 % interval, by a paired bootstrap over the rows, so
          that only a difference that the rows show counts. One standard error would call a single wrong row a fall.
    """
    if margin == "auto":
        margin = NORMAL_95 * float((other.samples - one.samples).std())
    return other.macro_f1 - one.macro_f1 > margin


def has_fallen(rounds: list[Judged], margin: float | str, patience: int) -> bool:
    """Whether each of the last `patience` rounds lies behind the best of those before it."""
    fallen = [
        behind(one, max(rounds[:k], key=lambda own: own.macro_f1), margin)
        for k, one in enumerate(rounds)
        if k
    ]
    return len(fallen) >= patience and all(fallen[-patience:])


def best_round(rounds: list[Judged], margin: float | str, kept: list[bool] | None = None) -> int:
    """The place of the round to keep: of those not behind the highest macro F1 the best on validation, then the first.

    kept: which rounds still have their weights; None: all. With none left of those, the highest macro F1 of the others.
    """
    kept = kept or [True] * len(rounds)
    top = max(rounds, key=lambda own: own.macro_f1)
    level = [k for k, one in enumerate(rounds) if kept[k] and not behind(one, top, margin)]
    if not level:
        return max((k for k in range(len(rounds)) if kept[k]), key=lambda k: rounds[k].macro_f1)
    return max(level, key=lambda k: rounds[k].validation)
