"""Files and folders that appear complete or not at all."""

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from peftly.errors import ConfigError

__all__ = [
    "folder_bytes",
    "is_disk_full",
    "json_values",
    "says_disk_full",
    "write_folder",
    "write_json",
    "write_text",
]


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder, which replaces `path` at the end of the block unless the block raises.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & folder.stat().st_mode)  # safetensors lets only the owner read its files
        _replace(path, folder, backup=scratch / "before")
    except BaseException as error:
        _remove(scratch, missing)
        if is_disk_full(error):
            raise ConfigError(f"out: the disk is full and {path} was not written; free some space") from error
        if isinstance(error, OSError):
            raise ConfigError(f"out: {path} was not written: {error.strerror or error}") from error
        raise
    _remove(scratch, [])


def _replace(path: Path, folder: Path, *, backup: Path) -> None:
    """Move `folder` to `path`. If that fails, the earlier content of `path` is restored from `backup`."""
    if path.exists():
        path.rename(backup)
    try:
        folder.rename(path)
    except BaseException:
        if backup.exists():
            backup.rename(path)
        raise


def _remove(scratch: Path | None, created: list[Path]) -> None:
    """Delete the scratch folder, and the created parents that are empty."""
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    for folder in created:
        with suppress(OSError):  # another process may have written into the folder
            folder.rmdir()


def write_text(file: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    scratch = file.with_name(f".{file.name}-new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(file)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON object, complete or not at all."""
    write_text(file, json.dumps(json_values(content), ensure_ascii=False, indent=1) + "\n")


def json_values(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with the types of JSON: tuples become lists; infinity and NaN, which JSON lacks, become None."""
    values: dict[str, Any] = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return values


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files below a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of Python or of a Rust library reports a full disk or an exhausted quota."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return says_disk_full(str(error))


def says_disk_full(text: str) -> bool:
    """Return whether an error message reports a full disk or an exhausted quota."""
    return "No space left on device" in text or "Disk quota exceeded" in text
