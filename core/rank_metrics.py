"""Numbers for rankers from saved scores: is the best candidate picked, what is lost otherwise, how good is the order.

Legend: n questions, K places for candidates. numpy in, JSON-safe dictionaries out: None where a value is undefined,
never NaN. rewards are NaN at the places without a candidate; what scores hold there does not matter.

A question whose candidates all have the same reward (or that has one candidate or none) cannot be ranked: it is in no
number but num_skipped. The pick is the first of the highest scores. For MRR, MAP and NDCG candidates of equal scores
stand in random order and the exact expectation is taken, so that a constant scorer gets what chance gets.
Relevant, for MRR and MAP, are the candidates with the question's best reward, where that is above 0: for rewards of
0 and 1 the usual definition. NDCG's gain is the reward itself (one below 0 counts as 0), over log2(1 + rank).
"""

import re

import numpy as np
from scipy.special import log_softmax, logsumexp
from scipy.stats import binomtest, rankdata

from core.metrics import calibration_summary


def ranking_metrics(scores: np.ndarray, rewards: np.ndarray) -> dict:
    """One flat dictionary of metrics, means over the questions that can be ranked.

    Args:    scores: (n, K) float, finite where a candidate is | rewards: (n, K) float, NaN where none is.
    Returns: accuracy: the pick has the question's best reward; accuracy_interval: its 95 % interval, [low, high].
             reward_ratio: reward of the pick / best, over questions with a best above 0; average_reward: of the pick.
             mrr, map, ndcg: over questions with a best above 0. loss: cross-entropy on the best candidates, in nats
             (losses.ranking "ce"). n: questions counted; num_skipped: those that cannot be ranked.
             picks_by_position: K counts; best_by_position: K sums, a question with t best candidates adds 1 / t to
             each; chance_by_position: K sums, a question with k candidates adds 1 / k to each. Each adds up to n.
    Raises:  ValueError when shapes do not fit, a score at a candidate or a reward is not finite.
    """
    scores, rewards, num_skipped = rankable(scores, rewards)
    keep, picks = ~np.isnan(rewards), scores.argmax(axis=1)
    num_places = rewards.shape[1]
    best = np.nanmax(rewards, axis=1, initial=-np.inf)
    is_best = rewards == best[:, None]
    picked = np.take_along_axis(rewards, picks[:, None], axis=1)[:, 0]
    right, gains = picked == best, best > 0
    log_probs = np.where(keep, log_softmax(scores, axis=1), 0.0)
    target = is_best / is_best.sum(axis=1, keepdims=True)
    return {
        "accuracy": _mean(right),
        "accuracy_interval": binomial_interval(int(right.sum()), len(right)),
        "reward_ratio": _mean(picked[gains] / best[gains]),
        "average_reward": _mean(picked),
        **{key: _mean(values[gains]) for key, values in _order_metrics(scores, rewards, is_best).items()},
        "loss": _mean(abs((target * log_probs).sum(axis=1))),  # abs: 0.0 is not to become -0.0
        "n": len(rewards),
        "num_skipped": num_skipped,
        "picks_by_position": np.bincount(picks, minlength=num_places).tolist(),
        "best_by_position": target.sum(axis=0).tolist(),
        "chance_by_position": (keep / keep.sum(axis=1, keepdims=True)).sum(axis=0).tolist(),
    }


def ranking_baselines(rewards: np.ndarray, lengths: np.ndarray) -> dict[str, dict]:
    """What picks without a model are worth, with the keys of ranking_metrics.

    Args:    rewards: as in ranking_metrics | lengths: (n, K) int, of the candidates, in any unit.
    Returns: random: exact expectations of a random order, no sampling (so no accuracy_interval), its loss that of
             equal scores; first: in the order given; longest: by length; oracle: by reward, its loss the least there
             is (log t for t best candidates). first and longest pick without a probability: their loss is None.
    Raises:  ValueError as ranking_metrics.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    random = ranking_metrics(np.zeros(rewards.shape), rewards)
    by_place = np.broadcast_to(-np.arange(rewards.shape[1], dtype=np.float64), rewards.shape)
    table = {
        "random": random | _random_picks(rewards) | {"picks_by_position": random["chance_by_position"]},
        "first": ranking_metrics(by_place, rewards) | {"loss": None},
        "longest": ranking_metrics(lengths, rewards) | {"loss": None},
        "oracle": ranking_metrics(rewards, rewards),
    }
    _, kept, _ = rankable(rewards, rewards)
    num_best = (kept == np.nanmax(kept, axis=1, initial=-np.inf)[:, None]).sum(axis=1)
    table["oracle"] |= {"loss": _mean(np.log(num_best)), "accuracy_interval": None}
    return table


def group_metrics(scores: np.ndarray, rewards: np.ndarray, groups: list[str]) -> dict[str, dict]:
    """{group: {n, accuracy, reward_ratio}}, sorted, numbers in names by value; n as in ranking_metrics.

    Args:    scores, rewards: as in ranking_metrics | groups: n names, such as a program's length.
    Raises:  ValueError as ranking_metrics, or when there is not one group for each question.
    """
    scores, rewards, names = np.asarray(scores), np.asarray(rewards), np.asarray(groups, dtype=object)
    if names.shape != rewards.shape[:1]:
        raise ValueError(f"groups must be {len(rewards)} names, one a question, found {len(groups)}")
    found = {}
    for name in sorted(set(groups), key=_by_value):
        metrics = ranking_metrics(scores[names == name], rewards[names == name])
        found[name] = {key: metrics[key] for key in ("n", "accuracy", "reward_ratio")}
    return found


def pick_calibration(scores: np.ndarray, rewards: np.ndarray) -> dict | None:
    """How far the pick's softmax probability is from how often the pick is best, as calibration_summary of that.

    Args:    as ranking_metrics.
    Returns: the keys of core.metrics.calibration_summary for one yes-or-no question a row, "is the pick a best
             one?"; None when no question can be ranked.
    """
    scores, rewards, _ = rankable(scores, rewards)
    if len(scores) == 0:
        return None
    picks = scores.argmax(axis=1)[:, None]
    others = scores.copy()
    np.put_along_axis(others, picks, -np.inf, axis=1)
    log_odds = np.take_along_axis(scores, picks, axis=1) - logsumexp(others, axis=1, keepdims=True)  # (n, 1)
    right = np.take_along_axis(rewards, picks, axis=1) == np.nanmax(rewards, axis=1, keepdims=True)
    return calibration_summary(log_odds, right.astype(int), multi_label=True)


def binomial_interval(hits: int, total: int, level: float = 0.95) -> list[float] | None:
    """[low, high] of a share, by Wilson's score interval (Wilson 1927); None without a trial."""
    if total == 0:
        return None
    found = binomtest(hits, total).proportion_ci(level, method="wilson")
    return [float(found.low), float(found.high)]


