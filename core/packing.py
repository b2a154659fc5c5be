"""A packed cut's rows in blocks of like length, for attention without a variable-length kernel.

B rows of a cut, N packed tokens, P places of the blocks (tokens and inner padding), H heads.
"""

import numpy as np
import torch

from core.branches import branch_mask
from core.plan import cut_by_budget

BLOCK_COST = (
    32  # what one more block costs attention, in padded tokens: an assumption, tried at this value alone
)
ALIGN = 8  # widths of blocks are rounded up to whole vectors


def near_mask(num_tokens: int, causal: bool, window: int | None, device: torch.device) -> torch.Tensor | None:
    """(T, T) bool, True where a query sees a key; None where all see all. window: tokens that far apart or
    farther do not see each other."""
    if not causal and (window is None or window >= num_tokens):
        return None
    place = torch.arange(num_tokens, device=device)
    ahead = place[:, None] - place
    near = ahead.abs() < (num_tokens if window is None else window)
    return near & (ahead >= 0) if causal else near


class Blocks:
    """A packed cut's rows in blocks of like length, padded inside attention only: for devices and types without a
    variable-length kernel. Places are numbered through all blocks, row by row.

    blocks: (first place, rows b, width T, members, keep): members (b,) int64 rows of the cut; keep (b, T) bool,
    None where nothing is padded.
    """

    def __init__(
        self, lengths: np.ndarray, branch: torch.Tensor | None = None, place: torch.Tensor | None = None
    ):
        """lengths: (B,) tokens of each row, in the order in which they are packed | branch, place: (N,) int64 of rows
        that are a prefix and branches (core/branches.py); None where they are not."""
        self.branch, self.place = branch, place
        lengths = np.asarray(lengths, np.int64)
        starts = np.cumsum(lengths) - lengths
        self.num_tokens, self.blocks = int(lengths.sum()), []
        tokens, place_of, pads, first = [], np.empty(self.num_tokens, np.int64), [], 0
        widths = -(-lengths // ALIGN) * ALIGN
        for members in cut_by_budget(np.arange(len(lengths)), widths, 2**62, BLOCK_COST):
            width = int(widths[members[0]])
            inside = np.arange(width)
            keep = inside < lengths[members, None]  # (b, T)
            token = starts[members, None] + np.minimum(inside, lengths[members, None] - 1)
            place = first + np.arange(token.size).reshape(token.shape)
            place_of[token[keep]] = place[keep]
            tokens.append(token.ravel())
            pads.append(place[~keep])
            whole = bool(keep.all())
            self.blocks.append(
                (
                    first,
                    len(members),
                    width,
                    torch.from_numpy(members),
                    None if whole else torch.from_numpy(keep),
                )
            )
            first += token.size
        self.num_places = first
        self.tokens = torch.from_numpy(np.concatenate(tokens))  # (P,) the token of each place
        self.places = torch.from_numpy(place_of)  # (N,) the place of each token
        self.pads = torch.from_numpy(np.concatenate(pads))
        self._by_head: dict[int, tuple] = {}
        self._biases: dict[tuple, list] = {}

    def pin_memory(self) -> "Blocks":
        """Itself: a few small tensors, sent as they are."""
        return self

    def to(self, device: torch.device, non_blocking: bool = False) -> "Blocks":
        """Itself on the device, in place. Cost: H2D."""
        self.tokens, self.places, self.pads, self.branch, self.place = (
            None if x is None else x.to(device, non_blocking=non_blocking)
            for x in (self.tokens, self.places, self.pads, self.branch, self.place)
        )
        self.blocks = [
            (*block, members.to(device), None if keep is None else keep.to(device))
            for *block, members, keep in self.blocks
        ]
        return self

    def by_head(self, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Indices that gather (N x H) vectors into blocks laid out (b, H, T), and back.

        Returns: (P x H,) into tokens x heads | (N x H,) into places | (pads x H,) places of padding, or None.
        """
        if num_heads not in self._by_head:
            head = torch.arange(num_heads, device=self.tokens.device)
            gather = torch.empty(self.num_places * num_heads, dtype=torch.int64, device=self.tokens.device)
            spots = torch.empty(self.num_places, num_heads, dtype=torch.int64, device=self.tokens.device)
            for first, b, width, _, _ in self.blocks:
                here = slice(first, first + b * width)
                token = self.tokens[here].view(b, 1, width) * num_heads + head[:, None]  # (b, H, T)
                gather[first * num_heads : (first + b * width) * num_heads] = token.reshape(-1)
                numbers = torch.arange(b * num_heads * width, device=token.device).view(b, num_heads, width)
                spots[here] = (numbers + first * num_heads).transpose(1, 2).reshape(-1, num_heads)
            pads = spots[self.pads].reshape(-1) if len(self.pads) else None
            self._by_head[num_heads] = gather, spots[self.places].reshape(-1), pads
        return self._by_head[num_heads]

    def biases(self, num_heads: int, dtype: torch.dtype, causal: bool, window: int | None) -> list:
        """What is added to each block's scores, broadcastable to (b x H, T, T): 0 to keep, the lowest number to drop.

        Args: window: tokens at this distance or farther do not see each other; None: all do.
        """
        key = num_heads, dtype, causal, window
        if key not in self._biases:
            self._biases[key] = [self._bias(block, *key) for block in self.blocks]
        return self._biases[key]

    def _bias(self, block: tuple, num_heads: int, dtype: torch.dtype, causal: bool, window: int | None):
        first, b, width, _, keep = block
        seen = None if keep is None else keep[:, None, None, :]  # (b, 1, 1, T)
        if self.branch is None:
            near = near_mask(width, causal, window, self.tokens.device)
        else:
            token = self.tokens[first : first + b * width].view(b, width)
            near = branch_mask(self.branch[token], self.place[token], window)[:, None]  # (b, 1, T, T)
        if near is not None:
            seen = near if seen is None else seen & near
        if seen is None:
            return None
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
            ~seen, torch.finfo(dtype).min
        )
        if bias.dim() == 2:
            return bias
        return bias.expand(b, num_heads, *bias.shape[2:]).reshape(b * num_heads, *bias.shape[2:])
