"""Failures at a chosen moment of a command: exceptions, signals, and a disk without space."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from commands import Outcome
from crash_cases import Case, Expected
from crash_checks import check, content, difference, ends, tidy
from crash_disk import CHANGES, KilledError, Record, at_file_operations, at_times, forked

from peftly.training import ProgressBar

NEED_SPACE = ("open", "os.mkdir", "os.rename")
"""File operations that fail on a full disk."""

ERRORS: dict[str, Callable[[], BaseException]] = {
    "RuntimeError": lambda: RuntimeError("of a test"),
    "EIO": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "ENOSPC": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "MemoryError": MemoryError,
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "BrokenPipeError": lambda: BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
}
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
FAILURES = (*ERRORS, *SIGNALS, "SIGINT twice")
PLACES = ("file", "backward", "callback")
_CODES = {"SystemExit": (0, 3), "BrokenPipeError": (0, 1, 2), "KeyboardInterrupt": (0, 130), "SIGINT": (0, 130)}
_CODES |= {"SIGINT twice": (0, 130), "SIGTERM": (0, 143), "SIGHUP": (0, 143), "SIGUSR1": (0, 143)}
_CLONE_NEWNS = 0x20000


def fail(failure: str) -> None:
    """Raise an error, or send this process a signal."""
    if failure in ERRORS:
        raise ERRORS[failure]()
    os.kill(os.getpid(), getattr(signal, failure.split()[0]))


def at_calls(place: str, call: Callable[[], None]) -> None:
    """From now on call a function after each backward pass, or in each call of a callback."""
    if place == "backward":
        original = Accelerator.backward

        def backward(*arguments: Any, **options: Any) -> None:
            original(*arguments, **options)
            call()

        Accelerator.backward = backward
    else:
        for name in ("on_step", "on_evaluate", "on_save"):
            setattr(ProgressBar, name, lambda *_: call())


def failed(case: Case, expected: Expected, root: Path, place: str, times: range, failure: str) -> str:
    """Let a command fail, and check what a user may run next; see `check`."""

    def run() -> Outcome:
        os.chdir(root)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        call = at_times(times, partial(fail, failure))
        # A folder that cannot be deleted although it is empty is no harm, so that is not tried.
        events = tuple(CHANGES - {"os.rmdir"}) if failure in ERRORS else None
        at_file_operations(root, call, events) if place == "file" else at_calls(place, call)
        return ends(case.command)

    try:
        outcome = forked(run)
    except KilledError as killed:
        if failure not in SIGNALS or killed.args[0] != getattr(signal, failure):
            raise
        outcome = Outcome(-1, "", "")  # the signal came before the training began
    if failure in _CODES and outcome.code >= 0:
        assert outcome.code in _CODES[failure], outcome
    elif failure in ("EIO", "ENOSPC"):
        assert outcome.code in (0, 2), outcome
    if outcome.code in (2, 130, 143):
        assert outcome.err.startswith("error: "), outcome
        assert outcome.err.count("\n") == 1, outcome
    return ended(case, expected, root, outcome)


def ended(case: Case, expected: Expected, root: Path, outcome: Outcome) -> str:
    """Check the folder of a command that has ended by itself, and what a user may run next."""
    if outcome.code == 0:
        found = content(root / "out") or {}
        missing = {name for name in expected.new if name not in found and name.startswith("step-")}
        kept = {name: value for name, value in expected.new.items() if name not in missing}
        is_noted = "cannot write" in outcome.out  # then the metrics do not name the saved adapter
        metrics = [name for name in kept if name.endswith("metrics.jsonl") and is_noted]
        different = difference({**found, **dict.fromkeys(metrics)}, {**kept, **dict.fromkeys(metrics)})
        assert not different, (different, outcome)
        assert is_noted or not missing, outcome
        tidy(root / "out")
        return "same_bytes"
    fill = partial(shutil.copytree, root, dirs_exist_ok=True)
    return forked(check, case, expected, fill, root.with_name(f"{root.name}-next"))


def full_from(case: Case, expected: Expected, root: Path, times: range) -> tuple[str, bool]:
    """Run a command on a disk that has no space at some operations. Return the outcome, and whether it was met."""
    met = []

    def run() -> tuple[Outcome, bool]:
        os.chdir(root)

        def full() -> None:
            met.append(True)
            fail("ENOSPC")

        call = at_times(times, full)
        at_file_operations(root, call, NEED_SPACE)
        return ends(case.command), bool(met)

    outcome, was_met = forked(run)
    _one_line_or_well(outcome)
    return ended(case, expected, root, outcome), was_met


def _one_line_or_well(outcome: Outcome) -> None:
    assert outcome.code in (0, 2), outcome
    assert outcome.code == 0 or (outcome.err.startswith("error: ") and outcome.err.count("\n") == 1), outcome


def on_small_disk(case: Case, expected: Expected, root: Path, fill: Callable[[Path], None], free_pages: int) -> str:
    """Run a command on a file system with little space, and check what a user may run when there is more.

    Args:
        case: command.
        expected: content of its folder.
        root: folder where the file system is mounted; no other process sees it.
        fill: function that makes the earlier content in a folder.
        free_pages: free space in pages.
    """

    def run() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(_CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        mount("-t", "tmpfs", "-o", "size=256m,huge=never", "tmpfs")
        fill(root)
        size = (used_pages(root) + free_pages) * os.sysconf("SC_PAGE_SIZE")
        mount("-o", f"remount,size={size}")
        outcome = forked(command)
        _one_line_or_well(outcome)
        mount("-o", "remount,size=256m")
        return ended(case, expected, root, outcome)

    def mount(*words: str) -> None:
        subprocess.run(["mount", *words, str(root)], check=True)

    def command() -> Outcome:
        os.chdir(root)
        return ends(case.command)

    root.mkdir()
    return forked(run)


def needed_pages(states: Record) -> int:
    """Return the space that a command takes at most, beyond the earlier content."""
    page = os.sysconf("SC_PAGE_SIZE")
    sizes = [
        sum(-(-len(states.contents[content]) // page) for content in trees["kill"].values() if content is not None)
        for _, trees in states.moments
    ]
    return max(sizes) - sizes[0]


def used_pages(root: Path) -> int:
    """Return the number of pages that a tmpfs uses."""
    status = os.statvfs(root)
    return status.f_blocks - status.f_bfree


def can_mount() -> bool:
    """Return whether this process may mount a file system that only it sees."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "unshare") and forked(libc.unshare, _CLONE_NEWNS) == 0
