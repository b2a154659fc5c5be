"""One record a log step, to training_logs.jsonl and TensorBoard alike; rank 0 only."""

import json
import math
import os
import threading
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from core.batches import Feed
from core.dist import sum_over_ranks
from core.files import write_text

TIME = "perf/time_s"  # when a record was written, in seconds since 1970
EVENTS = "events.out.tfevents.*"


def empty_events(folder: Path) -> None:
    """Take what is in the event files away; a file that a TensorBoard may be reading just now goes a resume later,
    since one that finds its file gone never looks for the next."""
    for path in folder.glob(EVENTS):
        if path.stat().st_size:
            os.truncate(path, 0)
        else:
            path.unlink()


class RunLog:
    """Appends records; a resumed run first drops the records that come after its checkpoint.

    The file is on disk with each record and TensorBoard's is made of it: a resumed run writes its events anew, so that
    no step is there twice (what came after the checkpoint) or missing (what TensorBoard's writer had not flushed).
    """

    def __init__(self, folder: Path, step: int = 0):
        """step: optimiser steps done before this start; 0 for a new run."""
        self.path, events = folder / "training_logs.jsonl", folder / "tensorboard"
        resumed, kept = self.path.exists(), []
        if resumed:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if self._before(line, step)]
            write_text(self.path, "".join(kept))
            empty_events(events)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 open for the whole run
        self.faults, self.others_hook = [], threading.excepthook
        threading.excepthook = self._hear
        # purge_step: a TensorBoard that has the old events in memory forgets them
        self.board = SummaryWriter(str(events), purge_step=0 if resumed else None)
        for line in kept:
            self._show(json.loads(line))
        self.board.flush()

    def _hear(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose errors would be a traceback and nothing more."""
        if type(args.thread).__module__.startswith("tensorboard."):
            self.faults.append(args.exc_value)
        else:
            self.others_hook(args)

    @staticmethod
    def _before(line: str, step: int) -> bool:
        try:
            return line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError):  # the last line of a killed run can be cut short
            return False

    def _show(self, record: dict) -> None:
        """Give a record's numbers to TensorBoard, at the time it was written."""
        for name, value in record.items():
            if "/" in name and name != TIME and isinstance(value, int | float):
                self.board.add_scalar(name, value, record["step"], record.get(TIME))

    def write(self, step: int, fields: dict) -> None:
        """Append {"step": step, **fields, "perf/time_s": now}; numbers with a / in their name go to TensorBoard too.

        A number that is not finite is null in the file: JSON has no NaN.
        Raises: OSError when it cannot be written, TensorBoard's at the latest with the next record, or in close.
        """
        fields = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}
        record = {"step": step} | fields | {TIME: round(time.time(), 3)}
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())
        self._show(record)
        self.board.flush()  # a killed run's curves end where its file does

    def close(self) -> None:
        """Flush and close both. Raises OSError when TensorBoard's file is not whole."""
        self.file.close()
        try:
            self.board.close()
        finally:
            threading.excepthook = self.others_hook
        if self.faults:
            raise self.faults[0]


class Meter:
    """Time and tokens since the last log record, evaluation and saving left out; total_s is of the whole run."""

    def __init__(self, feed: Feed, total_s: float = 0.0):
        """feed: its wait_s is the time the loop waited for data | total_s: of earlier starts, in seconds."""
        self.feed, self.total_s = feed, total_s
        self.reset()

    def reset(self) -> None:
        self.busy_s, self.steps, self.tokens, self.padded, self.feed.wait_s = 0.0, 0, 0, 0, 0.0
        self.room, self.predicted_mib = 0, 0.0

    def start(self) -> None:
        """Start the clock."""
        self.since = time.perf_counter()

    def stop(
        self,
        tokens: int | None = None,
        padded: int = 0,
        room: int = 0,
        predicted_mib: float = 0.0,
        steps: int = 1,
    ) -> None:
        """Stop the clock; at the end of a step, or of several, count.

        Args: tokens: of the steps, over all ranks | padded: that this rank's cuts cost | room: that they could have
              held | predicted_mib: the memory model's peak of the dearest of them.
        """
        took = time.perf_counter() - self.since
        self.busy_s, self.total_s = self.busy_s + took, self.total_s + took
        if tokens is not None:
            self.steps, self.tokens = self.steps + steps, self.tokens + tokens
            self.add(padded, room, predicted_mib)

    def add(self, padded: int, room: int, predicted_mib: float) -> None:
        """Count cuts, as stop does: where a step has several rounds of them."""
        self.padded, self.room = self.padded + padded, self.room + room
        self.predicted_mib = max(self.predicted_mib, predicted_mib)

    def fields(self) -> dict[str, float]:
        """The perf/ fields of a record, over all ranks; starts anew. Cost: COMM."""
        counts = torch.tensor([self.padded, self.room], dtype=torch.float64)  # of the host: no device waits
        padded, room = map(float, sum_over_ranks(counts))
        steps = max(1, self.steps)
        found = {"perf/tokens_per_s": self.tokens / self.busy_s, "perf/step_ms": 1e3 * self.busy_s / steps}
        found |= {
            "perf/data_ms": 1e3 * self.feed.wait_s / steps,
            "perf/pad_frac": 1 - self.tokens / max(1.0, padded),
            "perf/fill_frac": padded / max(1.0, room),
        }
        if self.predicted_mib:
            found["mem/predicted_mib"] = self.predicted_mib
        self.reset()
        return found
