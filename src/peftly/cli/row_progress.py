"""A bar over the rows of a command on its console; lines where that is no terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from peftly.utils import seconds_text

__all__ = ["RowProgress"]

_LINES = 10


class RowProgress:
    """Progress over rows. As a context manager it removes the bar at the end, also after an error.

    Args:
        console: console of the output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start, self._first, self._part = time.monotonic(), -1, 0
        self._bar = Progress(
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} rows"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def seconds_text(self) -> str:
        """Return the time since the first call of `on_batch`."""
        return seconds_text(time.monotonic() - self._start)

    def on_batch(self, done: int, total: int) -> None:
        """Move the bar, or print a line for each tenth of the rows.

        Args:
            done: number of rows that are done.
            total: number of all rows.
        """
        if self._first < 0:
            self._start, self._first = time.monotonic(), done
            if done:
                self._console.print(f"continuing after {done:,} of {total:,} rows")
        speed = (done - self._first) / max(time.monotonic() - self._start, 1e-3)
        text = f"{speed:,.1f} rows/s"
        self._bar.update(self._task, completed=done, total=total, description=text, visible=True)
        part = done * _LINES // max(total, 1)
        if not self._console.is_terminal and part > self._part and done > self._first:
            self._console.print(f"{done:,} of {total:,} rows, {text}")
        self._part = max(part, self._part)
