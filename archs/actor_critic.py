"""A ranker as a policy, with a value beside its scores: what a question is worth before a choice is made.

B questions, K candidate places, M candidates of the cut, D width.
"""

import torch
from torch import nn

from archs.heads import make_head
from archs.ranker import Ranker
from core.rank_batches import RankCut


class ActorCritic(nn.Module):
    """A ranker, and where it is asked for a value head (one hidden layer, tanh) that starts at 0 everywhere.

    The value reads the prefix's last state of a decoder, which has seen no candidate; of an encoder, whose states have
    all seen one, the mean of the K pooled states. It reads them detached: the ranker never moves for the value's sake,
    so the policy's gradient is what the estimator says.
    """

    def __init__(self, ranker: Ranker, has_value: bool, is_causal: bool):
        """is_causal: the ranker is a decoder."""
        super().__init__()
        self.ranker, self.is_causal = ranker, is_causal
        self.value = make_head("mlp", ranker.pooling.width, 1, 0.0) if has_value else None
        if has_value:
            nn.init.zeros_(self.value[-1].weight)
            nn.init.zeros_(self.value[-1].bias)

    @property
    def inner(self) -> nn.Module:
        """The transformers model."""
        return self.ranker.inner

    @property
    def num_layers(self) -> int:
        """Layers of the backbone."""
        return self.ranker.num_layers

    def forward(self, cut: RankCut) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, K) scores, 0 where there is no candidate; (B,) float32 values, 0 without a value head."""
        states = self.ranker.states(cut.tokens)
        found = self.ranker.candidates(states, cut)  # (M, D)
        scores = self.ranker.score(found, cut)
        if self.value is None:
            return scores, scores.new_zeros(len(cut.keep))
        if self.is_causal:
            seen = states.flatten(0, 1).index_select(0, cut.front)  # (B, D)
        else:
            num_questions, num_places = cut.keep.shape
            sums = found.new_zeros(num_questions, found.shape[1]).index_add(0, cut.slots // num_places, found)
            seen = sums / cut.keep.sum(dim=1, keepdim=True)
        with torch.autocast(seen.device.type, enabled=False):  # as the scores, in the head's own float32
            return scores, self.value(seen.detach().to(self.value[-1].weight.dtype)).squeeze(-1)
