"""From token states to one vector a row. B rows, T padded tokens, D model width."""

import torch
from torch import nn

POOLINGS = ("cls", "mean", "mean_max", "attention", "last")


class Pooling(nn.Module):
    """(B, T, D) states and a (B, T) mask to (B, D) (mean_max: (B, 2D)); padding never enters."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling {kind!r}: one of {', '.join(POOLINGS)}")
        self.kind = kind
        self.width = 2 * width if kind == "mean_max" else width
        self.query = nn.Linear(width, 1) if kind == "attention" else None

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """mask: (B, T) bool, True means keep; None keeps all."""
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        if self.kind == "cls":
            return states[:, 0]
        if self.kind == "last":
            last = mask.sum(dim=1) - 1
            return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)
        if self.kind == "attention":
            scores = self.query(states).squeeze(-1).float().masked_fill(~mask, float("-inf"))
            return (scores.softmax(dim=1).to(states.dtype)[..., None] * states).sum(dim=1)
        keep = mask[..., None]
        mean = (states * keep).sum(dim=1, dtype=torch.promote_types(states.dtype, torch.float32)) / keep.sum(
            dim=1
        )
        mean = mean.to(states.dtype)
        if self.kind == "mean":
            return mean
        return torch.cat([mean, states.masked_fill(~keep, float("-inf")).amax(dim=1)], dim=-1)
