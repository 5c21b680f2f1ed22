"""One writer for each folder."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from peftly.errors import ConfigError

__all__ = ["LOCK", "folder_lock"]

LOCK = ".peftly.lock"
"""Name of the lock file. It exists while a process writes into its folder; the system releases the lock of a process
that has died."""


@contextmanager
def folder_lock(folder: Path, *, seconds: float = 0) -> Iterator[None]:
    """Hold the lock of a folder inside the block. A thread that holds it may take it again.

    Args:
        folder: existing folder.
        seconds: time to wait for another process.

    Raises:
        ConfigError: another process holds the lock; the message says which one and since when.
        OSError: the folder is not writable.
    """
    file = folder.resolve() / LOCK
    lock = FileLock(file, is_singleton=True)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise ConfigError(f"{folder} is in use by {_holder(file)}; wait until it has finished, or stop it") from None
    except OSError as error:
        if file.is_symlink() or file.is_dir():
            raise ConfigError(f"{file} is a symbolic link or a folder, not a lock file of peftly; remove it") from error
        raise
    is_outermost = lock.lock_counter == 1
    try:
        if is_outermost:
            _write_holder(file)
        yield
    finally:
        if is_outermost:
            with suppress(OSError):
                file.unlink()  # before the release: a process that waits notices it, and creates the file again
        lock.release()


def _write_holder(file: Path) -> None:
    """Write into the lock file which process holds the lock. The lock is valid without it, on a full disk."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    holder = {"process": os.getpid(), "machine": socket.gethostname(), "since": since}
    with suppress(OSError):
        file.write_text(json.dumps(holder), encoding="utf-8")


def _holder(file: Path) -> str:
    """Return a description of the process that holds a lock."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"process {int(holder['process'])} on {holder['machine']!s:.80} since {holder['since']!s:.40}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
