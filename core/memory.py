"""Peak memory, and a C allocator that keeps what it frees."""

import ctypes
import platform
import resource
import sys

import torch

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


def choose_amp(choice: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of --amp auto|bf16|fp16|off on this device; None is float32 throughout.

    auto: bfloat16 where the hardware has it, float16 on older CUDA, else off.
    """
    if choice == "auto":
        if supports_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


def auto_max_tokens(device: torch.device, longest: int) -> int:
    """--max_tokens auto: padded tokens a cut, never less than the longest row.

    CPU: 1,024, where a small BERT trains fastest (measured, bench/NOTES.md): its activations stay in cache.
    CUDA: 16,384, an assumption that a base-size encoder fits 16 GiB with.
    """
    return max(16384 if device.type == "cuda" else 1024, longest)
