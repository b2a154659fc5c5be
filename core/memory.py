"""Peak and free memory, and a C allocator that keeps what it frees."""

import contextlib
import ctypes
import gc
import os
import platform
import re
import resource
import sys
from pathlib import Path

import torch

from core.errors import UserError

# glibc's mallopt parameters (malloc.h), and the largest mmap threshold it accepts (HEAP_MAX_SIZE / 2)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, LARGEST_THRESHOLD = -1, -2, -3, 32 * 2**20


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of handing it back to the system: on CPU a step frees and takes
    hundreds of MiB, and each page given back costs a fault when it is taken again. Measured in bench/NOTES.md.

    Returns: whether it took effect (Linux with glibc).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(name, value)
        for name, value in (
            (M_MMAP_THRESHOLD, LARGEST_THRESHOLD),
            (M_TRIM_THRESHOLD, 2**31 - 1),
            (M_TOP_PAD, 64 * 2**20),
        )
    )


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process so far, as log fields.

    Returns: mem/peak_mib: CUDA's allocator, else the process's resident set; CUDA adds mem/reserved_mib and
             mem/alloc_retries.
    """
    if device.type == "cuda":
        stats = torch.cuda.memory_stats(device)
        return {
            "mem/peak_mib": stats["allocated_bytes.all.peak"] / 2**20,
            "mem/reserved_mib": stats["reserved_bytes.all.peak"] / 2**20,
            "mem/alloc_retries": stats["num_alloc_retries"],
        }
    scale = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB elsewhere
    return {"mem/peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are done in hardware: Ampere and newer; CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def choose_amp(
    choice: str, device: torch.device, architecture: str = "bert", force_fp16: bool = False
) -> torch.dtype | None:
    """The autocast type of --amp auto|bf16|fp16|off on this device; None is float32 throughout.

    auto: bfloat16 where the hardware has it, float16 on older CUDA (not for T5), else off.
    Raises: UserError for T5 in float16, unless it is forced.
    """
    if architecture == "t5" and choice == "fp16" and not force_fp16:
        raise UserError(
            "--amp fp16: T5's activations overflow float16; use --amp bf16 or off, or add --force_fp16 to try it"
        )
    if choice == "auto":
        if supports_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" and architecture != "t5" else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


def choose_device(name: str | None) -> torch.device:
    """The device that --device names; None: a GPU where there is one. Raises UserError for one that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        is_good = device.type in ("cpu", "cuda", "mps")
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):  # by the kind of device
        is_good = False
    if not is_good:
        raise UserError(
            f"--device {name[:60]!r}: there is no such device here; expected cpu, cuda, cuda:1, ..."
        )
    return device


def auto_max_tokens(device: torch.device, longest: int) -> int:
    """Tokens a cut for prediction, which probes nothing; never less than the longest row.

    CPU: 4,096, from where a small BERT gets no faster (measured, bench/NOTES.md). CUDA: 65,536, forward alone: an
    assumption that a base-size encoder fits 16 GiB with; predict.py halves it where memory ends.
    """
    return max(65536 if device.type == "cuda" else 4096, longest)


def release_cached(device: torch.device) -> None:
    """Hand back what the allocator keeps, after memory has ended: it is in pieces of the wrong size."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Start the peak of peak_bytes anew: CUDA's, and on Linux that of the resident set."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.path.exists("/proc/self/clear_refs"):
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak since reset_peak: CUDA's allocator, else the resident set (where it cannot be reset: of the
    whole process so far). Cost: SYNC on CUDA, since what is still to run can allocate."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or round(peak_memory(device)["mem/peak_mib"] * 2**20)


def memory_limit(device: torch.device, share: float, processes: int = 1) -> float:
    """Bytes that this process may reach: what it has, and its share of what is free.

    Args: processes: of this machine that take from the same host memory.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.memory_allocated(device) + share * (free + cached)
    return (_status("VmRSS") or 0) + share * available_host_memory() / processes


def available_host_memory() -> float:
    """Bytes of host memory that can still be taken: the system's and the control group's; inf where unknown."""
    found = [float("inf")]
    with contextlib.suppress(OSError, AttributeError):
        text = Path("/proc/meminfo").read_text()
        found.append(1024.0 * int(re.search(r"MemAvailable:\s+(\d+)", text).group(1)))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        found.append(
            float((group / "memory.max").read_text()) - float((group / "memory.current").read_text())
        )
    return max(0.0, min(found))


def _status(name: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none."""
    with contextlib.suppress(OSError, AttributeError):
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))
    return None
