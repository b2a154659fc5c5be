"""What jobs.pipeline has at hand: its folder, its clock, and the lines of the ablation table so far."""

import json
import math
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from core.cache import LabelColumn
from core.errors import UserError
from core.files import write_json
from core.report import is_better
from core.rows import BadRows, RowError, RowFormat, file_sha256, read_rows
from core.runs import RunRecord, git_commit, hardware, versions
from jobs.cells import SCRIPT, Cell, check_cell, train_all
from jobs.compare import words

PARTS = {
    "train": "train_data",
    "validation": "val_data",
    "calibration": "calibration_data",
    "test": "test_data",
}
NAMES = {"split": "rows divided", "single": "single model", "calibration": "calibrated"}
ALWAYS = ("split", "single")  # what all others stand on
OF_ALL_RUNS = ("ensemble", "calibration", "thresholds")
OF_ONE_RUN = ("calibration", "thresholds")  # no run of their own: what they add to the best one
# a regulariser each, of the strength that its paper or train.py's help begins with, and its cost in plain trainings
REGULARISERS = {
    "ema": (["--ema", "0.99"], 1.1),
    "neftune": (["--neftune", "5"], 1.1),
    "rdrop": (["--rdrop", "1"], 2.1),
    "fgm": (["--fgm", "0.5"], 2.1),
}
FREE = (
    "hours",
    "skip",
    "gpus",
    "members",
    "folds",
    "trials",
    "output_dir",
)  # what a second start may change
RESERVED = 0.1  # of --hours: for the ensemble's and the calibration's sums, test rows and the report


class Skip(Exception):
    """Why a stage has nothing to do; no_time: since it would not have been finished."""

    def __init__(self, why: str, no_time: bool = False):
        super().__init__(why)
        self.no_time = no_time


