"""The console of the commands: standard output, with text of data, files and models that cannot change a terminal."""

import os
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from peftly.cli.printable import printable

__all__ = ["Screen"]


class Screen(Console):
    """Console on standard output. Texts are shown as they are: markup and emoji codes have no meaning in them.

    Args:
        is_progress: whether the output only accompanies work whose result is in files. If the output is closed or full,
            it is then dropped and the work goes on. Otherwise the command ends: with exit code 1 if it is closed.
    """

    def __init__(self, *, is_progress: bool = False) -> None:
        is_terminal = sys.stdout.isatty()
        width = None if is_terminal else 120
        soft_wrap = not is_terminal
        super().__init__(highlight=False, markup=False, emoji=False, soft_wrap=soft_wrap, width=width)
        self._is_progress = is_progress
        self.push_render_hook(_EscapeControls())

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich` does; see the class for an output that fails."""
        try:
            super().print(*objects, **options)
        except OSError:
            if not self._is_progress:
                raise
            self._drop_output()

    def on_broken_pipe(self) -> None:
        """Handle an output that was closed, as `peftly train | head` does."""
        if not self._is_progress:
            super().on_broken_pipe()
        self._drop_output()

    def _drop_output(self) -> None:
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # Python writes its buffer when it exits
        os.close(null)


class _EscapeControls(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    """A renderable with escaped control characters in its texts; control codes of `rich` itself stay."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)
