"""An exponential moving average of the weights, which is what is evaluated and saved; training goes on with its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core.sharding import is_sharded, local, read_parts


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
        params = [local(param.detach()) for param in self.params]
        torch._foreach_lerp_([local(average) for average in self.averages], params, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In the block the model has the averages; no copy is made (sharded: of one weight at a time)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for k, param in enumerate(self.params):
            if is_sharded(param):  # fully_shard knows its parts by their memory
                held = local(param).clone()
                local(param).copy_(local(self.averages[k]))
                local(self.averages[k]).copy_(held)
            else:
                param.data, self.averages[k] = self.averages[k], param.data

    def state(self) -> dict[str, torch.Tensor]:
        """For save_checkpoint."""
        return {str(k): average for k, average in enumerate(self.averages)}

    def load(self, checkpoint: Path) -> None:
        """Take the averages of a checkpoint. Cost: H2D."""
        found = read_parts(checkpoint / "averages.safetensors", lambda name: self.averages[int(name)])
        for k, average in enumerate(self.averages):
            average.copy_(found[str(k)])
