"""What an exact resume needs: weights, optimiser, scaler and the loop's own numbers, as safetensors and JSON.

checkpoint/step_00000120/ is renamed into place when whole; only then does the one before the last go. Each holds the
sha256 of its files: a torn one is known, and the one before it is used. No generator state is in it: every step is
seeded by (seed, step, rank). No data position either: the plan is a function of the step.
"""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from core.errors import UserError
from core.files import as_os_error, save_tensors, sync_folder, sync_path, write_json
from core.rows import file_sha256
from core.sharding import is_sharded, read_parts

SUMS = "sha256.json"
KEPT = 2  # checkpoints: the last one, and one in case it is damaged


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    averages: dict[str, torch.Tensor] | None = None,
    whole: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the checkpoint of a finished step and drop all but the one before it.

    Args:    step: optimiser steps done | state: JSON-safe numbers of the loop (best metric, patience, sums since
             the last log, the GradScaler's state) | averages: of the weights, where there are any (core/ema.py) |
             whole: checkpoint_tensors of all three, gathered, where this rank has no more than a part of each.
    Raises:  OSError when it cannot be written; the previous checkpoint is whole then.
    Cost:    D2H of model and optimiser state.
    """
    final = folder / f"step_{step:08d}"
    part = folder / f".part_{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tensors = checkpoint_tensors(model, optimizer, averages) if whole is None else whole
        files = {"model": {}, "optimizer": {}} | ({"averages": {}} if averages else {})
        for name, value in tensors.items():
            file, _, key = name.partition("/")
            files[file][key] = value
        for file, held in files.items():
            save_tensors(held, part / f"{file}.safetensors")
        write_json(part / "state.json", {"step": step, **state})
        write_sums(part)
        sync_folder(part)
        shutil.rmtree(final, ignore_errors=True)  # the same step again, after a resume from before it
        os.rename(part, final)
        sync_path(folder)
    except SafetensorError as error:
        raise as_os_error(error, part) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for other in folder.glob("step_*"):
        if other.name > final.name:  # of a later step, before a resume from an earlier checkpoint
            shutil.rmtree(other, ignore_errors=True)
    for other in sorted(folder.glob("step_*"))[:-KEPT]:
        shutil.rmtree(other, ignore_errors=True)


def checkpoint_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, averages: dict[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """What a checkpoint's files hold, as "file/name"; nothing is copied, so a sharded tensor stays one."""
    found = {f"model/{name}": value for name, value in trained_state(model).items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            value = value if torch.is_tensor(value) else torch.tensor(value)
            found[f"optimizer/{index}.{name}"] = value
    return found | {f"averages/{name}": value for name, value in (averages or {}).items()}


def write_sums(path: Path) -> None:
    """Write the sha256 of each file of a checkpoint beside them."""
    sums = {file.name: file_sha256(file) for file in sorted(path.iterdir()) if file.name != SUMS}
    write_json(path / SUMS, sums)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: buffers and parameters but for frozen ones, which are built again from the same base."""
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    state = unshared(model.state_dict(keep_vars=True))
    return {name: value for name, value in state.items() if name not in frozen}


def unshared(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the second names of tied tensors, which safetensors refuses."""
    seen, out = set(), {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        key = id(value) if is_sharded(value) else key  # by the object, as on every rank: a part can be empty
        if key not in seen:
            seen.add(key)
            out[name] = value
    return out


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's checkpoint/ folder, None when there is none; a damaged one is told.

    Raises: UserError when there are some and none of them is whole.
    Cost:   reads the checkpoint's files once, for their sha256.
    """
    found = sorted(folder.glob("step_*"), reverse=True)
    for path in found:
        fault = damage(path)
        if not fault:
            return path
        print(
            f"{path}: is damaged ({fault}); the checkpoint before it is used, if there is one",
            file=sys.stderr,
        )
    if found:
        raise UserError(
            f"{folder}: none of its {len(found)} checkpoints is whole; remove the folder to begin the run anew"
        )
    return None


def damage(path: Path) -> str:
    """What is wrong with a checkpoint, "" for a whole one."""
    try:
        sums = json.loads((path / SUMS).read_text(encoding="utf-8"))
        if "state.json" not in sums:
            return f"{SUMS} does not name state.json"
        for name, wanted in sums.items():
            if file_sha256(path / name) != wanted:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def oldest_step(folder: Path) -> int:
    """The step of the oldest checkpoint that is kept: what a run may have to go on from. 0 without any."""
    return min((int(path.name.removeprefix("step_")) for path in folder.glob("step_*")), default=0)


def own_part(sums: list[float], rank: int, world: int) -> float:
    """A rank's part of numbers summed on each rank: its own, or with another number of ranks all of it on rank 0."""
    return sums[rank] if len(sums) == world else math.fsum(sums) * (rank == 0)


def read_state(path: Path) -> dict:
    """The loop's own numbers of a checkpoint."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimiser state into a model and optimiser built the same way.

    Raises: UserError when names or shapes do not fit.
    """
    wanted = trained_state(model)
    weights = read_parts(path / "model.safetensors", wanted.get)
    odd = set(weights) ^ set(wanted) or {name for name in wanted if wanted[name].shape != weights[name].shape}
    if odd:
        raise UserError(f"{path}: is of another model: {sorted(odd)[0]} does not fit")
    model.load_state_dict(weights, strict=False)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state: dict[int, dict] = {}
    moments = read_parts(path / "optimizer.safetensors", lambda name: params[int(name.split(".")[0])])
    for name, value in moments.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
