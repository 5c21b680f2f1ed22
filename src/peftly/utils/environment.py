"""What a run ran on (versions, devices, caches; no secrets and no host name), and how peftly is called there."""

import os
import platform
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftly.utils.hardware import resolve_dtype

__all__ = ["automatic_dtype", "cache_folders", "cache_home", "environment", "program"]

PACKAGES = (
    "peftly",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
    "bitsandbytes",
)


def environment() -> dict[str, Any]:
    """Return versions and hardware as plain JSON values."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_bf16": _cpu_bf16(),
        "cuda": [_cuda_device(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
    }


def automatic_dtype() -> str:
    """Return what `dtype: auto` means on this machine."""
    return str(resolve_dtype()).removeprefix("torch.")


def cache_folders() -> dict[str, dict[str, Any]]:
    """Return where bases and data are kept, and how many bytes each place holds (None: it does not exist)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    folders = {
        "peftly": cache_home(),
        "hub": Path(HF_HUB_CACHE),
        "datasets": Path(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets")),
    }
    return {name: {"path": str(path), "bytes": _bytes_in(path)} for name, path in folders.items()}


def program() -> str:
    """Return what to type in front of a command of peftly here: its path, where no activated environment has it."""
    if shutil.which("peftly"):
        return "peftly"
    beside = Path(sys.executable).with_name("peftly")
    if not beside.is_file():
        return f"{shlex.quote(sys.executable)} -m peftly"
    below = beside.is_relative_to(Path.cwd())
    return shlex.quote(str(beside.relative_to(Path.cwd()) if below else beside))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _cpu_bf16() -> str | None:
    """Return the instructions that multiply bf16 on this CPU, or None: there bf16 is slower than fp32."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return ", ".join(name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)) or None


def _cuda_device(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {"name": properties.name, "bytes": properties.total_memory}


def _bytes_in(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    # A hub cache links its snapshots to its blobs: counting links would count each file twice.
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def cache_home() -> Path:
    """Return the folder that peftly keeps fetched bases in: `$PEFTLY_HOME`, or the user's cache."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("PEFTLY_HOME") or user_cache_dir("peftly")).expanduser()
