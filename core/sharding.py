"""Tensors of which every rank holds a part (--shard): their parts, and the way from and to whole ones on the host.

fully_shard makes DTensors, each cut along its first dimension into as many even parts as there are ranks, the last ones
shorter or empty. Importing torch's DTensor takes most of a second, so it is known here by what it can do.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether other ranks hold the rest of it."""
    return hasattr(tensor, "full_tensor")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part, sharing its memory; the tensor itself where it is not sharded."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of it, on this rank's device; the tensor itself where it is not sharded. Cost: COMM where it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def shares_in_words(model: torch.nn.Module) -> str:
    """What this rank holds of a sharded model and what a checkpoint asks of the host, for the log."""
    trained = [param for param in model.parameters() if param.requires_grad]
    weights, parts = (sum(local(p).nbytes for p in params) for params in (model.parameters(), trained))
    return (
        f"sharded over {dist.get_world_size()} ranks: {(weights + 3 * parts) / 2**20:.0f} MiB of weights, gradients "
        "and moments on this one, and a layer at a time whole; rank 0's host holds "
        f"{3 * sum(p.numel() * p.element_size() for p in trained) / 2**20:.0f} MiB while a checkpoint is written"
    )


@torch.no_grad()
def gathered(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole tensors on rank 0's host, none on the other ranks. Every rank must call it with the same names.

    One after another, so that no device holds more than one of them whole; what has two names is sent once.

    Cost: COMM, D2H; on rank 0 host memory for all of them.
    """
    found, seen = {}, {}
    for name, value in tensors.items():
        if id(value) not in seen:
            full = whole(value.detach())  # COMM
            seen[id(value)] = full.cpu() if dist.get_rank() == 0 else None  # SYNC D2H
        found[name] = seen[id(value)]
    return found if dist.get_rank() == 0 else {}


def part_like(full: object, target: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a whole tensor, as it holds target: cut out without a word to the other ranks.

    Args:    full: a tensor of the host, or a slice of a safetensors file, of target's shape.
    Returns: a DTensor; full itself where target is not sharded.
    Cost:    H2D of the part; of a file only the part is read.
    """
    if not is_sharded(target):
        return full
    mesh, own = target.device_mesh, local(target)
    first = -(-len(target) // mesh.size()) * mesh.get_local_rank()
    part = full[first : first + len(own)].to(own.device, own.dtype) if len(own) else torch.empty_like(own)
    layout = {"run_check": False, "shape": target.shape, "stride": target.stride()}
    return type(target.data).from_local(part, mesh, target.placements, **layout)


def read_parts(path: Path, target: Callable[[str], torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, those of sharded targets as part_like gives them.

    Args: target: called with a name; None where there is none. One of another shape is read whole, for the caller to
          refuse.
    """
    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 it is no dict
            wanted = target(name)
            fits = wanted is not None and file.get_slice(name).get_shape() == list(wanted.shape)
            parted = fits and is_sharded(wanted)
            found[name] = part_like(file.get_slice(name), wanted) if parted else file.get_tensor(name)
    return found
