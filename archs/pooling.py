"""From token states to one vector a row. B rows, T padded tokens, N packed tokens, D model width."""

import torch
from torch import nn

from core.batches import Cut

POOLINGS = ("cls", "mean", "mean_max", "attention", "last")


def widened(x: torch.Tensor) -> torch.Tensor:
    """x in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rows_of(x: torch.Tensor, cut: Cut, kind: str) -> torch.Tensor:
    """The mean, sum or max of each row's tokens: (N, D) to (B, D). Sums are in float32 (or float64)."""
    lengths = cut.cu_seqlens.diff().long()
    if kind == "max":
        return torch.segment_reduce(
            x, "max", lengths=lengths, unsafe=True
        )  # unsafe: lengths are not read back
    return torch.segment_reduce(widened(x), kind, lengths=lengths, unsafe=True).to(x.dtype)


class Pooling(nn.Module):
    """States and their cut to (B, D) (mean_max: (B, 2D)); padding never enters."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling {kind!r}: one of {', '.join(POOLINGS)}")
        self.kind = kind
        self.width = 2 * width if kind == "mean_max" else width
        self.query = nn.Linear(width, 1) if kind == "attention" else None

    def forward(self, states: torch.Tensor, cut: Cut) -> torch.Tensor:
        """states: (B, T, D), or (1, N, D) of a packed cut."""
        return self.padded(states, cut.mask) if cut.cu_seqlens is None else self.packed(states[0], cut)

    def packed(self, states: torch.Tensor, cut: Cut) -> torch.Tensor:
        """states: (N, D)."""
        if self.kind == "cls":
            return states.index_select(0, cut.cu_seqlens[:-1])
        if self.kind == "last":
            return states.index_select(0, cut.cu_seqlens[1:] - 1)
        if self.kind == "attention":
            scores = widened(self.query(states))  # (N, 1)
            most = rows_of(scores.detach(), cut, "max")
            shares = (scores - most.index_select(0, cut.owner)).exp()
            shares = shares / rows_of(shares, cut, "sum").index_select(0, cut.owner)
            return rows_of(shares.to(states.dtype) * states, cut, "sum")
        mean = rows_of(states, cut, "mean")
        return mean if self.kind == "mean" else torch.cat([mean, rows_of(states, cut, "max")], dim=-1)

    def padded(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """states: (B, T, D) | mask: (B, T) bool, True means keep; None keeps all."""
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        if self.kind == "cls":
            return states[:, 0]
        if self.kind == "last":
            last = mask.sum(dim=1) - 1
            return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
        if self.kind == "attention":
            scores = widened(self.query(states)).squeeze(-1).masked_fill(~mask, float("-inf"))
            return (scores.softmax(dim=1).to(states.dtype)[..., None] * states).sum(dim=1)
        keep = mask[..., None]
        sums = (states * keep).sum(dim=1, dtype=torch.promote_types(states.dtype, torch.float32))
        mean = (sums / keep.sum(dim=1)).to(states.dtype)
        if self.kind == "mean":
            return mean
        return torch.cat([mean, states.masked_fill(~keep, float("-inf")).amax(dim=1)], dim=-1)
