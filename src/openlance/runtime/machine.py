"""What runs here, and how much memory it takes, as reports say it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from openlance.config.versions import versions

M_ARENA_MAX, ARENAS = -8, 2  # the first is glibc's (malloc.h)
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 128, "LRU_CACHE_CAPACITY": 128}  # oneDNN's own, and PyTorch's for oneDNN
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What runs here, without the names of anybody."""
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.release()} {platform.machine()}", **versions()}
    found |= {"device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    found |= {"cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"gpu": card.name, "gpu_bytes": card.total_memory, "gpu_capability": f"{card.major}.{card.minor}"}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def resident() -> int | None:
    """The most bytes that this process has had in memory; None where the system does not say."""
    with suppress(OSError, AttributeError):  # Linux, where `restart_peak` can begin anew
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1])  # type: ignore[index]
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def restart_peak(device: torch.device) -> None:
    """Count the most memory from now on: of a GPU, else of the process where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        RESET.write_text("5")


def peak(device: torch.device) -> int | None:
    """The most bytes since `restart_peak`: of a GPU, else of the process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()


def steady_memory() -> None:
    """Keep a process that runs for long from growing, before it has threads or computes anything.

    On a CPU oneDNN and PyTorch's layer above it keep up to 1024 compiled kernels each, one for each convolution or
    product and shape of its inputs, of up to half a megabyte (measured): as batches and sizes vary, that takes hours to
    fill. And glibc makes up to eight arenas for each core and never gives one back: where threads come and go, each
    grows to the most that any has ever held.
    """
    for name, kernels in KERNELS.items():  # which both read once, with the first product
        os.environ.setdefault(name, str(kernels))
    with suppress(OSError, AttributeError, TypeError):  # other systems have no such function
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Hand the free pages of the heap back to the system."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
