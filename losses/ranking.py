"""Ranking losses: sums over questions, never means; the loop divides by the questions of the whole logical batch.

Legend: B questions, K places for candidates, s scores, r rewards. What stands at a place that is not kept, NaN too,
changes no bit of the loss and gets gradient 0; a question without any candidate adds 0. Scores of any float type are
computed in float32, to a float32 scalar (float64 for float64). The candidates' order, in ties too, does not matter.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from losses.classification import at_least_float32


def log_softmax_kept(scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(B, K) log softmax over the kept candidates of (B, K) scores; 0 at the other places, so that 0 times it is 0."""
    lowest = torch.finfo(scores.dtype).min  # not -inf: a question without candidates would be NaN
    return F.log_softmax(scores.masked_fill(~keep, lowest), dim=-1).masked_fill(~keep, 0.0)


def best_cross_entropy(scores: torch.Tensor, rewards: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Sum of cross-entropies on the best candidate, in nats: -(1/|T|) sum_{i in T} log softmax(s)_i, T the best.

    Several candidates may share the highest reward: the target is uniform over them. Where all rewards are equal it
    is uniform over all candidates, which pulls the scores together: leave such questions out before.

    Args:    scores: (B, K) float | rewards: (B, K) float32 | keep: (B, K) bool, True where a candidate is.
    Source:  Cao et al. 2007 (ListNet), top one, with a target of 0 and 1; for one best torch's cross_entropy.
    """
    rewards = rewards.masked_fill(~keep, -torch.inf)
    is_best = keep & (rewards == rewards.amax(dim=-1, keepdim=True))
    share = is_best.to(scores.dtype) / is_best.sum(dim=-1, keepdim=True).clamp_min(1)
    return -(share * log_softmax_kept(scores, keep)).sum()


def soft_cross_entropy(
    scores: torch.Tensor, rewards: torch.Tensor, keep: torch.Tensor, tau: float
) -> torch.Tensor:
    """Sum of cross-entropies against softmax(r / tau) over the kept candidates, in nats.

    Args:    as best_cross_entropy; tau > 0: near 0 the target is the best alone, large it is uniform.
    Source:  Cao et al. 2007 (ListNet), top one; tau is ours.
    """
    rewards = rewards.masked_fill(~keep, -torch.inf).to(scores.dtype)
    best = rewards.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    target = (
        log_softmax_kept((rewards - best) / tau, keep).exp() * keep
    )  # less the best: large rewards stay finite
    return -(target * log_softmax_kept(scores, keep)).sum()


def pairwise(scores: torch.Tensor, rewards: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Sum over questions of the mean of -log sigmoid(s_i - s_j) over the pairs with r_i > r_j; 0 without a pair.

    Args:    as best_cross_entropy.
    Cost:    O(B * K * K) memory.
    Source:  Bradley-Terry; Ouyang et al. 2022 (InstructGPT), eq. 1. They divide by all K (K - 1) / 2 pairs of an
             order without ties; we by the pairs that the rewards order.
    """
    scores = scores.masked_fill(~keep, 0.0)
    is_pair = (rewards[:, :, None] > rewards[:, None, :]) & keep[:, :, None] & keep[:, None, :]  # (B, K, K)
    loss = -F.logsigmoid(scores[:, :, None] - scores[:, None, :]).masked_fill(~is_pair, 0.0)
    return (loss.sum(dim=(1, 2)) / is_pair.sum(dim=(1, 2)).clamp_min(1)).sum()


def listmle(scores: torch.Tensor, rewards: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Minus the sum of the log-likelihoods of the order by reward: sum_i [log sum_{j: r_j <= r_i} exp(s_j) - s_i].

    Without ties this is Plackett-Luce's: the best is drawn first, from all, the next from those left, and so on.
    Tied candidates share one denominator, that of their group and all below it, so their order does not matter. For
    a group of m it is at least log m! too high, and it pulls the scores of a group together, the lowest one's too.

    Args:    as best_cross_entropy.
    Cost:    O(B * K * K) memory.
    Source:  Xia et al. 2008 (ListMLE), likelihood loss; for ties Breslow 1974, as in Cox regression.
    """
    scores = scores.masked_fill(~keep, 0.0)
    lowest = torch.finfo(scores.dtype).min  # not -inf: a place that is not kept may have nothing left
    is_left = (rewards[:, None, :] <= rewards[:, :, None]) & keep[:, None, :]  # (B, K, K): j when i is drawn
    ahead = (scores[:, None, :] - scores[:, :, None]).masked_fill(
        ~is_left, lowest
    )  # s_j - s_i: exact if large
    return ahead.logsumexp(dim=-1).masked_fill(~keep, 0.0).sum()


def expected_reward(scores: torch.Tensor, rewards: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Minus the sum of the expected rewards of a pick drawn from softmax(s): -sum_i softmax(s)_i r_i.

    Args:    as best_cross_entropy.
    Source:  the policy gradient's objective (Williams 1992), summed over the K choices instead of sampled.
    """
    rewards = rewards.masked_fill(~keep, 0.0).to(scores.dtype)
    return -(log_softmax_kept(scores, keep).exp() * rewards).sum()


LOSSES = {
    "ce": best_cross_entropy,
    "soft_ce": soft_cross_entropy,
    "pairwise": pairwise,
    "listmle": listmle,
    "expected_reward": expected_reward,
}
RANKING_LOSSES = tuple(LOSSES)


def make_ranking_loss(
    name: str, tau: float = 0.1
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss as a function of (scores, rewards, keep): (B, K) each.

    Args:   name: one of RANKING_LOSSES | tau: of soft_ce's target, in units of reward, above 0.
    Raises: ValueError for another name, or a tau that is not above 0.
    """
    if name not in LOSSES:
        raise ValueError(f"ranking loss {name!r}: expected one of {', '.join(RANKING_LOSSES)}")
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be a number above 0, found {tau}")
    loss, extra = LOSSES[name], {"tau": tau} if name == "soft_ce" else {}

    def loss_fn(scores: torch.Tensor, rewards: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return loss(at_least_float32(scores), rewards, keep, **extra)

    return loss_fn
