"""Output folders: the check that every command makes before it writes, the mark of peftly, and writing a whole folder.

The mark is the file `.peftly.json` with the kind of the output and the names of its files. Only files in a folder with
this mark are replaced.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftly.errors import ConfigError
from peftly.utils.atomic import is_disk_full, json_text
from peftly.utils.file_changes import write_new_file
from peftly.utils.locks import LOCK
from peftly.utils.transactions import is_scratch, recover, replacing_files

__all__ = ["MARK", "check_output_folder", "mark_text", "nearest_existing_parent", "read_mark", "write_folder"]

MARK = ".peftly.json"
"""Name of the file that marks a folder as output of peftly."""


def mark_text(kind: str, files: Iterable[str] = (), **facts: Any) -> str:
    """Return the content of a mark.

    Args:
        kind: description of the output with its article: "a run", "an export".
        files: files of the output, as relative POSIX paths, which a later command may replace.
        facts: further JSON values.
    """
    return json_text({"kind": kind, "files": sorted(files), **facts})


def read_mark(folder: Path) -> dict[str, Any]:
    """Return the content of the mark of a folder; empty if it has none, or one that cannot be read."""
    file = folder / MARK
    try:
        mark = json.loads(file.read_text(encoding="utf-8")) if not file.is_symlink() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return mark if isinstance(mark, dict) else {}


def check_output_folder(
    path: Path,
    *,
    kind: str,
    overwrite: bool,
    is_ours: Callable[[Path], bool] | None = None,
    may_hold: Callable[[Path], bool] | None = None,
    in_place: bool = False,
    hint: str = "",
) -> None:
    """Refuse an output folder that must not or cannot be written. An interrupted replacement in it is completed first.

    A missing or empty folder is always accepted, and a folder with earlier output of the same kind if `overwrite` is
    set.

    Args:
        path: output folder.
        kind: description of the output with its article, for messages and for the mark: "a run", "an export".
        overwrite: whether earlier output is replaced.
        is_ours: predicate of a folder: the folder holds earlier output of this kind. None: it has a mark of this kind.
        may_hold: predicate of a file or folder inside `path`: earlier output may contain it. None: the mark names it.
        in_place: whether files of other origin may stand beside the output, since the command leaves them alone.
        hint: further advice at the end of the message about earlier output.

    Raises:
        ConfigError: `path` is a file or the root folder, is not writable, holds other files, or holds earlier output
            and `overwrite` is not set.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"out: {path} is a file; name a folder")
    if path.resolve() == path.resolve().parent:
        raise ConfigError(f"out: {path} cannot be replaced; name a folder in it")
    folder = path if path.is_dir() else nearest_existing_parent(path)
    if not folder.is_dir():
        raise ConfigError(f"out: {folder} is a file; choose another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"out: {folder} is not writable; choose another folder")
    recover(path)
    entries = sorted(path.iterdir(), key=lambda entry: entry.name) if path.is_dir() else []
    entries = [entry for entry in entries if entry.name != LOCK and not is_scratch(entry.name)]
    if not entries:
        return
    mark = read_mark(path)
    if not (mark.get("kind") == kind if is_ours is None else is_ours(path)):
        raise ConfigError(f"out: {path} holds files that are not part of {kind}; choose a new or empty folder")
    names = {MARK, *(str(name).split("/")[0] for name in mark.get("files") or ())}
    foreign = [entry.name for entry in entries if not (entry.name in names if may_hold is None else may_hold(entry))]
    if foreign and not in_place:
        raise ConfigError(
            f"out: {path} holds {foreign[0]}, which is not part of {kind}; move it, or choose another folder"
        )
    if not overwrite:
        raise ConfigError(f"out: {path} holds {kind}; choose another folder, or replace it with --overwrite{hint}")


@contextmanager
def write_folder(path: Path, *, kind: str, markers: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty folder, whose files replace the earlier output in `path` at the end of the block.

    After an error, and after a kill, `path` holds the earlier output or the new one, complete.

    Args:
        path: output folder, which passed `check_output_folder`.
        kind: description of the output, for its mark.
        markers: see `replacing_files`.

    Raises:
        ConfigError: the disk is full, the folder cannot be written, or another process writes into it.
    """
    try:
        with replacing_files(path, deletes=_marked_files(path, kind), markers=markers) as scratch:
            yield scratch
            names = [file.relative_to(scratch).as_posix() for file in scratch.rglob("*") if file.is_file()]
            write_new_file(scratch / MARK, mark_text(kind, names).encode("utf-8"))
    except BaseException as error:
        if is_disk_full(error):
            raise ConfigError(f"out: the disk is full and {path} was not written; free some space") from error
        if isinstance(error, OSError):
            raise ConfigError(f"out: {path} was not written: {error.strerror or error}") from error
        raise


def _marked_files(path: Path, kind: str) -> Iterator[str]:
    """Yield the files that the mark of a folder names, if it is of this kind."""
    mark = read_mark(path)
    if mark.get("kind") == kind:
        yield from (MARK, *map(str, mark.get("files") or ()))


def nearest_existing_parent(path: Path) -> Path:
    """Return the closest parent of `path` that exists (it may be a file)."""
    return next(parent for parent in path.absolute().parents if parent.exists())
