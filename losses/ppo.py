"""Policy gradients over K enumerable choices: the policy's numbers, four advantages, the losses of PPO.

A policy is softmax(scores / temperature) over a question's candidates. A rollout holds G choices a question, with
weights that sum to 1: drawn ones weigh 1 / G; all K, weighed by the policy that would draw them, are the expectation
itself. So one loss serves every estimator. Sums over questions, never means; the loop divides by the questions of the
whole logical batch.

Legend: B questions, K places for candidates, G choices, a one of them, r its reward, p the policy, p_old the policy
that made the rollout, V the value of a question. What stands at a place that is not kept changes no bit.
"""

import torch
from torch.nn import functional as F

from losses.classification import at_least_float32
from losses.ranking import log_softmax_kept

ESTIMATORS = ("ppo", "rloo", "grpo", "exact")
MOST_LOG_RATIO = 20.0  # far beyond any clip
GRPO_EPSILON = (
    1e-4  # added to a group's standard deviation: choices of one reward have advantage 0, not 0 / 0
)


def policy_log_probs(scores: torch.Tensor, keep: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """(B, K) float32 (float64 of float64) log p; 0 at places without a candidate.

    Args: scores: (B, K) float | keep: (B, K) bool, True where a candidate is | temperature: > 0; above 1 the policy
          tries more.
    """
    return log_softmax_kept(at_least_float32(scores) / temperature, keep)


def entropy(log_probs: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(B,) exact entropy of each policy, in nats: -sum_a p(a) log p(a). log_probs: as policy_log_probs gives them."""
    return -(log_probs.exp() * log_probs).masked_fill(~keep, 0.0).sum(dim=-1)


def divergence(log_probs: torch.Tensor, others: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(B,) exact KL(p || q) in nats: sum_a p(a) (log p(a) - log q(a)). log_probs, others: (B, K) log p and log q."""
    return (log_probs.exp() * (log_probs - others)).masked_fill(~keep, 0.0).sum(dim=-1)


def choice_advantages(
    estimator: str, rewards: torch.Tensor, weights: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """(B, G) advantages of the choices of a rollout.

    ppo    r - V(question), less the mean of   Schulman et al. 2017 with an episode of one step: the return is r. The
           the other questions' own            mean carries the baseline while V is new; it leaves the own question
                                               out, whose choice it would hang on, so it is unbiased
    rloo   r - mean of the others' r           Kool et al. 2019; Ahmadian et al. 2024, eq. 7; unbiased, G >= 2
    grpo   (r - mean r) / (std r + 1e-4)       Shao et al. 2024, section 4.1.2; std over the G. Biased: by the own r in
                                               the mean, and it weighs questions of unlike spread alike
    exact  r - sum_a p_old(a) r(a)             all K choices, weighed by p_old: the expectation, without any sampling

    Args:   rewards: (B, G) of the choices | weights: (B, G), sum 1 | values: (B,) V, read by ppo alone.
    Raises: ValueError for another estimator, or rloo or grpo with one choice.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r}: expected one of {', '.join(ESTIMATORS)}")
    if estimator == "ppo":
        left = rewards - values[:, None]
        return left - (left.mean() - left.mean(dim=1, keepdim=True) / len(left)) * len(left) / max(
            1, len(left) - 1
        )
    if estimator == "exact":
        return rewards - (weights * rewards).sum(dim=-1, keepdim=True)
    count = rewards.shape[1]
    if count < 2:
        raise ValueError(
            f"{estimator} compares the choices of a question: expected two or more, found {count}"
        )
    mean = rewards.mean(dim=-1, keepdim=True)
    if estimator == "rloo":
        return (rewards - mean) * count / (count - 1)
    return (rewards - mean) / (rewards.std(dim=-1, keepdim=True) + GRPO_EPSILON)


def clipped_surrogate(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    clip: float,
) -> torch.Tensor:
    """Minus the sum of w min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A), ratio = p / p_old. A scalar.

    At ratio 1 its gradient is REINFORCE's with a baseline: -sum w A grad log p.

    Args:   log_probs, old_log_probs, advantages, weights: (B, G) of the choices; weights sum to 1 a question, but for
            independent labels, each of which is a choice of weight 1 |
            clip: above 0; inf never clips.
    Source: Schulman et al. 2017 (PPO), eq. 7.
    """
    # a choice that p_old all but excludes weighs nothing, and nothing times infinity would be NaN
    ratio = (log_probs - old_log_probs).clamp_max(MOST_LOG_RATIO).exp()
    free, held = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -(weights * torch.minimum(free, held)).sum()


def clipped_share(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, weights: torch.Tensor, clip: float
) -> torch.Tensor:
    """The sum over questions of the share of choices whose ratio lies outside of 1 +- clip. Arguments as above."""
    return (weights * (((log_probs - old_log_probs).exp() - 1).abs() > clip)).sum()


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    rewards: torch.Tensor,
    weights: torch.Tensor,
    clip: float,
) -> torch.Tensor:
    """Half the sum of w max((V - r)^2, (V_clipped - r)^2), V_clipped within clip of the V of the rollout. A scalar.

    Args:   values, old_values: (B,) | rewards, weights: (B, G) | clip: in units of reward; inf never clips.
    Source: OpenAI baselines, ppo2; with the half of Schulman et al.'s squared error.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    missed = torch.maximum((values[:, None] - rewards).square(), (near[:, None] - rewards).square())
    return 0.5 * (weights * missed).sum()


def adapted(coefficient: float, divergence: float, target: float) -> float:
    """The KL coefficient of the next rollout: doubled above 1.5 times the target, halved below its 1.5th part, and held
    between 1e-4 and 100, so that a quiet start does not take it away for good.

    Source: Schulman et al. 2017 (PPO), section 4.
    """
    if divergence > 1.5 * target:
        return min(100.0, coefficient * 2)
    return max(1e-4, coefficient / 2) if divergence < target / 1.5 else coefficient


def label_log_probs(scores: torch.Tensor, actions: torch.Tensor, several: bool) -> torch.Tensor:
    """Log-probabilities of labels that were given, under a classifier of these scores, in float32 at least.

    One label a row is one choice of C: (B, 1). With several labels a row each label is a choice of its own, given or
    not, independent of the others: (B, C).

    Args: scores: (B, C) float | actions: (B,) int64, or with several (B, C) of 0 and 1.
    """
    scores = at_least_float32(scores)
    if several:
        return F.logsigmoid(torch.where(actions > 0, scores, -scores))
    return scores.log_softmax(dim=-1).gather(1, actions[:, None])


def label_divergence(scores: torch.Tensor, others: torch.Tensor, several: bool) -> torch.Tensor:
    """(B,) exact KL(p || q) in nats between the label distributions of two classifiers; with several labels a row the
    sum of the C labels' own. scores, others: (B, C) of p and of q."""
    scores, others = at_least_float32(scores), at_least_float32(others)
    if not several:
        log_p = scores.log_softmax(dim=-1)
        return (log_p.exp() * (log_p - others.log_softmax(dim=-1))).sum(dim=-1)
    parts = (
        s.sigmoid() * (F.logsigmoid(s) - F.logsigmoid(o)) for s, o in ((scores, others), (-scores, -others))
    )
    return sum(parts).sum(dim=-1)


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """(n,) advantages of one reward a row: less the mean of the others' rewards; 0 of a single row."""
    if len(rewards) < 2:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)


def known_cross_entropy(
    scores: torch.Tensor, truth: torch.Tensor, known: torch.Tensor, several: bool
) -> torch.Tensor:
    """The sum of cross-entropies on true labels, in nats, over the rows whose labels are known.

    Args: scores: (B, C) | truth: (B,) int64, or with several labels a row (B, C) float32 of 0 and 1; anything where it
          is not known | known: (B,) bool.
    """
    scores = at_least_float32(scores)
    if several:
        target = truth.to(scores.dtype).masked_fill(~known[:, None], 0.0)
        loss = F.binary_cross_entropy_with_logits(scores, target, reduction="none").sum(dim=-1)
    else:
        loss = F.cross_entropy(scores, truth.masked_fill(~known, 0), reduction="none")
    return loss.masked_fill(~known, 0.0).sum()
