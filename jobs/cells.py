"""Runs of train.py as processes: several at once, one on each GPU, resumed where they stopped, none trained twice."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import train
from core.errors import UserError
from core.flags import FREE_ON_RESUME
from core.rows import file_sha256
from core.runs import RunRecord

SCRIPT = Path(train.__file__).resolve()
POLL_S = 0.5


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    folder: Path
    flags: tuple[str, ...]


def check_cell(cell: Cell) -> str:
    """How far a run is: new, running (to be resumed) or finished.

    Raises: UserError for bad flags, or when the folder holds a run of other flags or other data.
    """
    try:
        wanted = vars(train.parse_args(list(cell.flags)))
    except UserError as error:
        raise UserError(f"{cell.folder}: train.py: {error}") from None
    if not (cell.folder / "run.json").exists():
        return "new"
    record = RunRecord.read(cell.folder).record
    stored = record["arguments"]
    told = [
        f"--{name} was {stored[name]}, now {value}"
        for name, value in wanted.items()
        if name in stored
        and name not in FREE_ON_RESUME
        and stored[name] != value
        and (name != "test_data" or value)  # a run may have been scored on test rows since
    ]
    for name, flag in (("train", "train_data"), ("validation", "val_data"), ("test", "test_data")):
        if wanted[flag] and record["data"].get(name) != file_sha256(wanted[flag]):
            told.append(f"{wanted[flag]} has changed")
    if told:
        raise UserError(
            f"{cell.folder}: holds a {record['status']} run of another configuration: {'; '.join(told)}. "
            "Give another --output_dir, or remove it."
        )
    return record["status"]


# -- running ----------------------------------------------------------------------------------------------------


@dataclass
class Running:
    """A run that is being trained."""

    cell: Cell
    process: subprocess.Popen
    gpu: str
    log_start: int  # byte of train.log at which this start's output begins
    started: float


def start(cell: Cell, gpu: str) -> Running | None:
    """Start a run; its output goes to train.log. None when another process is training it.

    The log is locked for as long as the run has it open, so that no run is ever trained by two at once.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    is_there = (cell.folder / "run.json").exists()
    flags = [*cell.flags, "--resume", str(cell.folder)] if is_there else cell.flags
    with open(cell.folder / "train.log", "ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        command = [sys.executable, str(SCRIPT), *flags]
        env = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        return Running(cell, process, gpu, log.tell(), time.monotonic())


def why_failed(run: Running) -> str:
    """ "" for a run that has finished, else its last error line."""
    code = run.process.returncode
    with contextlib.suppress(UserError):
        if code == 0 and RunRecord.read(run.cell.folder).record["status"] == "finished":
            return ""
    text = (run.cell.folder / "train.log").read_bytes()[run.log_start :].decode(errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|[\w.]*(Error|Exception|Interrupt))\b", line)]
    told = (errors or lines or ["it printed nothing"])[-1]
    if code < 0:
        told = f"ended by {signal.Signals(-code).name}" + (", memory perhaps" * (code == -signal.SIGKILL))
    return told[:300]


def share_done(folder: Path) -> float:
    """How much of a run's steps its log has, 0 to 1."""
    with contextlib.suppress(UserError, OSError, ValueError, KeyError, IndexError):
        with open(folder / "training_logs.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            last = file.read().splitlines()[-1]
        return min(1.0, json.loads(last)["step"] / RunRecord.read(folder).record["num_steps"])
    return 0.0


@contextlib.contextmanager
def ends_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block, so that the runs are stopped then too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def stop(runs: list[Running]) -> None:
    """End runs and wait for them; their checkpoints are whole at any time."""
    for run in runs:
        run.process.terminate()
    for run in runs:
        try:
            run.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            run.process.kill()
            run.process.wait()


def train_all(cells: list[Cell], gpus: list[str]) -> dict[Path, str]:
    """Train the cells, one at a time on each GPU; without GPUs one at a time.

    Returns: why, by folder, for those that failed; the others have finished.
    """
    waiting, free, runs, failed, done = deque(cells), deque(gpus or [""]), [], {}, 0
    layout = "{desc}: {n:.1f} of {total} runs |{bar}| {elapsed}<{remaining}{postfix}"
    bar = tqdm(total=len(cells), desc="training", bar_format=layout, smoothing=0, disable=None)
    with ends_as_ctrl_c(), bar:
        try:
            while waiting or runs:
                while waiting and free:
                    cell = waiting.popleft()
                    run = start(cell, free[0])
                    if run is None:
                        failed[cell.folder], done = "another process is training it", done + 1
                    else:
                        runs.append(run)
                        tqdm.write(f"started  {cell.folder}" + (f" on GPU {run.gpu}" if run.gpu else ""))
                        free.popleft()
                for run in [run for run in runs if run.process.poll() is not None]:
                    runs.remove(run)
                    free.append(run.gpu)
                    done += 1
                    why = why_failed(run)
                    if why:
                        failed[run.cell.folder] = why
                    minutes = (time.monotonic() - run.started) / 60
                    tqdm.write(
                        f"{'FAILED  ' if why else 'finished'} {run.cell.folder}, {minutes:.1f} min  {why}"
                    )
                bar.update(done + sum(share_done(run.cell.folder) for run in runs) - bar.n)
                bar.set_postfix_str(", ".join("/".join(run.cell.folder.parts[-4:]) for run in runs))
                if runs:
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            tqdm.write("stopping; the same command goes on from here")
            raise
        finally:
            stop(runs)
    return failed
