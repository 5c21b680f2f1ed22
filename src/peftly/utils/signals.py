"""Stop signals: Ctrl-C and the signals of schedulers (SIGTERM, SIGHUP, SIGUSR1)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from peftly.errors import Stopped

__all__ = ["stops_held", "stops_noted", "stops_raised"]

_IMMEDIATE = 3
"""A stop that is held takes effect at once at this repetition."""


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raise `Stopped` at SIGTERM, SIGHUP and SIGUSR1 inside the block, instead of ending the process at once.

    A signal that the program ignores (`nohup`) or handles itself is left alone.
    """
    numbers = [number for number in _scheduler_signals() if _handler(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        signal.signal(number, _raise_stopped)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def stops_noted() -> Iterator[list[int]]:
    """Collect the numbers of stop signals inside the block, for a program that stops at a point of its own choice.

    The third signal takes effect immediately. A signal that the program ignores (`nohup`) is left alone.
    """
    numbers: list[int] = [signal.SIGINT, *_scheduler_signals()]
    before = {number: handler for number in numbers if (handler := _handler(number)) is not signal.SIG_IGN}
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        before = {}

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if len(noted) < _IMMEDIATE:
            return
        handler = before[number]
        if callable(handler):
            handler(number, frame)
        else:
            _raise_stopped(number, frame)

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stops_held() -> Iterator[None]:
    """Delay a stop until the end of the block. The third signal takes effect immediately."""
    numbers: list[int] = [signal.SIGINT, *_scheduler_signals()]
    before = {number: handler for number in numbers if callable(handler := _handler(number))}
    if threading.current_thread() is not threading.main_thread() or not before:
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append((number, frame))
        if len(held) >= _IMMEDIATE:
            before[number](number, frame)

    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        number, frame = held[0]
        before[number](number, frame)


def _scheduler_signals() -> list[signal.Signals]:
    """Return the signals by which schedulers and systems stop a process, as far as the system has them."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


def _handler(number: int) -> Callable[[int, FrameType | None], Any] | int | None:
    return signal.getsignal(number)


def _raise_stopped(number: int, _frame: FrameType | None) -> NoReturn:
    raise Stopped(f"stopped by {signal.Signals(number).name}")
