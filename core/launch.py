"""How every loop starts: ranks, a run folder, errors in one line, number formats."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch

from core.dist import init_dist, on_main, seed_everything
from core.errors import UserError, disk_errors
from core.interrupt import stop_requests
from core.lock import unlock_runs
from core.memory import choose_amp, keep_freed_memory, peak_memory
from core.runs import run_folder


def launch(fit: Callable, args: Namespace, on_eval: Callable | None) -> dict:
    """Join the other ranks, name the run folder, call fit(args, folder, rank, world, device, on_eval).

    Raises: UserError for a full disk, and where memory ends outside of a micro-batch.
    """
    rank, world, device = init_dist()
    folder = Path(on_main(run_folder, args))
    try:
        with disk_errors(folder, "--output_dir"), stop_requests():
            return fit(args, folder, rank, world, device, on_eval)
    except torch.OutOfMemoryError as error:  # of weights, gradients, optimiser state
        raise UserError(
            f"out of memory on {device} after a peak of {peak_memory(device)['mem/peak_mib']:.0f} MiB: the model does "
            f"not fit; take a smaller one, or a GPU to itself ({str(error)[:200]})",
            is_own=True,
        ) from None
    finally:
        unlock_runs()


def set_up_numbers(args: Namespace, device: torch.device, architecture: str) -> torch.dtype | None:
    """Seed the generators, set how float32 products are taken and whether all is repeatable, keep freed memory.

    Returns: the type of autocast, None for float32 throughout.
    Raises:  UserError for an --amp that the device or the architecture does not have, or --compile on the CPU.
    """
    if args.compile == "on" and device.type != "cuda":
        raise UserError(
            f"--compile on: not on {device.type}: nothing to gain there (bench/NOTES.md); drop the flag"
        )
    keep_freed_memory()
    amp_dtype = choose_amp(args.amp, device, architecture, args.force_fp16)
    tf32 = amp_dtype is not None and not args.deterministic
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
    torch.use_deterministic_algorithms(args.deterministic)
    seed_everything(args.seed)
    return amp_dtype
