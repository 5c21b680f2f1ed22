"""Limits on the time and the memory of a block of code, for input that says what to compute (templates, patterns)."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["limited"]

_CHECK_SECONDS = 1.0
"""Seconds between two raised alarms, in case the block swallows one."""


class _Alarm(BaseException):
    """The time of a block is over. No Exception, since libraries catch those of the code that they call."""


@contextmanager
def limited(seconds: float, num_bytes: int | None = None) -> Iterator[None]:
    """Limit the time of the block, and the memory that it adds to the process.

    The time is limited in the main thread of a process, on systems with POSIX signals. The memory is limited on Linux,
    by an upper limit of the data of the whole process: another thread, too, may fail to allocate while the limit holds.

    Args:
        seconds: time of the block.
        num_bytes: memory that the block may add; None: no limit. The block then raises MemoryError. A library that ends
            the process when an allocation fails, as Rust code does, must not be called in the block.

    Raises:
        TimeoutError: the block took too long.
    """
    try:
        with _limited_time(seconds), _limited_memory(num_bytes):
            yield
    except _Alarm:
        raise TimeoutError(f"it took more than {seconds:g} seconds") from None


@contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    running = True

    def alarm(signum: int, frame: FrameType | None) -> None:
        if running:
            raise _Alarm

    before = signal.signal(signal.SIGALRM, alarm)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, _CHECK_SECONDS)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _limited_memory(num_bytes: int | None) -> Iterator[None]:
    statm = Path("/proc/self/statm")
    if num_bytes is None or not statm.exists():
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(statm.read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    allowed = [used + num_bytes, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_DATA, (min(allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
