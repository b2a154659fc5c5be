"""From one vector a row to class scores. B rows, D width, C classes."""

import torch
from torch import nn

HEADS = ("linear", "mlp", "residual")


class ResidualBlock(nn.Module):
    """x + W2 gelu(W1 norm(x)), dropped out: a pre-norm block (He et al. 2016; Xiong et al. 2020)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm(x)))))


def make_head(kind: str, width: int, num_classes: int, dropout: float) -> nn.Sequential:
    """The head: (B, D) to (B, C).

    Args: kind: linear | mlp (one hidden layer of the same width, tanh) | residual (LayerNorm, residual block).
    """
    if kind == "linear":
        layers = [nn.Dropout(dropout), nn.Linear(width, num_classes)]
    elif kind == "mlp":
        layers = [nn.Dropout(dropout), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout)]
        layers += [nn.Linear(width, num_classes)]
    elif kind == "residual":
        layers = [ResidualBlock(width, dropout), nn.LayerNorm(width), nn.Linear(width, num_classes)]
    else:
        raise ValueError(f"head {kind!r}: one of {', '.join(HEADS)}")
    return nn.Sequential(*layers)
