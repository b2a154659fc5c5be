"""What the tests of whole runs share: reading a run folder, changing flags, starting several ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
VOLATILE = ("perf/", "mem/")


def weights(run: str | Path, name: str = "final_model") -> dict[str, torch.Tensor]:
    return load_file(Path(run) / name / "model.safetensors")


def logs(run: str | Path) -> list[dict]:
    """The records of a run without times and memory."""
    lines = (Path(run) / "training_logs.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(VOLATILE)} for line in lines]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bitwise equal, name by name."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def replaced(flags: list[str], **values) -> list[str]:
    """The flags with some values replaced or added."""
    out = list(flags)
    for name, value in values.items():
        if f"--{name}" in out:
            out[out.index(f"--{name}") + 1] = str(value)
        else:
            out += [f"--{name}", str(value)]
    return out


def torchrun(ranks: int, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
