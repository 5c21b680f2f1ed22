"""The device and the dtype of a model, and the memory that a process uses on a device."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from peftly.errors import BaseModelError

__all__ = [
    "available_memory",
    "memory_of_process",
    "peak_memory",
    "reset_peak_memory",
    "resolve_device",
    "resolve_dtype",
    "return_free_memory",
]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(dtype: str | torch.dtype = "auto", device: str | torch.device | None = None) -> torch.dtype:
    """Return the torch dtype for `dtype` on `device`.

    Args:
        dtype: `float32`, `bfloat16` or `float16`, as a name or a torch dtype; or `auto`: bfloat16 where the hardware
            multiplies in it (CUDA devices from Ampere on; CPUs with AVX512-BF16 or AMX, where it is four times as fast
            as float32), otherwise float32.
        device: device as `resolve_device` takes it.

    Raises:
        BaseModelError: `dtype` is none of these.
    """
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    if dtype in _DTYPES:
        return _DTYPES[str(dtype)]
    if dtype != "auto":
        raise BaseModelError(f"dtype={dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = resolved.type == "cpu" and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the torch device for `device`.

    Args:
        device: name or torch device; None: the CUDA device if there is one, otherwise the CPU. Apple's `mps` is used
            only when it is named: peftly's guarantees of equal results were not measured on it.

    Raises:
        BaseModelError: torch has no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise BaseModelError(f"device={device!r} is not a device: use cpu, cuda, cuda:1, …") from error
    if resolved.type == "cuda" and not (resolved.index or 0) < torch.cuda.device_count():
        raise BaseModelError(f"device={device!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices")
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise BaseModelError(f"device={device!r} does not exist: torch sees no Apple GPU")
    return resolved


_CGROUPS = Path("/sys/fs/cgroup")
"""Folder in which Linux shows the limits of a container."""


def available_memory() -> int:
    """Return the bytes of main memory that this process can still take, within the limit of its container.

    Memory that only caches files is free.
    """
    available = int(psutil.virtual_memory().available)
    for folder, limit, used in (
        (_CGROUPS, "memory.max", "memory.current"),
        (_CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such container, or no limit: "max"
            continue
        inactive = cached.get("total_inactive_file") or cached.get("inactive_file") or 0
        available = min(available, max(0, left + int(inactive)))
    return available


def memory_of_process() -> int:
    """Return the resident set of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def return_free_memory() -> None:
    """Return memory that nothing uses from the heap of this process to the system, where the C library is glibc.

    Blocks of other sizes find no room in the holes of a heap, which stay in memory.
    """
    if _trim is not None:
        _trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """Return glibc's function `malloc_trim`; None in other systems."""
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):
        return None
    return function


_trim = _malloc_trim()


def peak_memory(device: str | torch.device | None = None) -> int:
    """Return the largest memory of this process on `device` since its start or since `reset_peak_memory`, in bytes.

    On a GPU these are the bytes of tensors, without its context and the allocator's cache. On the CPU it is the
    resident set: Python, the libraries and the pages of mapped files count too. Where the system keeps no peak (`mps`;
    the CPU on macOS), it is the memory in use now.

    Args:
        device: device as `resolve_device` takes it.

    Raises:
        BaseModelError: torch has no such device on this machine.
    """
    resolved = resolve_device(device)
    if resolved.type in ("cuda", "xpu"):
        return torch.accelerator.max_memory_allocated(resolved)
    if resolved.type == "mps":
        return torch.mps.driver_allocated_memory()
    # Not `ru_maxrss`: it cannot be reset, and a process inherits the peak of the process that started it.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def reset_peak_memory(device: str | torch.device | None = None) -> None:
    """Begin a new measurement for `peak_memory`, which then starts from the memory in use now.

    Without effect where the system cannot do so (the CPU on other systems than Linux).

    Args:
        device: device as `resolve_device` takes it.

    Raises:
        BaseModelError: torch has no such device on this machine.
    """
    resolved = resolve_device(device)
    if resolved.type in ("cuda", "xpu"):
        torch.accelerator.reset_peak_memory_stats(resolved)
    elif resolved.type == "cpu":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