class Pipeline:
    """The folder, the clock, and what has come out so far: `state` is pipeline.json."""

    def __init__(self, args: Namespace, command: list[str]):
        self.args, self.folder, self.began = args, Path(args.output_dir), time.monotonic()
        path = self.folder / "pipeline.json"
        self.state = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        given = {name: value for name, value in vars(args).items() if name not in FREE}
        stored = self.state.get("given", given)
        differ = [f"--{name} was {stored.get(name)!r}, now {value!r}" for name, value in given.items()
                  if stored.get(name) != value]  # fmt: skip
        if differ:
            told = "; ".join(differ)
            raise UserError(
                f"--output_dir {self.folder}: holds another pipeline: {told}; give another folder"
            )
        self.spent_before = self.state.get("minutes", 0.0) + self.minutes_of_a_killed_stage()
        fresh = {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "stages": [], "baselines": {}, "final": None}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.state = fresh | self.state | {"status": "running", "given": given, "arguments": vars(args)}
        self.state |= {"command": command, "commit": git_commit(), "versions": versions()}
        self.state["hardware"] = hardware(device, 1)
        columns = {name: getattr(args, name) for name in ("text_field", "pair_field", "label_field")}
        self.state["data"] = {"file": args.data or args.train_data, **columns}
        self.state["data"] |= {"split": "split/split.json"} if args.data else {}
        # lines of an earlier start, taken over stage by stage; what is made of all runs is made again after a new one
        self.known, self.state["stages"], self.has_new_runs = self.state["stages"], [], False
        self.check_files()

    # -- rows and flags

    @property
    def parts(self) -> dict[str, str]:
        """The file of each part that there is."""
        if not self.args.data:
            given = {part: getattr(self.args, name) for part, name in PARTS.items()}
            return {part: path for part, path in given.items() if path}
        made = {part: self.folder / "split" / f"{part}.jsonl" for part in PARTS}
        return {part: str(path) for part, path in made.items() if path.is_file()}

    def check_files(self) -> None:
        """Raise UserError for a file that is missing, or has changed since the first start."""
        hashes = self.state.setdefault("hashes", {})
        for name in ("data", *PARTS.values(), "feedback", "unlabelled"):
            path = getattr(self.args, name)
            if not path:
                continue
            if not Path(path).is_file():
                raise UserError(f"--{name} {path}: no such file")
            found = file_sha256(path)
            if hashes.setdefault(name, found) != found:
                raise UserError(
                    f"--{name} {path}: has changed since this pipeline began; give another --output_dir"
                )

    def row_format(self) -> RowFormat:
        """The columns that the flags name."""
        return RowFormat(self.args.text_field or "text", self.args.pair_field, self.args.label_field)

    def labels(self) -> tuple[list[str], bool, RowFormat]:
        """The training rows' label names, whether a row has several, and the columns."""
        names, several = label_names(self.parts["train"], self.row_format())
        self.state |= {"label_names": names, "multi_label": several}
        return names, several, self.row_format()

    def columns(self) -> list[str]:
        """Which columns hold what."""
        given = {name: getattr(self.args, name) for name in ("text_field", "pair_field", "label_field")}
        return [word for name, value in given.items() if value for word in (f"--{name}", value)]

    def calibration_flags(self) -> list[str]:
        """Where the calibration rows are."""
        return ["--calibration_data", self.parts["calibration"]] if "calibration" in self.parts else []

    def row_flags(self) -> list[str]:
        """Where the rows are, but for test rows, which no run sees."""
        rows = ["--train_data", self.parts["train"], "--val_data", self.parts["validation"]]
        return [*rows, *self.calibration_flags()]

    def shared_flags(self) -> list[str]:
        """What every run has in common with the single one."""
        return [*self.columns(), "--metric", self.args.metric, "--seed", str(self.args.seed)]

    def flags(self) -> list[str]:
        """Of the single model."""
        return [*words(self.args.flags, "--flags"), *self.row_flags(), *self.shared_flags()]

    def best_flags(self) -> list[str]:
        """Of the best of the single model, its regularisers and the search."""
        best = self.best_of(["single", *REGULARISERS, "search"])["key"]
        if best == "search":
            return [f"@{self.folder / 'search' / 'preset'}", *self.row_flags(), *self.shared_flags()]
        return [*self.flags(), *REGULARISERS.get(best, ([],))[0]]

    def preset_text(self) -> str:
        """What the search found, "" where there is none."""
        path = self.folder / "search" / "preset"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    # -- the clock

    def minutes_of_a_killed_stage(self) -> float:
        """Of the stage that an earlier start was in when it ended: up to the last file that it wrote."""
        began = self.state.pop("stage_began", None)
        if began is None:
            return 0.0
        stamps = [path.stat().st_mtime for path in self.folder.rglob("*") if path.is_file()]
        return max(0.0, max(stamps, default=began) - began) / 60

    def minutes(self) -> float:
        """Spent so far, over all starts."""
        return self.spent_before + (time.monotonic() - self.began) / 60

    def minutes_left(self) -> float:
        """Of --hours, less what the end is expected to take; inf without a limit."""
        return (1 - RESERVED) * 60 * self.args.hours - self.minutes() if self.args.hours else math.inf

    def minutes_of(self, key: str) -> float:
        """What a line's run takes, over all of its starts."""
        line = next(line for line in self.state["stages"] if line["key"] == key)
        return run_minutes(self.folder / line["run"])

    def forecast_minutes(self, flags: list[str]) -> float:
        """What a run is expected to take; 0 without a limit, since nobody asks."""
        return dry_run_minutes(flags, self.env) if self.args.hours else 0.0

    # -- runs

    @property
    def env(self) -> dict[str, str]:
        """Of a process that runs alone: it sees the first of --gpus."""
        first = {"CUDA_VISIBLE_DEVICES": self.args.gpus.split(",")[0]} if self.args.gpus else {}
        return os.environ | first

    def is_trained(self, name: str) -> bool:
        """Whether a run of this name is finished."""
        folder = self.folder / "runs" / name
        return (folder / "run.json").is_file() and RunRecord.read(folder).record["status"] == "finished"

    def train(self, flags: dict[str, list[str]]) -> tuple[dict[str, Path], dict[str, str]]:
        """Train what is not trained yet, one run a name. Returns the folders of the finished, and why others failed."""
        folders = {name: self.folder / "runs" / name for name in flags}
        cells = [Cell(folders[name], (*own, f"--output_dir={folders[name]}")) for name, own in flags.items()]
        failed = train_cells(cells, self.args.gpus.split(",") if self.args.gpus else [])
        return {name: folder for name, folder in folders.items() if name not in failed}, failed

    def run(self, command: list[str], name: str) -> None:
        """Run a command; what it prints goes to logs/NAME.log."""
        run_command(command, self.folder / "logs" / f"{name}.log", name, self.env)

    def model_of(self, run: Path) -> str:
        """What a run was made from, and how large it is."""
        record = RunRecord.read(run).record
        return f"{record['model']['model_name']}, {record['num_parameters'] / 1e6:.1f} M parameters"

    def runs(self) -> list[Path]:
        """Of all lines so far."""
        return [self.folder / line["run"] for line in self.state["stages"] if line["run"]]

    def best_of(self, keys: list[str]) -> dict:
        """The line with the best validation score among these."""
        best, metric = None, self.state["metric"]
        for line in (line for line in self.state["stages"] if line["key"] in keys and line["run"]):
            if best is None or is_better(line["validation"], metric, best["validation"][metric]):
                best = line
        return best

    def best_run(self) -> Path:
        """The run of the best line so far."""
        return self.folder / self.best_of([line["key"] for line in self.state["stages"]])["run"]

    # -- the lines

    def write(self, **more: float) -> None:
        """Write pipeline.json; more: what it holds until it is written again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "pipeline.json", self.state | {"minutes": self.minutes()} | more)

    def do(self, key: str, stage: Callable) -> None:
        """Run a stage, unless it is done, and enter its line or lines."""
        known = [line for line in self.known if line["stage"] == key]
        is_done = bool(known) and all(line["status"] == "done" for line in known)
        if is_done and not (self.has_new_runs and key in OF_ALL_RUNS):
            print(f"{key}: done before")
            self.state["stages"] += known
            return
        began, left = self.minutes(), f", {self.minutes_left():.1f} min left" if self.args.hours else ""
        print(f"\n== {key}{left}", flush=True)
        self.write(stage_began=time.time())
        line = {"key": key, "name": NAMES.get(key, key), "what": stage.__doc__ or "", "run": None}
        try:
            if key in self.args.skip:
                raise Skip("left out by --skip")
            found = stage(self)
            lines = found if isinstance(found, list) else [found]
        except Skip as why:
            lines = [{"status": "no time" if why.no_time else "skipped", "why": str(why)}]
        except UserError as error:
            if key in ALWAYS:
                raise
            lines = [{"status": "failed", "why": str(error)}]
        for own in lines:
            self.enter(key, line | {"status": "done", "why": "", "minutes": self.minutes() - began} | own)
        self.write()

    def enter(self, stage: str, line: dict) -> None:
        """Add a line, with the scores of its run on validation rows."""
        blank = {
            "stage": stage,
            "validation": None,
            "is_cross_fitted": False,
            "test": None,
            "test_interval": None,
        }
        line = blank | {"gain": None, "details": {}} | line
        if line["run"]:
            record = RunRecord.read(Path(line["run"])).record
            line["validation"] = record["metrics"]["validation"]
            self.has_new_runs = True
            self.state.setdefault("metric", record["metric"])
            line["run"] = str(Path(line["run"]).relative_to(self.folder))
        if line["status"] != "done":
            print(f"{line['key']}: {line['status']}: {line['why']}")
        self.state["stages"].append(line)


def run_minutes(run: Path) -> float:
    """What a run took, over all of its starts."""
    timings = RunRecord.read(run).record["timings"]
    return max(timings["total_s"], timings.get("train_s", 0.0)) / 60


def run_command(command: list[str], log: Path, name: str, env: dict[str, str]) -> None:
    """Run a command, its output into a log. Raises UserError with its last line when it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, env=env)
    if done.returncode:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{name}: {(last or ['it printed nothing'])[-1][:300]} ({log})")


