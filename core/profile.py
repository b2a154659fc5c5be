"""torch.profiler over chosen optimiser steps: a Chrome trace, a table of operators, shares by region, the rate of the
matrix products beside the machine's; on CUDA memory_snapshot.pickle too, for pytorch.org/memory_viz.
"""

import time
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

from core.errors import UserError

REGIONS = ("data", "forward", "backward", "optim")
region = record_function  # `with region("forward"):` costs a microsecond when nothing is recorded


UNRECORDED = 5  # steps before the recorded ones that are timed: recording slows a step down


def product_flops(model: nn.Module) -> int:
    """Floating-point operations a token of a training step's matrix products with weights: 2 forward, 4 backward (2 for
    a frozen one) for each weight of a linear layer. Attention's own products and what sees one vector a row, heads and
    the product with the vocabulary, are small beside it or do not run on every token."""
    words = model.inner.get_output_embeddings() if hasattr(model, "inner") else None
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not words]
    return sum((6 if layer.weight.requires_grad else 4) * layer.weight.numel() for layer in layers)


def matmul_rate(device: torch.device, dtype: torch.dtype | None, repeats: int = 20) -> float:
    """Operations a second that a plain matrix product reaches on this device now. Cost: SYNC, some 0.1 s."""
    size = (4096, 4096, 4096) if device.type == "cuda" else (1024, 1024, 1024)
    a = torch.randn(size[0], size[1], device=device, dtype=dtype)
    b = torch.randn(size[1], size[2], device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size[0] * size[1] * size[2] / best


class StepProfiler:
    """Records the optimiser steps [first, last); every other step costs one comparison."""

    def __init__(self, steps: str, folder: Path, device: torch.device):
        """steps: "first:last" counted from 0, "" for none."""
        self.folder, self.device, self.profiler = folder, device, None
        self.steps, self.tokens, self.padded, self.since = 0, 0, 0, 0.0
        self.first = self.last = self.step = -1
        if steps:
            try:
                self.first, self.last = map(int, steps.split(":"))
            except ValueError:
                raise UserError(
                    f"--profile {steps}: expected FIRST:LAST, two optimiser steps, 10:15 say"
                ) from None
            if not 0 <= self.first < self.last:
                raise UserError(f"--profile {steps}: expected 0 <= FIRST < LAST")

    def before(self, step: int) -> None:
        """Call at the top of every step."""
        if step == max(0, self.first - UNRECORDED):
            self._wait()
            self.since = time.perf_counter()
        if step == self.first:
            self._wait()
            self.since = time.perf_counter() - self.since
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=200_000)
            self.profiler = torch.profiler.profile(activities=activities, record_shapes=False)
            self.profiler.start()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # SYNC

    def after(self, step: int, tokens: int = 0, padded: int = 0) -> bool:
        """Call at the end of every step with its tokens and what they cost with padding; True after the last recorded
        one: then call finish."""
        self.step = step
        if self.first - UNRECORDED <= step < self.first:
            self.steps, self.tokens, self.padded = self.steps + 1, self.tokens + tokens, self.padded + padded
        return step + 1 == self.last

    def speed(self, model: nn.Module, dtype: torch.dtype | None, memory: dict[str, float]) -> str:
        """What the steps before the recorded ones reached, in words. memory: mem/ fields of the log."""
        peak, predicted = memory["mem/peak_mib"], memory.get("mem/predicted_mib")
        lines = [f"peak memory: {peak:.0f} MiB" + (f", {predicted:.0f} MiB predicted" if predicted else "")]
        if self.steps:
            flops = product_flops(model) * self.padded / self.since
            rate = matmul_rate(self.device, dtype)
            lines.insert(
                0,
                f"{self.steps} steps before them: {1e3 * self.since / self.steps:.1f} ms a step, "
                f"{self.tokens / self.since:.0f} tokens/s, {1 - self.tokens / max(1, self.padded):.1%} padding\n"
                f"products with weights: {flops / 1e9:.0f} GFLOP/s, {flops / rate:.0%} of the {rate / 1e9:.0f} GFLOP/s "
                f"of a plain product in {str(dtype or torch.float32).removeprefix('torch.')}",
            )
        return "\n".join(lines)

    def finish(self, speed: str = "") -> str | None:
        """Write the files of what was recorded; the table of operators, or None where that was done or not asked for.

        Args: speed: what speed said, to stand at the top.
        Says so when the run ended before the first step that was to be recorded.
        """
        if self.profiler is None:
            return (
                f"--profile: nothing recorded, no step {self.first} was run"
                if self.step < self.first
                else None
            )
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # SYNC: once, at the end of the recording
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / "trace.json"))
        events = self.profiler.key_averages()
        sort = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = events.table(sort_by=sort, row_limit=25, max_name_column_width=48)
        shares = self._shares(events, self.step + 1 - self.first)
        text = "\n\n".join(part for part in (speed, shares, table) if part)
        (self.folder / "operators.txt").write_text(text + "\n")
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory_snapshot.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self.profiler = None
        return f"{text}\n\nprofile: {self.folder}"

    @staticmethod
    def _shares(events, num_steps: int) -> str:
        """Host time of each region, in all and a step (on CUDA the host only launches: see the trace)."""
        times = {event.key: event.cpu_time_total / 1e3 for event in events if event.key in REGIONS}
        total = sum(times.values()) or 1.0
        lines = [f"host time by region over {num_steps} optimiser steps:"]
        for name in REGIONS:
            if name in times:
                lines.append(
                    f"  {name:9s} {times[name] / num_steps:9.1f} ms a step  {times[name] / total:6.1%}"
                )
        return "\n".join(lines)
