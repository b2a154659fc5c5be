"""A ranker: one score for each of a question's K candidates, from a backbone and a small head.

A decoder reads the question once and the candidates behind it, each scored at its last token; an encoder, which sees
both ways, reads the question again with each candidate, packed, and scores the pooled states.

B questions, K candidate places, M candidates of the cut, N packed tokens, D width.
"""

import torch

from archs.dropout import MASKS
from archs.encoder import PooledHead
from core.batches import Cut
from core.rank_batches import RankCut


class Ranker(PooledHead):
    """A backbone, a pooling, and a head of one score; called with a Cut it scores its rows, as its probes do."""

    head_file = "score_head.safetensors"

    def forward(self, cut: RankCut | Cut) -> torch.Tensor:
        """(B, K) scores, 0 where there is no candidate; of a Cut, (rows, 1)."""
        if isinstance(cut, Cut):
            return super().forward(cut)
        return self.score(self.candidates(self.states(cut.tokens), cut), cut)

    def candidates(self, states: torch.Tensor, cut: RankCut) -> torch.Tensor:
        """The backbone's last states to (M, D), one vector a candidate."""
        if cut.last is None:
            return self.pooling(states, cut.tokens)
        return states[0].index_select(0, cut.last)  # of (N, D)

    def score(self, found: torch.Tensor, cut: RankCut) -> torch.Tensor:
        """(M, D) to (B, K) scores, 0 where there is no candidate."""
        if self.training and MASKS.rows is not None:
            MASKS.begin_rows(cut.questions)
        # in the head's own float32: in bfloat16 a score near 1 comes in steps of 1/128, and candidates tie
        with torch.autocast(found.device.type, enabled=False):
            scores = self.head(found.to(next(self.head.parameters()).dtype)).squeeze(-1)  # (M,)
        return scores.new_zeros(cut.keep.numel()).index_copy(0, cut.slots, scores).view(cut.keep.shape)
