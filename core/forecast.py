"""How long a run will take, said early and compared with the truth at its end."""

import torch

FIRST, LAST = 3, 13  # the optimiser steps that are timed, after those that warm caches and allocators up
FORWARD_SHARE = 1 / 3  # of a training step's time a token: forward is one of three like products (assumption)


def synchronize(device: torch.device) -> None:
    """Wait for the device. Cost: SYNC."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


class Forecast:
    """Times a few early steps and predicts the whole from the tokens that are to come."""

    def __init__(
        self, device: torch.device, start: int, num_steps: int, step_tokens: float, eval_tokens: float
    ):
        """start: steps done before this start | step_tokens: of a mean step | eval_tokens: scored in the whole run."""
        self.device, self.num_steps = device, num_steps
        self.first, self.last = start + FIRST, start + LAST
        if self.last > num_steps:  # a short run is timed as far as it goes
            self.first, self.last = start, max(start + 1, num_steps // 2)
        self.step_tokens, self.eval_tokens = step_tokens, eval_tokens
        self.began, self.tokens = (0.0, 0), 0
        self.train_s = self.eval_s = None  # predicted, of the whole run

    def step(self, done: int, tokens: int, train_s: float) -> bool:
        """Call after each step with its tokens and the seconds trained so far; True when the prediction is made.

        Cost: SYNC, twice a run.
        """
        self.tokens += tokens
        if done == self.first:
            synchronize(self.device)
            self.began = train_s, self.tokens
        if done != self.last:
            return False
        synchronize(self.device)
        seconds, counted = train_s - self.began[0], self.tokens - self.began[1]
        a_token = seconds / max(1, counted)
        self.train_s = a_token * self.step_tokens * self.num_steps
        self.eval_s = a_token * FORWARD_SHARE * self.eval_tokens
        return True

    def line(self) -> str:
        """The prediction in words."""
        return f"forecast: {minutes(self.train_s)} of training and {minutes(self.eval_s)} of evaluation"


def minutes(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return (f"{hours} h " if hours else "") + f"{rest // 60} min {rest % 60:02d} s"
