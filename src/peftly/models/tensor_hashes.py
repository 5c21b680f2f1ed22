"""Hashes of tensors, in the memory of a model or in safetensors files, computed by all cores and cached."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from peftly.cache import cache_home

__all__ = ["FileIdentity", "file_identity", "guard_of", "hashes_in_files", "hashes_in_memory", "kind_of"]

CACHED_BYTES = 1 << 25
"""Hashes of smaller files are not cached on disk: they are computed faster than a file is found."""

SETTLED_SECONDS = 2.0
"""Hashes of files that changed more recently are not cached on disk: clocks of file systems are coarse, so that a
later change might leave the file's times as they are."""

_SMALL_BYTES = 1 << 22
_CHUNK = 1 << 24
_CACHE_BYTES = 1 << 24


class FileIdentity(NamedTuple):
    """Values that change when a file is replaced or written."""

    path: str
    device: int
    inode: int
    size: int
    modified: int
    changed: int


def file_identity(file: Path) -> FileIdentity:
    """Return the identity of a file, behind links.

    Raises:
        OSError: there is no such file.
    """
    path = file.resolve(strict=True)
    stat = path.stat()
    return FileIdentity(str(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def guard_of(tensor: Tensor) -> Hashable:
    """Return a value that changes when a tensor of a model is replaced, moved, converted or written in place.

    Writing through `tensor.data` goes unnoticed, as in torch itself.
    """
    version = -1 if tensor.is_inference() else tensor._version
    # A weak reference and not the address, which another tensor may get later.
    storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
    return storage, version, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def kind_of(tensor: Tensor) -> str:
    """Return the shape of a tensor as text, and before it the dtype where rounding to bfloat16 is not comparable.

    The values of fp16 were rounded to fewer bits than those of another copy in bf16 or fp32 may have.
    """
    comparable = tensor.dtype in (torch.float64, torch.float32, torch.bfloat16)
    dtype = "" if comparable else f"{str(tensor.dtype).removeprefix('torch.')} "
    return dtype + "x".join(map(str, tensor.shape))


_IN_MEMORY: WeakKeyDictionary[nn.Module, dict[Hashable, str]] = WeakKeyDictionary()


def hashes_in_memory(model: nn.Module, tensors: Mapping[str, Tensor], *, rounded: bool) -> dict[str, str]:
    """Return a hash of each of a model's tensors. A parameter or buffer is hashed once, and again when it has changed.

    Args:
        model: model of the tensors.
        tensors: tensors by their names in the model's `state_dict`, none of them on the device `meta`.
        rounded: whether floating-point numbers are rounded to bfloat16, so that copies in several dtypes are equal.
    """
    stored = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())}
    guards = {name: (guard_of(tensor), rounded) for name, tensor in tensors.items()}
    before = _IN_MEMORY.get(model, {})
    known = {guards[name]: before[guards[name]] for name in stored & guards.keys() if guards[name] in before}
    missing = {guards[name]: tensor for name, tensor in tensors.items() if guards[name] not in known}
    size = sum(tensor.nbytes for tensor in missing.values())
    hashes = _in_parallel(lambda tensor: _hash(tensor, rounded=rounded), list(missing.values()), size)
    known |= dict(zip(missing, hashes, strict=True))
    _IN_MEMORY[model] = {guards[name]: known[guards[name]] for name in stored & guards.keys()}
    return {name: known[guard] for name, guard in guards.items()}


@lru_cache(maxsize=8)
def hashes_in_files(files: tuple[FileIdentity, ...]) -> Mapping[str, Sequence[str]]:
    """Return the hashes of all tensors in safetensors files, rounded to bfloat16, by `kind_of` the tensors.

    The hashes of large files are cached on disk, so that they are computed once on a machine.

    Raises:
        OSError, SafetensorError: a file is gone or damaged.
    """
    size = sum(file.size for file in files)
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    cache = cache_home() / "hashes" / f"{key[:32]}.json"
    if size >= CACHED_BYTES and (cached := _read_cache(cache)) is not None:
        return cached
    found = _computed(files, size)
    age = time.time() - max(max(file.modified, file.changed) for file in files) / 1e9
    if size >= CACHED_BYTES and age > SETTLED_SECONDS:
        _write_cache(cache, found)
    return found


def _computed(files: Sequence[FileIdentity], size: int) -> dict[str, list[str]]:
    def hash_one(item: tuple[Any, str]) -> tuple[str, str]:
        opened, name = item
        tensor = opened.get_tensor(name)
        return kind_of(tensor), _hash(tensor, rounded=True)

    found: dict[str, list[str]] = {}
    for file in files:
        with safe_open(file.path, framework="pt") as opened:
            items = [(opened, name) for name in opened.keys()]  # noqa: SIM118 - it is no mapping
            for kind, hashed in _in_parallel(hash_one, items, size):
                found.setdefault(kind, []).append(hashed)
    return {kind: sorted(hashes) for kind, hashes in sorted(found.items())}


def _in_parallel(function: Callable[[Any], Any], items: Sequence[Any], size: int) -> list[Any]:
    """Return the results of `function` for all items, computed by all cores where the items have many bytes."""
    if size < _SMALL_BYTES:
        return [function(item) for item in items]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:  # hashlib and torch release the lock of the interpreter
        return list(pool.map(function, items))


def _hash(tensor: Tensor, *, rounded: bool) -> str:
    rounds = rounded and tensor.is_floating_point()
    sha256 = hashlib.sha256(f"{torch.bfloat16 if rounds else tensor.dtype} {tuple(tensor.shape)}".encode())
    for chunk in torch.split(tensor.detach().reshape(-1), _CHUNK):
        values = (chunk.to(torch.bfloat16) if rounds else chunk).cpu().contiguous()
        sha256.update(values.view(torch.uint8).numpy().data)
    return sha256.hexdigest()[:8]


def _read_cache(file: Path) -> dict[str, list[str]] | None:
    """Return the content of a cache file; None if there is none or it is damaged."""
    try:
        if not file.is_file() or file.stat().st_size > _CACHE_BYTES:
            return None
        checksum, _, content = file.read_text(encoding="utf-8").partition("\n")
        if checksum != _checksum(content):
            return None
        return {kind: hashes.split(" ") for kind, hashes in json.loads(content).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _write_cache(file: Path, found: Mapping[str, Sequence[str]]) -> None:
    """Write a cache file, complete or not at all; a folder that cannot be written is no error."""
    content = json.dumps({kind: " ".join(hashes) for kind, hashes in found.items()}, indent=1)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{file.stem}-", dir=file.parent) as scratch:
            written = Path(scratch) / file.name
            written.write_text(f"{_checksum(content)}\n{content}", encoding="utf-8")
            written.replace(file)


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
