"""What the tests of whole runs share: reading a run folder, changing flags, starting several ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from core.batches import Cut, packed_cut, padded_cut

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


def cut_of(rows: list, packed: bool, numbers=None, labels=None, pad_id: int = 0, pairs=None) -> Cut:
    """A cut of token rows on the host; numbers: the rows' in their file, by default 0, 1, ..."""
    ids = [np.asarray(row, np.int64) for row in rows]
    numbers = np.arange(len(rows)) if numbers is None else np.asarray(numbers)
    pairs = np.zeros(len(rows), np.int64) if pairs is None else np.asarray(pairs)
    labels = None if labels is None else np.asarray(labels)
    if packed:
        return packed_cut(ids, pairs, numbers, labels)
    return padded_cut(ids, pairs, numbers, labels, pad_id)


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