def rankable(scores: np.ndarray, rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The questions that have at least two different rewards.

    Args:    as ranking_metrics.
    Returns: (m, K) float64 scores, -inf where no candidate is; (m, K) float64 rewards; n - m, those left out.
    Raises:  ValueError as ranking_metrics.
    """
    scores, rewards = np.asarray(scores, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if scores.ndim != 2 or scores.shape != rewards.shape or scores.shape[1] == 0:
        raise ValueError(f"scores and rewards must both be (n, K), found {scores.shape} and {rewards.shape}")
    keep = ~np.isnan(rewards)
    for name, values in (("score", scores), ("reward", rewards)):
        broken = np.flatnonzero((keep & ~np.isfinite(values)).any(axis=1))
        if len(broken):
            raise ValueError(
                f"{len(broken)} of {len(scores)} questions have a {name} that is not finite, first question {broken[0]}"
            )
    lowest = np.where(keep, rewards, np.inf).min(axis=1)
    can = lowest < np.where(keep, rewards, -np.inf).max(axis=1)
    return np.where(keep, scores, -np.inf)[can], rewards[can], int((~can).sum())


def _order_metrics(scores: np.ndarray, rewards: np.ndarray, is_best: np.ndarray) -> dict[str, np.ndarray]:
    """(m,) mrr, map and ndcg of each question, exact expectations over the order of equal scores.

    Source: McSherry and Najork 2008, "Computing information retrieval performance measures efficiently in the
            presence of tied scores": average precision and DCG; the reciprocal rank is worked out below.
    """
    num_places = scores.shape[1]
    order = np.argsort(-scores, axis=1, kind="stable")  # places without a candidate are last
    scores, relevant, gains = (
        np.take_along_axis(a, order, axis=1) for a in (scores, is_best, np.maximum(np.nan_to_num(rewards), 0))
    )
    rank = np.arange(1, num_places + 1)  # (K,), and everything below (m, K), by rank
    # For each rank the group of equal scores that it falls in: candidates above the group, and its size.
    above = rankdata(-scores, method="min", axis=1).astype(int) - 1
    size = rankdata(-scores, method="max", axis=1).astype(int) - above
    hits_before = _sums_at(relevant, above)
    hits = _sums_at(relevant, above + size) - hits_before  # relevant ones in the group
    inside = rank - above  # 1..size
    # A relevant one at this rank: the (inside - 1) ranks of its group before it hold hits - 1 of size - 1.
    before = hits_before + (inside - 1) * (hits - 1) / np.maximum(size - 1, 1)
    precision = hits / size * (before + 1) / rank
    # The first relevant one at this rank: none before, then one; the chances multiply along the group.
    left = size - inside + 1
    none_here = np.maximum(1 - hits / left, 0)  # 0 where as many relevant ones as ranks are left
    none_before = np.cumprod(np.hstack([np.ones((len(scores), 1)), none_here[:, :-1]]), axis=1)
    first = none_before * np.minimum(hits / left, 1)
    discount = 1 / np.log2(1 + rank)
    mean_gain = (_sums_at(gains, above + size) - _sums_at(gains, above)) / size
    ideal = (-np.sort(-gains, axis=1) * discount).sum(axis=1)
    return {
        "mrr": (first / rank).sum(axis=1),
        "map": precision.sum(axis=1) / relevant.sum(axis=1),
        "ndcg": (mean_gain * discount).sum(axis=1) / np.where(ideal > 0, ideal, 1),
    }


def _sums_at(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(m, K): for each place the sum of the first ends[., .] of its row's values."""
    sums = np.hstack([np.zeros((len(values), 1)), np.cumsum(values, axis=1)])
    return np.take_along_axis(sums, ends, axis=1)


def _random_picks(rewards: np.ndarray) -> dict:
    """What of ranking_metrics follows from the pick, as expectations over a random pick."""
    _, rewards, _ = rankable(rewards, rewards)
    best, average = np.nanmax(rewards, axis=1, initial=-np.inf), np.nansum(rewards, axis=1)
    num_candidates = (~np.isnan(rewards)).sum(axis=1)
    average, gains = average / num_candidates, best > 0
    return {
        "accuracy": _mean((rewards == best[:, None]).sum(axis=1) / num_candidates),
        "accuracy_interval": None,
        "reward_ratio": _mean(average[gains] / best[gains]),
        "average_reward": _mean(average),
    }


def _mean(values: np.ndarray) -> float | None:
    """The mean; None of nothing."""
    return float(values.mean()) if len(values) else None


def _by_value(name: str) -> list:
    """A sorting key by which "10 steps" comes after "9 steps"."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]
