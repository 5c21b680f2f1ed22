"""Replacement of files in a folder: all of them or none, also if the process is killed or the power fails.

New files are written to a scratch folder inside the folder. The replacement is decided in one instant, when the scratch
folder is renamed to `.peftly-commit`; a manifest in it lists the files to move and to delete. From then on it will be
completed, by this process or, after a kill, by the next one that opens the folder (`recover`). Before that instant
nothing has changed, and the scratch folder is deleted by the next process.

The replaced files may be kept in `.peftly-earlier` until the new ones have proved useful (`drop_earlier`) or useless
(`restore_earlier`).
"""

import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from peftly.errors import ConfigError
from peftly.utils import file_changes
from peftly.utils.file_changes import SCRATCH, scratch_name
from peftly.utils.locks import LOCK, folder_lock

__all__ = [
    "drop_earlier",
    "earlier_files",
    "has_earlier",
    "is_scratch",
    "recover",
    "replacing_file",
    "replacing_files",
    "restore_earlier",
]

_COMMIT = ".peftly-commit"
_EARLIER = ".peftly-earlier"
_MANIFEST = ".peftly-manifest.json"
_MAX_MANIFEST = 100_000_000
"""Largest size of a manifest in bytes."""

_WAIT = 10.0
"""Seconds to wait for a process that is moving files into a folder."""


