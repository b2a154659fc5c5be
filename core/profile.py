"""torch.profiler over chosen optimiser steps: a Chrome trace, a table of operators, shares by region."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, record_function

from core.errors import UserError

REGIONS = ("data", "forward", "backward", "optim")
region = record_function  # `with region("forward"):` costs a microsecond when nothing is recorded


class StepProfiler:
    """Records the optimiser steps [first, last); every other step costs one comparison."""

    def __init__(self, steps: str, folder: Path, device: torch.device, snapshot: bool = False):
        """steps: "first:last" counted from 0, "" for none | snapshot: CUDA memory snapshot of the same steps."""
        self.folder, self.device, self.snapshot, self.profiler = folder, device, snapshot, None
        self.first = self.last = -1
        if steps:
            try:
                self.first, self.last = map(int, steps.split(":"))
            except ValueError:
                raise UserError(
                    f"--profile {steps}: expected FIRST:LAST, two optimiser steps, 10:15 say"
                ) from None
            if not 0 <= self.first < self.last:
                raise UserError(f"--profile {steps}: expected 0 <= FIRST < LAST")
        if snapshot and device.type != "cuda":
            raise UserError("--snapshot: a memory snapshot needs a CUDA device")

    def before(self, step: int) -> None:
        """Call at the top of every step."""
        if step == self.first:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                if self.snapshot:
                    torch.cuda.memory._record_memory_history(max_entries=200_000)
            self.profiler = torch.profiler.profile(activities=activities, record_shapes=False)
            self.profiler.start()

    def after(self, step: int, num_steps: int) -> str | None:
        """Call at the end of every step; after the last recorded one it writes the files and returns the table."""
        if self.profiler is None or (step + 1 < self.last and step + 1 < num_steps):
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # SYNC: once, at the end of the recording
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / "trace.json"))
        events = self.profiler.key_averages()
        sort = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = events.table(sort_by=sort, row_limit=25, max_name_column_width=48)
        text = f"{self._shares(events, step + 1 - self.first)}\n\n{table}"
        (self.folder / "operators.txt").write_text(text + "\n")
        if self.snapshot:
            torch.cuda.memory._dump_snapshot(str(self.folder / "memory_snapshot.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
        self.profiler = None
        return text

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
