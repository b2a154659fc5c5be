"""torch.profiler over chosen optimiser steps: a Chrome trace, a table of operators, shares by region; on CUDA a
memory snapshot too (memory_snapshot.pickle, for pytorch.org/memory_viz).
"""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from core.errors import UserError

REGIONS = ("data", "forward", "backward", "optim")
region = record_function  # `with region("forward"):` costs a microsecond when nothing is recorded


class StepProfiler:
    """Records the optimiser steps [first, last); every other step costs one comparison."""

    def __init__(self, steps: str, folder: Path, device: torch.device):
        """steps: "first:last" counted from 0, "" for none."""
        self.folder, self.device, self.profiler = folder, device, None
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
        if step == self.first:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=200_000)
            self.profiler = torch.profiler.profile(activities=activities, record_shapes=False)
            self.profiler.start()

    def after(self, step: int) -> str | None:
        """Call at the end of every step; after the last recorded one it returns what finish returns."""
        self.step = step
        return self.finish() if step + 1 == self.last else None

    def finish(self) -> str | None:
        """Write the files of what was recorded; the table of operators, or None where that was done or not asked for.

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
        text = f"{self._shares(events, self.step + 1 - self.first)}\n\n{table}"
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
