"""What an exact resume needs: weights, optimiser, scaler and the loop's own numbers, as safetensors and JSON.

checkpoint/step_00000120/ is renamed into place when whole; only then do the older ones go. No generator state is
in it: every step is seeded by (seed, step, rank). No data position either: the plan is a function of the step.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from core.errors import UserError
from core.files import as_os_error, save_tensors, sync_folder, write_json


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict,
    averages: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the checkpoint of a finished step and drop the older ones.

    Args:    step: optimiser steps done | state: JSON-safe numbers of the loop (best metric, patience, sums since
             the last log, the GradScaler's state) | averages: of the weights, where there are any (core/ema.py).
    Raises:  OSError when it cannot be written; the previous checkpoint is whole then.
    Cost:    D2H of model and optimiser state.
    """
    final = folder / f"step_{step:08d}"
    part = folder / f".part_{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_tensors(trained_state(model), part / "model.safetensors")
        tensors = {}
        for index, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                tensors[f"{index}.{name}"] = value if torch.is_tensor(value) else torch.tensor(value)
        save_tensors(tensors, part / "optimizer.safetensors")
        if averages:
            save_tensors(averages, part / "averages.safetensors")
        write_json(part / "state.json", {"step": step, **state})
        sync_folder(part)
        shutil.rmtree(final, ignore_errors=True)  # the same step again, after a resume from before it
        os.rename(part, final)
    except SafetensorError as error:
        raise as_os_error(error, part) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for other in folder.glob("*step_*"):
        if other.name != final.name:
            shutil.rmtree(other, ignore_errors=True)


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: buffers and parameters but for frozen ones, which are built again from the same base."""
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    return {name: value for name, value in unshared(model.state_dict()).items() if name not in frozen}


def unshared(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the second names of tied tensors, which safetensors refuses."""
    seen, out = set(), {}
    for name, value in state.items():
        key = (value.data_ptr(), value.shape, value.stride()) if value.numel() else name
        if key not in seen:
            seen.add(key)
            out[name] = value
    return out


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a run's checkpoint/ folder, None when there is none."""
    return max(folder.glob("step_*"), default=None, key=lambda path: path.name)


def read_state(path: Path) -> dict:
    """The loop's own numbers of a checkpoint."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimiser state into a model and optimiser built the same way.

    Raises: UserError when names or shapes do not fit.
    """
    weights = load_file(path / "model.safetensors")
    wanted = trained_state(model)
    odd = set(weights) ^ set(wanted) or {name for name in wanted if wanted[name].shape != weights[name].shape}
    if odd:
        raise UserError(f"{path}: is of another model: {sorted(odd)[0]} does not fit")
    model.load_state_dict(weights, strict=False)
    state: dict[int, dict] = {}
    for name, value in load_file(path / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
