"""Dropout for CPU, from 16 random bits an element.

torch draws one random number after another for each element's Bernoulli trial; four 16-bit uniforms out of one
64-bit draw cost a fraction of that, and dropout was a quarter of a training step of a small BERT (bench/NOTES.md).
The keep probability is exact to 2^-16, and the scale is that of the probability really used.
"""

import torch
from torch import nn


class _Dropout(torch.autograd.Function):
    """x times a random 0/1 mask, times 1 / keep probability."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, p: float) -> torch.Tensor:
        dropped = min(65535, round(p * 65536))
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = (bits[: x.numel()] >= dropped - 32768).view(x.shape)
        ctx.save_for_backward(keep)
        ctx.scale = 65536 / (65536 - dropped)
        return x.mul(keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keep,) = ctx.saved_tensors
        return grad.mul(keep).mul_(ctx.scale), None


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """As torch.nn.functional.dropout, quicker on CPU; elsewhere it is that function.

    Args: x: any shape | p: chance that an element becomes 0, in [0, 1], rounded to 2^-16.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or p >= 1:
        return nn.functional.dropout(x, p, training)
    return _Dropout.apply(x, p)


class Dropout(nn.Dropout):
    """nn.Dropout by the function above."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return dropout(x, self.p, self.training)


def replace_dropout(model: nn.Module) -> None:
    """Make every nn.Dropout of the model ours, in place; probabilities and names stay."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout
