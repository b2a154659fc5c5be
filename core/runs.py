"""The run folder: its name, run.json, and what the hardware and versions were."""

import os
import platform
import re
import socket
import subprocess
import sys
import time
from argparse import Namespace
from importlib import metadata
from pathlib import Path

import torch

from core.dist import on_main
from core.errors import UserError
from core.files import write_json
from core.lock import lock_run
from core.stored import ANY, NUMBER, ROW_FORMAT, read_json

TIME = "%Y-%m-%dT%H:%M:%S%z"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn", "tensorboard")
MEMBER = {"run": str, "weight": (*NUMBER, type(None)), "scores_sha256": str, ANY: ANY}
FILES = ("train_data", "val_data", "calibration_data", "test_data")
SHAPE = {  # of run.json, as far as anybody reads it
    "status": str,
    "arguments": dict.fromkeys(FILES, str) | {"seed": int, "batch_size": int, ANY: ANY},
    "data": {ANY: str},
    "model": {"label_names": [str], "multi_label": bool, "row_format": ROW_FORMAT, ANY: ANY},
    "ensemble": {"method": str, "members": [MEMBER], ANY: ANY},
    "timings": {ANY: NUMBER},
    "peak_memory": {ANY: NUMBER},
    "resumed": [ANY],
    **dict.fromkeys(("num_steps", "num_parameters", "num_trained"), int),
    ANY: ANY,
}


def run_folder(args: Namespace) -> str:
    """The folder of a run: the one to resume, --output_dir, or runs/<model>/<source>/<time>-seed<seed>.

    Raises: UserError when a new run's folder already holds a run.
    """
    if args.resume:
        return args.resume
    if args.output_dir:
        folder = Path(args.output_dir)
    else:
        loop = f"-{args.estimator}" if hasattr(args, "estimator") else ""  # a policy's, told from its start
        folder = runs_of(args) / f"{time.strftime('%Y%m%d-%H%M%S')}-seed{args.seed}{loop}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: is a file; expected a folder")
    if (folder / "run.json").exists():
        status = RunRecord.read(folder).record.get("status")
        raise UserError(f"--output_dir {folder}: holds a {status} run: give another, or --resume {folder}")
    return str(folder)


def runs_of(args: Namespace) -> Path:
    """runs/<model>/<source>, where a run without --output_dir goes."""
    path = Path(args.train_data).resolve()
    source = path.parent.name if path.stem in ("train", "training") else path.stem
    model = slug(Path(args.model_name.removeprefix("builtin:")).name)
    return Path("runs") / model / slug(source)


def launcher() -> str | None:
    """The torchrun that started this process, the same after a restart; None without one."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return run_id and f"{run_id} of process {os.getppid()} on {socket.gethostname()}"


def begun_run(args: Namespace) -> str | None:
    """The folder of the unfinished run that this process is to go on with: torchrun started it again after a fault.

    Several agents do not count their starts alike: one that only follows another's restart counts none. There the
    run's --rdzv_id decides, so that all ranks find the same.
    """
    several = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # "none": torchrun's own default
    if several and run_id == "none" and not args.output_dir:
        return None
    if not several and not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return None
    given = [Path(args.output_dir)] if args.output_dir else runs_of(args).glob("*")
    for folder in given:
        if (folder / "run.json").is_file():
            record = RunRecord.read(folder).record
            launched = record.get("launcher")
            if several:
                is_ours = str(launched).startswith(f"{run_id} of process ")
            else:
                is_ours = bool(args.output_dir) or launched == launcher()
            if is_ours and record.get("status") == "running":
                return str(folder)
    return None


def slug(name: str) -> str:
    """A name as a folder name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


def git_commit() -> str | None:
    """The commit of this checkout, with "+changes" when tracked files differ; None outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
        state = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("+changes" if state.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Python and the packages a result can hang on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device, world: int) -> dict:
    """What the run ran on."""
    about = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }
    about |= {"device": device.type, "world": world, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        about["gpu_mib"] = torch.cuda.get_device_properties(device).total_memory // 2**20
    return about


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found.group(1) if found else platform.processor()


def refuse_begun(folder: Path) -> None:
    """Raise UserError when a new run's folder holds one: of a process that had the lock a moment ago."""
    if (folder / "run.json").exists():
        raise UserError(f"--output_dir {folder}: holds a run: give another, or --resume {folder}")


class RunRecord:
    """run.json, kept up to date: `running` until `finish` says otherwise."""

    def __init__(self, folder: Path, record: dict):
        self.folder, self.record = folder, record

    @classmethod
    def open(cls, folder: Path, args: Namespace, device: torch.device, world: int, **fixed) -> "RunRecord":
        """The record of a new run, or with args.resume of the one to be continued; nothing but the lock is written yet.

        Args:   fixed: data hashes: what a resumed run must have in common with its beginning.
        Raises: UserError when a resumed run is finished or its data are others, or another process is training it.
        """
        if not args.dry_run:
            on_main(lock_run, folder)
        if args.resume:
            self = cls.read(folder)
            if self.record["status"] == "finished":
                raise UserError(f"--resume {folder}: this run is finished")
            for name, value in fixed.items():
                if self.record[name] != value:
                    told = f"{self.record[name]}, now {value}"
                    raise UserError(f"--resume {folder}: is a run of another {name}: {told}")
            start = {"time": time.strftime(TIME), "world": world}
            self.record["resumed"] = [*self.record.get("resumed", []), start]
            return self
        on_main(refuse_begun, folder)  # by one rank: it may write the record before another would look
        arguments = {
            name: value for name, value in vars(args).items() if name not in ("resume", "output_dir")
        }
        record = {
            "status": "running",
            "arguments": arguments,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "commit": git_commit(),
            "versions": versions(),
            "hardware": hardware(device, world),
            "started": time.strftime(TIME),
            "launcher": launcher(),
        }
        return cls(folder, record | fixed)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """A run's record from its folder. Raises UserError when the folder holds none, or it is not of SHAPE."""
        if not (folder / "run.json").is_file():
            what = "holds no run (no run.json)" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {what}; expected a run folder that train.py made")
        return cls(folder, read_json(folder / "run.json", SHAPE))

    def write(self, **fields) -> None:
        """Add fields and write run.json."""
        self.record.update(fields)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "run.json", self.record)
