"""Versions, devices and caches of this machine (no secrets, no host name), and the name of the program."""

import os
import platform
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HUB_CACHE

from peftly.cache import cache_home
from peftly.utils.hardware import resolve_dtype

__all__ = ["automatic_dtype", "cache_folders", "environment", "is_main_process", "program"]

_PACKAGES = (
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
    """Return versions and hardware as JSON values."""
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_bf16": _cpu_bf16(),
        "cuda": [_cuda_device(index) for index in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
    }


def is_main_process() -> bool:
    """Return whether this is the main one of the processes that were launched together, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def automatic_dtype() -> str:
    """Return the name of the dtype that `dtype: auto` selects on this machine."""
    return str(resolve_dtype()).removeprefix("torch.")


def cache_folders() -> dict[str, dict[str, Any]]:
    """Return path and size of the folders that cache bases and data; the size of a missing folder is None."""
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    folders = {
        "peftly": cache_home(),
        "hub": Path(HF_HUB_CACHE),
        "datasets": Path(os.environ.get("HF_DATASETS_CACHE", f"{home}/datasets")),
    }
    return {name: {"path": str(path), "bytes": _cache_bytes(path)} for name, path in folders.items()}


def program() -> str:
    """Return the text that starts peftly in this shell: its name, or its path if no activated environment has it."""
    if shutil.which("peftly"):
        return "peftly"
    script = Path(sys.executable).with_name("peftly")
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m peftly"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


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
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _cpu_bf16() -> str | None:
    """Return the bf16 multiplication instructions of this CPU, or None: bf16 is slower than fp32 without them."""
    capabilities = torch.cpu.get_capabilities()
    return ", ".join(name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)) or None


def _cuda_device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {"name": properties.name, "bytes": properties.total_memory}


def _cache_bytes(folder: Path) -> int | None:
    if not folder.is_dir():
        return None
    # A Hub cache links its snapshots to its blobs: links would count every file twice.
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
