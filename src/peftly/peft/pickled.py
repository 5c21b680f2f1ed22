"""Adapters whose weights are a pickle, `adapter_model.bin`, as PEFT wrote them until 2023."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from peftly.adapters import CONFIG, TENSORS
from peftly.exporting import convert

__all__ = ["PICKLE", "in_safetensors"]

PICKLE = "adapter_model.bin"


def in_safetensors(folder: Path) -> Path:
    """Return the folder of an adapter, or a copy with its weights in safetensors if they are a pickle.

    No code in the pickle is run. The copy exists until the process ends.

    Raises:
        AdapterError: the pickle is damaged or holds code.
    """
    pickle = folder / PICKLE
    if (folder / TENSORS).is_file() or not pickle.is_file() or not (folder / CONFIG).is_file():
        return folder
    changed = max((folder / name).stat().st_mtime_ns for name in (CONFIG, PICKLE))
    return Path(_converted(folder.resolve(), changed).name) / folder.resolve().name


@cache
def _converted(folder: Path, changed: int) -> TemporaryDirectory[str]:
    """Convert an adapter, once for each time at which its files were changed."""
    target: TemporaryDirectory[str] = TemporaryDirectory(prefix="peftly-")
    convert(folder, Path(target.name) / folder.name)
    return target
