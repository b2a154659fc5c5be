"""An exponential moving average of the weights, which is what is evaluated and saved; training goes on with its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file


class Ema:
    """averages = d averages + (1 - d) weights after each step, d = min(decay, (1 + t) / (10 + t)) at step t.

    d rises with t, so that the first steps are forgotten soon. All ranks have the same weights, so the same averages,
    and neither cuts nor packing matter.
    Source: Polyak and Juditsky 1992; the rising d as in TensorFlow's ExponentialMovingAverage (num_updates).
    Cost:   a copy of what is trained, float32, and one pass over it a step.
    """

    def __init__(self, params: list[torch.Tensor], decay: float):
        self.params, self.decay = params, decay
        self.averages = [param.detach().clone() for param in params]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step: optimiser steps done before this one."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [param.detach() for param in self.params], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the model has the averages; no copy is made."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for k, param in enumerate(self.params):
            param.data, self.averages[k] = self.averages[k], param.data

    def state(self) -> dict[str, torch.Tensor]:
        """For save_checkpoint."""
        return {str(k): average for k, average in enumerate(self.averages)}

    def load(self, checkpoint: Path) -> None:
        """Take the averages of a checkpoint. Cost: H2D."""
        found = load_file(checkpoint / "averages.safetensors")
        for k, average in enumerate(self.averages):
            average.copy_(found[str(k)])