@contextmanager
def replacing_files(
    folder: Path, *, deletes: Iterable[str] = (), markers: Collection[str] = (), keep_earlier: bool = False
) -> Iterator[Path]:
    """Yield a scratch folder whose files become files of `folder` at the end of the block, unless it raises.

    Args:
        folder: folder to change; it is created if it does not exist. Its other files stay.
        deletes: files of the folder to delete, as relative POSIX paths. Missing ones are ignored. A generator runs at
            the end of the block, while no other process can write into the folder.
        markers: file names that make a folder what it is. In the short time of the replacement, there is no file of
            these names, so that no other program reads a mixture of earlier and new files.
        keep_earlier: move the files of `deletes` to `.peftly-earlier`, unless earlier files are there already.

    Raises:
        ConfigError: another process writes into the folder, or a symbolic link leads out of it.
        OSError: a file cannot be written; `folder` is as it was before.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    file_changes.make_folder(folder)
    scratch = folder / scratch_name()
    try:
        with folder_lock(folder):
            try:
                _recover(folder)
                file_changes.make_folder(scratch)
                yield scratch
                _commit(folder, scratch, list(deletes), markers, keep_earlier=keep_earlier)
            finally:
                if os.path.lexists(scratch):
                    file_changes.delete_folder(scratch)
            _complete(folder)
    except BaseException:
        for path in created:
            with suppress(OSError):  # a folder that is not empty stays
                path.rmdir()
        raise


@contextmanager
def replacing_file(file: Path) -> Iterator[Path]:
    """Yield the path of a scratch file to write, which replaces `file` at the end of the block, unless it raises.

    Raises:
        ConfigError: another process writes into the folder.
        OSError: the file cannot be written; the earlier one is as it was.
    """
    with folder_lock(file.parent, seconds=_WAIT):
        scratch = file.with_name(scratch_name())
        try:
            yield scratch
            file_changes.move(scratch, file)
        except BaseException:
            with suppress(OSError):
                file_changes.delete_file(scratch)
            raise
        file_changes.sync(file.parent)


def recover(folder: Path) -> None:
    """Complete a replacement that was killed, and delete what killed processes were writing, and their lock file.

    Raises:
        ConfigError: another process is replacing the files, or a replacement that was killed cannot be completed here.
    """
    try:
        found = [entry.name for entry in folder.iterdir() if entry.name == LOCK or _is_unfinished(entry.name)]
    except (OSError, ValueError):  # no folder, or a name that none can have
        return
    if not found:
        return
    try:
        with folder_lock(folder, seconds=_WAIT if _COMMIT in found else 0):
            _recover(folder)
    except ConfigError:
        if _COMMIT in found:
            raise
    except OSError as error:
        if _COMMIT in found:
            raise ConfigError(
                f"{folder}: a replacement of its files was interrupted, and cannot be completed: "
                f"{error.strerror or error}"
            ) from error


def is_scratch(name: str) -> bool:
    """Return whether a file name belongs to a replacement that is not complete."""
    return name == _EARLIER or _is_unfinished(name)


def _is_unfinished(name: str) -> bool:
    return name == _COMMIT or name.startswith(SCRATCH)


def has_earlier(folder: Path) -> bool:
    """Return whether replaced files are kept in a folder."""
    return (folder / _EARLIER).is_dir() and not (folder / _EARLIER).is_symlink()


def earlier_files(folder: Path) -> list[Path]:
    """Return the replaced files that are kept in a folder."""
    if not has_earlier(folder):
        return []
    return sorted(path for path in (folder / _EARLIER).rglob("*") if path.is_symlink() or not path.is_dir())


def drop_earlier(folder: Path) -> None:
    """Delete the replaced files that are kept in a folder."""
    if has_earlier(folder):
        scratch = folder / scratch_name()
        file_changes.move(folder / _EARLIER, scratch)
        file_changes.delete_folder(scratch)


def restore_earlier(folder: Path, deletes: Iterable[str], *, markers: Collection[str]) -> None:
    """Put the replaced files back, in the place of the files that replaced them.

    Args:
        folder: folder with replaced files.
        deletes: files to delete, as relative POSIX paths.
        markers: see `replacing_files`.
    """
    with folder_lock(folder):
        _commit(folder, folder / _EARLIER, list(deletes), markers, keep_earlier=False)
        _complete(folder)


def _recover(folder: Path) -> None:
    """Complete an interrupted replacement and delete scratch files. The caller holds the lock."""
    _complete(folder)
    for entry in list(folder.iterdir()):
        if entry.name.startswith(SCRATCH):
            file_changes.delete_folder(entry)


def _commit(folder: Path, scratch: Path, deletes: list[str], markers: Collection[str], *, keep_earlier: bool) -> None:
    """Write the manifest, wait until all files are on the disk, and decide the replacement."""
    (scratch / _MANIFEST).unlink(missing_ok=True)
    files = sorted(path for path in scratch.rglob("*") if path.is_symlink() or not path.is_dir())
    names = [path.relative_to(scratch).as_posix() for path in files]
    # Markers are deleted first and moved last.
    names.sort(key=lambda name: PurePosixPath(name).name in markers)
    replaced = [name for name in names if PurePosixPath(name).name in markers]
    deletes = sorted(dict.fromkeys([*deletes, *replaced]), key=lambda name: PurePosixPath(name).name not in markers)
    manifest = {"moves": names, "deletes": deletes, "keep_earlier": keep_earlier and not has_earlier(folder)}
    for name in (*names, *deletes):
        _inside(folder, name)
    mode = scratch.stat().st_mode & 0o666
    for path in files:
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, which is not written")
        if path.stat().st_mode & 0o777 == 0o600:  # some libraries write private files
            path.chmod(mode)
        file_changes.sync(path)
    file_changes.write_new_file(scratch / _MANIFEST, json.dumps(manifest).encode())
    for path in {scratch, *(file.parent for file in files)}:
        file_changes.sync(path)
    file_changes.move(scratch, folder / _COMMIT)
    file_changes.sync(folder)


def _complete(folder: Path) -> None:
    """Carry out a replacement that was decided, from its beginning or from where it was interrupted."""
    commit = folder / _COMMIT
    if not os.path.lexists(commit):
        return
    manifest = _read_manifest(commit)
    if manifest is not None:
        moves, deletes = manifest["moves"], manifest["deletes"]
        paths = [_inside(folder, name) for name in deletes]
        new = {name: _inside(commit, name) for name in moves}
        for name, path in zip(deletes, paths, strict=True):
            # A file with a new version is deleted only as long as the new version is not in its stead.
            if os.path.lexists(path) and (name not in moves or os.path.lexists(new[name])):
                _take_away(path, _inside(folder, f"{_EARLIER}/{name}") if manifest["keep_earlier"] else None)
        for name in moves:
            paths.append(_inside(folder, name))
            if os.path.lexists(new[name]):
                file_changes.make_folder(paths[-1].parent)
                file_changes.move(new[name], paths[-1])
        for parent in {folder, *(path.parent for path in paths if path.parent.is_dir())}:
            file_changes.sync(parent)
        _remove_empty(folder, deletes)
        file_changes.delete_file(commit / _MANIFEST)
    file_changes.delete_folder(commit)
    file_changes.sync(folder)


def _take_away(path: Path, kept: Path | None) -> None:
    """Move a file to `kept`; None: delete it."""
    if kept is None:
        file_changes.delete_file(path)
        return
    file_changes.make_folder(kept.parent)
    file_changes.move(path, kept)
    file_changes.sync(kept.parent)


def _read_manifest(commit: Path) -> dict[str, Any] | None:
    """Return the manifest; None if there is none, since the replacement has been carried out."""
    file = commit / _MANIFEST
    if commit.is_symlink() or not commit.is_dir() or not os.path.lexists(file):
        return None
    try:
        if not stat.S_ISREG(file.lstat().st_mode) or file.lstat().st_size > _MAX_MANIFEST:
            raise ValueError
        manifest = json.loads(file.read_text(encoding="utf-8"))
        names = [*manifest["moves"], *manifest["deletes"]]
        if not all(isinstance(name, str) for name in names):
            raise ValueError
        return {key: manifest[key] for key in ("moves", "deletes", "keep_earlier")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{file} is damaged: the files of {commit.parent} were being replaced") from None


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    Raises:
        ConfigError: the name leads out of the folder, by itself or through a symbolic link.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or Path(*parts).is_absolute():
        raise ConfigError(f"{folder}: the file name {name!r} leads out of the folder")
    path = folder
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, through which nothing is written; remove it")
    return path / parts[-1]


def _remove_empty(folder: Path, names: Iterable[str]) -> None:
    """Remove the folders of deleted files that are empty."""
    for parent in {(folder / name).parent for name in names}:
        path = parent
        while path != folder and path.is_relative_to(folder):
            with suppress(OSError):
                path.rmdir()
            path = path.parent
