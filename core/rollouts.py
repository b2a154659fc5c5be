"""Choices that a policy made on questions, the rewards that they brought, and who saw how many.

Legend: R questions of a rollout, K places for candidates, G choices a question.
"""

from typing import NamedTuple

import numpy as np
import torch

from core.rank_batches import RankCut
from core.rank_cache import RankRows


class Bandit:
    """Stands for people who answer "how good was this one?": it knows all rewards, tells those of choices that were
    made, and counts them. What a learner was not told it cannot use, so the count is what its feedback would cost."""

    def __init__(self, rows: RankRows):
        self._rewards = torch.from_numpy(rows.table(rows.rewards))  # (n, K), NaN where there is no candidate
        self.told = 0  # rewards, one asked for twice counts twice

    def tell(self, questions: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
        """(R, G) float32 rewards. questions: (R,) int64 numbers in their file | choices: (R, G) int64 places."""
        self.told += choices.numel()
        return self._rewards[questions[:, None], choices]

    def tell_all(self, questions: torch.Tensor) -> torch.Tensor:
        """(R, K) float32 rewards of all candidates, 0 where there is none."""
        found = self._rewards[questions]
        self.told += int((~found.isnan()).sum())
        return found.nan_to_num(0.0)

    def score(self, questions: torch.Tensor, choices: torch.Tensor, weights: torch.Tensor) -> dict:
        """How good the choices of a rollout were, for the log alone: nothing is counted, nothing learnt from it.

        Args:    weights: (R, G), sum 1 a question.
        Returns: "reward", its mean | "reward_ratio" to the best there was, over questions with a reward above 0 |
                 "accuracy", the share of the best | "picked", (K,) the share of each place.
        """
        table = self._rewards[questions]
        best = table.nan_to_num(-torch.inf).amax(dim=1)
        found = table[torch.arange(len(table))[:, None], choices].nan_to_num(0.0)
        reward, can = (weights * found).sum(dim=1), best > 0
        share = torch.zeros(table.shape).scatter_add_(1, choices, weights)
        is_best = (weights * (found == best[:, None])).sum(dim=1)
        return {
            "reward": float(reward.mean()),
            "reward_ratio": float((reward[can] / best[can]).mean()) if can.any() else 0.0,
            "accuracy": float(is_best.mean()),
            "picked": [float(value) for value in share.mean(dim=0)],
        }


def draw_choices(log_probs: torch.Tensor, keep: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """(R, count) int64 places, drawn with replacement from (R, K) policies: on the host, so alike on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(log_probs.exp() * keep, count, replacement=True, generator=generator)


class Rollout(NamedTuple):
    """What an update learns from; first dimension R, or B of a cut. Float32 but for the choices."""

    choices: torch.Tensor  # (R, G) int64 places
    weights: torch.Tensor  # (R, G), sum 1 a question
    old_log_probs: torch.Tensor  # (R, G) of the choices, under the policy that made them
    rewards: torch.Tensor  # (R, G)
    advantages: torch.Tensor  # (R, G)
    old_values: torch.Tensor  # (R,)
    policy: torch.Tensor  # (R, K) log-probabilities of all places under the policy that made the choices
    reference: torch.Tensor  # (R, K) of the starting policy

    def to(self, device: torch.device) -> "Rollout":
        """Itself on the device. Cost: H2D."""
        return Rollout(*(part.to(device, non_blocking=True) for part in self))

    def of(self, index: torch.Tensor) -> "Rollout":
        """The part of some questions. index: (B,) int64 into R."""
        return Rollout(*(part.index_select(0, index) for part in self))


def nothing_chosen(cut: RankCut, num_choices: int) -> Rollout:
    """A rollout of a cut's shape and of no meaning, for probes. num_choices: G; 0: all K."""
    num_questions, num_places = cut.keep.shape
    whole = torch.zeros(cut.keep.shape, device=cut.keep.device)
    part = whole[:, :1].expand(-1, num_choices or num_places)
    return Rollout(part.long(), part, part, part, part, whole[:, 0], whole, whole)


def explained_variance(values: torch.Tensor, rewards: torch.Tensor) -> float | None:
    """1 - Var(r - V) / Var(r) over all choices; None where the rewards do not vary. values: (R,) | rewards: (R, G)."""
    if rewards.min() == rewards.max():
        return None
    return float(1 - (rewards - values[:, None]).var() / rewards.var())


def minibatches(num_questions: int, size: int, seed: int) -> list[np.ndarray]:
    """A rollout's questions (0..R-1) in random order, cut into logical batches; the last can be shorter."""
    order = np.random.default_rng(seed).permutation(num_questions)
    return [order[first : first + size] for first in range(0, num_questions, size)]