def train_cells(cells: list[Cell], gpus: list[str]) -> dict[str, str]:
    """Train what is not trained yet. Returns why, by folder name, for those that failed."""
    failed, todo = {}, []
    for cell in cells:
        try:
            todo += [cell] if check_cell(cell) != "finished" else []
        except UserError as error:
            failed[cell.folder.name] = str(error)
    return failed | {folder.name: why for folder, why in train_all(todo, gpus).items()}


def dry_run_minutes(flags: list[str], env: dict[str, str]) -> float:
    """What train.py --dry_run says that a run takes."""
    command = [sys.executable, str(SCRIPT), *flags, "--dry_run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise UserError(f"train.py --dry_run: {(done.stderr.strip().splitlines() or ['failed'])[-1][:300]}")
    return json.loads(done.stdout.strip().splitlines()[-1])["dry_run"]["total_s"] / 60


def label_names(path: str, row_format: RowFormat, flag: str = "--train_data") -> tuple[list[str], bool]:
    """The label names of a file's rows, and whether a row has several. Raises UserError for bad rows."""
    bad, labels = BadRows(path), LabelColumn()
    for line, row in read_rows(path, bad, flag):
        try:
            labels.add(row_format.labels(row))
        except RowError as error:
            bad.add(line, str(error))
    bad.raise_if_any()
    return labels.finish()[0], labels.kind != "one"
