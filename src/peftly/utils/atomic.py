"""A folder that appears whole or not at all: where it may be, and how what is written takes its place."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peftly.errors import ConfigError

__all__ = ["check_place", "full_disk", "nearest", "whole"]


def check_place(out: Path) -> None:
    """Refuse a place where there can be no folder of ours; nothing is changed.

    Raises:
        ConfigError: it is a file or the root of all, or one may not write there.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; name a folder")
    if out == out.parent:
        raise ConfigError(f"out: {out} cannot be replaced; name a folder in it")
    place = nearest(out)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {place} is {'closed to you' if place.is_dir() else 'a file'}; choose another place")


def nearest(out: Path) -> Path:
    """Return the folder that is there already in which `out` is to be."""
    return next(folder for folder in out.parents if folder.exists())


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Give an empty folder that takes the place of `out` after the block, unless that raises.

    Raises:
        ConfigError: the disk is full, or the folder cannot be written.
    """
    missing = [folder for folder in out.parents if not folder.exists()]
    aside = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        folder = aside / "new"
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(0o666 & folder.stat().st_mode)  # safetensors gives its file to the owner alone
        _take_place(folder, out, aside / "before")
    except BaseException as error:
        _remove(aside, missing)
        if full_disk(error):
            raise ConfigError(f"out: the disk is full, and nothing was kept of {out}; make room") from error
        if isinstance(error, OSError):
            raise ConfigError(f"out: {out} was not written: {error.strerror or error}") from error
        raise
    _remove(aside, [])


def _take_place(folder: Path, out: Path, before: Path) -> None:
    """Move `folder` to `out`; what was there is kept as `before` until it has succeeded."""
    if out.exists():
        out.rename(before)
    try:
        folder.rename(out)
    except BaseException:
        if before.exists():
            before.rename(out)
        raise


def _remove(aside: Path | None, made: list[Path]) -> None:
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)
    for folder in made:
        with suppress(OSError):  # somebody else has put something there meanwhile
            folder.rmdir()


def full_disk(error: BaseException) -> bool:
    """Return whether `error` says that the disk or the user's quota is full, as Python or as Rust libraries say it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return _says_full(str(error))


def _says_full(text: str) -> bool:
    return "No space left on device" in text or "Disk quota exceeded" in text
