"""How long a run will take, said early and compared with the truth at its end."""

import json
import math

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
        self,
        start: int,
        num_steps: int,
        num_tokens: dict[str, int],
        eval_steps: int,
        steps_per_epoch: int,
        setup_s: float,
        trained_s: float = 0.0,
        window: tuple[int, int] = (FIRST, LAST),
    ):
        """start: steps done before this start, in trained_s seconds | num_tokens: of each split | setup_s: seconds from
        start to loop | window: the first steps that are not timed, and the last that is."""
        self.first, self.last = start + window[0], start + window[1]
        if self.last > num_steps:  # a short run is timed as far as it goes
            self.first, self.last = start, max(start + 1, (start + num_steps) // 2)
        self.setup_s, self.num_steps = setup_s, num_steps
        self.train_tokens = num_tokens["train"] / steps_per_epoch * (num_steps - start)
        evals = math.ceil(num_steps / eval_steps) - start // eval_steps
        self.eval_tokens = num_tokens["validation"] * evals
        self.eval_tokens += sum(count for name, count in num_tokens.items() if name != "train")
        self.since_s, self.tokens = trained_s, 0
        self.train_s = self.eval_s = math.nan  # predicted

    @property
    def is_made(self) -> bool:
        """Whether the steps have been timed."""
        return not math.isnan(self.train_s)

    @property
    def total_s(self) -> float | None:
        """Seconds from start to the last score; None before the steps were timed."""
        return self.setup_s + self.train_s + self.eval_s if self.is_made else None

    def due(self, done: int) -> bool:
        """Whether this step's end is one that counts, so that the device must be waited for."""
        return done in (self.first, self.last)

    def step(self, done: int, tokens: int, train_s: float) -> bool:
        """Call after each step with its tokens and the seconds trained so far; True when the prediction is made."""
        if done > self.first or self.first == self.last - 1:
            self.tokens += tokens
        if done == self.first:
            self.since_s, self.tokens = train_s, 0
        if done != self.last:
            return False
        a_token = (train_s - self.since_s) / max(1, self.tokens)
        self.train_s = a_token * self.train_tokens
        self.eval_s = a_token * FORWARD_SHARE * self.eval_tokens
        return True

    def __str__(self) -> str:
        return in_words(self.train_s, self.total_s) if self.is_made else "none, the run is too short"


def in_words(train_s: float, total_s: float) -> str:
    """Both times as people read them."""
    return f"{minutes(train_s)} of training, {minutes(total_s)} in all"


def minutes(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return (f"{hours} h " if hours else "") + f"{rest // 60} min {rest % 60:02d} s"


def report_dry_run(forecast: Forecast, perf: dict, batch_size: int, price_per_hour: float) -> dict:
    """Print what the whole run would cost; the last line is one JSON object. For rank 0.

    Args: perf: the perf/ and mem/ fields of the steps that were run.
    """
    peak, predicted = perf["mem/peak_mib"], perf.get("mem/predicted_mib")
    found = {"num_steps": forecast.num_steps, "train_tokens": round(forecast.train_tokens)}
    found |= {"pad_frac": perf["perf/pad_frac"], "fill_frac": perf["perf/fill_frac"]}
    found |= {"setup_s": forecast.setup_s, "train_s": forecast.train_s, "eval_s": forecast.eval_s}
    found |= {"total_s": forecast.total_s, "peak_mib": peak, "predicted_mib": predicted}
    print(
        f"dry run: {found['num_steps']} steps of {batch_size} rows, {found['train_tokens']:,} tokens, "
        f"{found['pad_frac']:.1%} padding, cuts {found['fill_frac']:.0%} full\n"
        f"time: {minutes(found['setup_s'])} to start, {minutes(found['train_s'])} of training, "
        f"{minutes(found['eval_s'])} of evaluation, {minutes(found['total_s'])} in all (saving and plots left out)\n"
        f"memory: {peak:.0f} MiB at the peak of the steps that were run"
        + (f", {predicted:.0f} MiB predicted for the dearest of their cuts" if predicted else "")
    )
    if price_per_hour:
        found["price"] = price_per_hour * found["total_s"] / 3600
        print(f"price: {found['price']:.2f} at {price_per_hour:g} an hour")
    print(json.dumps({"dry_run": found}))
    return found
