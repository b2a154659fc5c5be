"""A prefix read once and branches behind it: every branch sees the prefix and itself, and no other branch.

For label words behind a prompt, and for the K candidates of a question. A branch's tokens stand at the places that
follow the prefix, as if it were alone behind it. P prefix tokens, N tokens of the row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


def branch_row(prefix: np.ndarray, branches: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    """One row of a prefix and its branches.

    Args:    prefix: (P,) token ids, P >= 1 | branches: token ids of each; an empty one adds nothing.
    Returns: (N,) ids | (N,) each token's place: P, P + 1, ... from the start of every branch |
             (N,) each token's branch: 0 for the prefix, k + 1 for branches[k].
    """
    sizes = [len(branch) for branch in branches]
    ids = np.concatenate([prefix, *(np.asarray(branch, np.int64) for branch in branches if len(branch))])
    place = np.concatenate([np.arange(len(prefix)), *(len(prefix) + np.arange(size) for size in sizes)])
    return ids, place, np.repeat(np.arange(len(sizes) + 1), [len(prefix), *sizes])


def branch_mask(branch: torch.Tensor, place: torch.Tensor, window: int | None = None) -> torch.Tensor:
    """What sees what in rows of a prefix and branches, read from left to right.

    Args:    branch, place: (..., T) int64, see branch_row | window: tokens that far apart or farther do not see each
             other; None: all do.
    Returns: (..., T, T) bool, True where the query (row) sees the key (column).
    """
    query, key = branch[..., :, None], branch[..., None, :]
    ahead = place[..., :, None] - place[..., None, :]
    seen = ((key == 0) | (key == query)) & (ahead >= 0)
    return seen if window is None else seen & (ahead < window)


class Tree(NamedTuple):
    """One row of a packed cut as attention takes it: P prefix tokens, then K branches, padded to S places each."""

    prefix: int  # P
    branches: int  # K, branches that have tokens
    width: int  # S, tokens of the longest branch
    num_tokens: int  # of all branches
    places: torch.Tensor | None  # (num_tokens,) int64 into K x S; None where all branches are equally long


class Trees:
    """The rows of a packed cut, each a prefix and its branches: for attention row by row (archs/branching.py)."""

    def __init__(self, sizes: Sequence[tuple[int, Sequence[int]]]):
        """sizes: of each row the tokens of its prefix and of each of its branches."""
        self.rows: list[Tree] = []
        for prefix, branches in sizes:
            lengths = np.array([size for size in branches if size], np.int64)
            width = int(lengths.max(initial=0))
            places = None
            if (lengths < width).any():
                places = torch.from_numpy(np.flatnonzero(np.arange(width) < lengths[:, None]))
            self.rows.append(Tree(prefix, len(lengths), width, int(lengths.sum()), places))
        self.splits = [size for tree in self.rows for size in (tree.prefix, tree.num_tokens)]

    def pin_memory(self) -> "Trees":
        """Itself: a few small tensors, sent as they are."""
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Trees":
        """Itself on the device, in place. Cost: H2D."""
        self.rows = [
            tree
            if tree.places is None
            else tree._replace(places=tree.places.to(device, non_blocking=non_blocking))
            for tree in self.rows
        ]
        return self
