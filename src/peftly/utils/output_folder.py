"""The check of an output folder, which every command makes before it writes anything."""

import os
from collections.abc import Callable
from pathlib import Path

from peftly.errors import ConfigError

__all__ = ["check_output_folder", "nearest_existing_parent"]


def check_output_folder(
    path: Path,
    *,
    kind: str,
    is_ours: Callable[[Path], bool],
    overwrite: bool,
    may_hold: Callable[[Path], bool] = lambda _: True,
    in_place: bool = False,
    hint: str = "",
) -> None:
    """Refuse an output folder that must not or cannot be written. Nothing on disk is changed.

    A missing or empty folder is always accepted, and a folder with earlier output of the same kind if `overwrite` is
    set.

    Args:
        path: output folder.
        kind: description of the output with its article, for messages: "a run", "an export".
        is_ours: predicate of a folder: the folder holds earlier output of this kind.
        overwrite: whether earlier output is replaced.
        may_hold: predicate of a file or folder inside `path`: earlier output may contain it. By default files of
            other origin are accepted beside earlier output, for commands that leave them alone.
        in_place: whether files are written into an existing folder. Otherwise a new folder replaces it, which needs a
            writable parent.
        hint: further advice at the end of the message about earlier output.

    Raises:
        ConfigError: `path` is a file or the root folder, is not writable, holds other files, or holds earlier output
            and `overwrite` is not set.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"out: {path} is a file; name a folder")
    if path.resolve() == path.resolve().parent:
        raise ConfigError(f"out: {path} cannot be replaced; name a folder in it")
    folder = path if in_place and path.is_dir() else nearest_existing_parent(path)
    if not folder.is_dir():
        raise ConfigError(f"out: {folder} is a file; choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {folder} is not writable; choose another folder")
    entries = sorted(path.iterdir(), key=lambda entry: entry.name) if path.is_dir() else []
    if not entries:
        return
    if not is_ours(path):
        raise ConfigError(f"out: {path} holds files that are not part of {kind}; choose a new or empty folder")
    foreign = [entry.name for entry in entries if not may_hold(entry)]
    if foreign:
        raise ConfigError(
            f"out: {path} holds {foreign[0]}, which is not part of {kind}; move it, or choose another folder"
        )
    if not overwrite:
        raise ConfigError(f"out: {path} holds {kind}; choose another folder, or replace it with --overwrite{hint}")


def nearest_existing_parent(path: Path) -> Path:
    """Return the closest parent of `path` that exists (it may be a file)."""
    return next(parent for parent in path.absolute().parents if parent.exists())
