"""The changes that peftly makes on a disk. Each kind of change is one function here.

Every function first calls `before_change`, which does nothing. Tests replace it to end the process before a change, to
report a full disk, or to record the order of the changes. No function writes through a symbolic link, and the modes of
new files and folders follow the umask.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "append",
    "before_change",
    "delete_file",
    "delete_folder",
    "make_folder",
    "move",
    "scratch_name",
    "sync",
    "truncate",
    "write_new_file",
    "write_tensors",
]

SCRATCH = ".peftly-new-"
"""Beginning of the names of files and folders that are being written."""

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def before_change(change: str, path: Path) -> None:
    """Do nothing. Tests replace this function.

    Args:
        change: name of the function that is about to change the disk.
        path: file or folder that will be changed.
    """


def scratch_name() -> str:
    """Return a new random name for a file or folder that is being written."""
    return f"{SCRATCH}{secrets.token_hex(8)}"


def make_folder(path: Path) -> None:
    """Create a folder and its parents, unless they exist, and wait until their names are on the disk."""
    if path.is_dir():
        return
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    before_change("make_folder", path)
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def write_new_file(path: Path, content: bytes = b"") -> None:
    """Write a file that does not exist yet, and wait until its content is on the disk."""
    before_change("write_new_file", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that does not exist yet, and wait until its content is on the disk.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    write_new_file(path)
    mode = path.stat().st_mode  # safetensors sets the mode of a private file
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:
        text = str(error)
        number = errno.ENOSPC if "No space left" in text else errno.EDQUOT if "quota" in text else errno.EIO
        raise OSError(number, os.strerror(number) if number != errno.EIO else text, str(path)) from error
    path.chmod(mode)
    sync(path)


def append(path: Path, content: bytes) -> None:
    """Append bytes to a file, which is created if it does not exist."""
    before_change("append", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "ab") as file:
        file.write(content)


def truncate(path: Path, size: int) -> None:
    """Cut a file to `size` bytes."""
    before_change("truncate", path)
    descriptor = os.open(path, os.O_WRONLY | _NOFOLLOW)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder. A file of the name `target` is replaced in the same instant."""
    before_change("move", target)
    source.replace(target)


def delete_file(path: Path) -> None:
    """Delete a file or a symbolic link, if it exists."""
    if os.path.lexists(path):
        before_change("delete_file", path)
        path.unlink(missing_ok=True)


def delete_folder(path: Path) -> None:
    """Delete a folder with its content, as far as that is possible. A symbolic link is deleted, not its target."""
    if not path.is_dir() or path.is_symlink():
        with suppress(OSError):
            delete_file(path)
    else:
        before_change("delete_folder", path)
        shutil.rmtree(path, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of the files in a folder, is on the disk."""
    before_change("sync", path)
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)
