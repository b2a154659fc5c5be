"""Cuts of questions with their candidates: a prefix and its branches, packed rows, or padded ones.

B questions, K candidate places, M candidates of the cut, N packed tokens, T padded tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from core.batches import Cut, Feed, make_cut, packed_cut, to_device
from core.branches import Trees
from core.profile import region
from core.rank_cache import RankRows

LAYOUTS = ("shared", "packed", "padded")


class RankCut(NamedTuple):
    """One micro-batch of B questions."""

    tokens: Cut  # B rows of a prefix and its branches (shared), or M rows of a prefix and one candidate
    last: torch.Tensor | None  # (M,) int64: shared, each candidate's last token among the N
    front: (
        torch.Tensor
    )  # (B,) int64 into the tokens, padding too: the last of each prefix, where it first stands
    questions: torch.Tensor  # (M,) int64: the number of each candidate's question in its file
    slots: torch.Tensor  # (M,) int64 into B x K
    keep: torch.Tensor  # (B, K) bool, True where there is a candidate
    rewards: torch.Tensor  # (B, K) float32, 0 where there is none


def row_tokens(rows: RankRows, layout: str) -> np.ndarray:
    """(n,) int64: what each question costs in tokens.

    padded: K times the longest candidate's row, K the file's most, so that rows x longest never says too little.
    """
    tokens = np.diff(rows.candidate_starts)
    if layout == "padded":
        longest = np.maximum.reduceat(tokens, rows.first[:-1])
        return rows.num_candidates * (rows.prefix_lengths + longest)
    sums = np.add.reduceat(tokens, rows.first[:-1])
    return sums + (1 if layout == "shared" else rows.sizes) * rows.prefix_lengths


def shared_cut(prefixes: list[np.ndarray], branches: list[list[np.ndarray]], index: np.ndarray) -> tuple:
    """Questions whose prefix stands once: the Cut, and (M,) where each candidate's last token is."""
    cut = packed_cut(prefixes, np.zeros(len(index), np.int64), index, None, False, each=branches)
    sizes = [(len(prefix), list(map(len, own))) for prefix, own in zip(prefixes, branches, strict=True)]
    ends, start = [], 0
    for prefix, own in sizes:
        ends.append(start + prefix + np.cumsum(own) - 1)
        start += prefix + sum(own)
    return cut._replace(trees=Trees(sizes)), torch.from_numpy(np.concatenate(ends))


def make_rank_cut(
    prefixes: list[np.ndarray],
    branches: list[list[np.ndarray]],
    index: np.ndarray,
    rewards: np.ndarray,
    num_places: int,
    layout: str,
    pad_id: int,
    in_blocks: bool = True,
    typed: bool = False,
) -> RankCut:
    """A cut on the host.

    Dropout masks are named by the question, so that its candidates differ by what they say and not by their masks.

    Args: prefixes, branches: token ids | index: (B,) the questions' numbers in their file | rewards: (M,) | num_places:
          K, at least the most candidates of a question | layout: shared | packed | padded | in_blocks: see packed_cut |
          typed: the candidate has token type 1.
    """
    sizes = np.fromiter(map(len, branches), np.int64, len(branches))
    keep = np.arange(num_places) < sizes[:, None]
    table = np.zeros(keep.shape, np.float32)
    table[keep] = rewards
    owner, last = np.repeat(index, sizes), None
    if layout == "shared":
        cut, last = shared_cut(prefixes, branches, index)
        tokens = [len(prefix) + sum(map(len, own)) for prefix, own in zip(prefixes, branches, strict=True)]
        begins = np.cumsum([0, *tokens])[:-1]
    else:
        rows = [np.concatenate([p, ids]) for p, own in zip(prefixes, branches, strict=True) for ids in own]
        starts = np.repeat([len(p) if typed else 0 for p in prefixes], sizes)
        cut = make_cut(rows, starts, owner, None, pad_id, layout == "packed", in_blocks)
        tokens = [len(row) if layout == "packed" else cut.ids.shape[1] for row in rows]
        begins = np.cumsum([0, *tokens])[np.cumsum(sizes) - sizes]
    front = begins + [len(prefix) - 1 for prefix in prefixes]
    slots, owner, front = (torch.from_numpy(a.astype(np.int64)) for a in (np.flatnonzero(keep), owner, front))
    return RankCut(cut, last, front, owner, slots, torch.from_numpy(keep), torch.from_numpy(table))


class RankFeed(Feed):
    """Cuts of one file's questions as tensors."""

    def __init__(
        self, rows: RankRows, pad_id: int, device: torch.device, layout: str, in_blocks: bool, typed: bool
    ):
        """layout, in_blocks, typed: see make_rank_cut."""
        super().__init__(
            rows, pad_id, device, layout != "padded", in_blocks, lengths=row_tokens(rows, layout)
        )
        self.layout, self.typed = layout, typed

    def apart(self, question: int) -> list[RankCut]:
        """A question's candidates, each with a prefix of its own, as cuts of one: what sharing must agree with."""
        rows, first = self.rows, int(self.rows.first[question])
        prefix, branches = rows.question(question)
        cuts, index = [], np.array([question])
        for k, ids in enumerate(branches, first):
            parts = [prefix], [[ids]], index, rows.rewards[k : k + 1], 1
            cuts.append(to_device(make_rank_cut(*parts, "padded", self.pad_id), self.device))
        return cuts

    @property
    def num_scores(self) -> int:
        """K: scores of a question, places without a candidate included."""
        return self.rows.num_candidates

    @region("data")
    def cut(self, index: Sequence[int] | np.ndarray) -> RankCut:
        """The cut of these questions, on the device."""
        rows, index = self.rows, np.asarray(index)
        questions = [rows.question(int(k)) for k in index]  # numpy
        own = np.concatenate([np.arange(rows.first[k], rows.first[k + 1]) for k in index])
        prefixes, branches = [prefix for prefix, _ in questions], [own for _, own in questions]
        cut = make_rank_cut(
            prefixes, branches, index, rows.rewards[own], self.num_scores, self.layout, self.pad_id,
            self.in_blocks, self.typed,
        )  # fmt: skip
        return to_device(cut, self.device)
