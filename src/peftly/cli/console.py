"""Output of the commands, and their errors as one line."""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from peftly.errors import PeftlyError, Stopped

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["CommandGroup", "console", "echo", "prepare_streams", "printable", "silence_libraries"]

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tabs and line feeds, separators of lines, marks that turn the direction of the text, and
halves of characters: what a terminal may obey, or an encoding lacks."""


class CommandGroup(TyperGroup):
    """The commands. Wrong usage and errors that the user can remedy become one line and exit code 2."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Parse the options before the command.

        Raises:
            typer.Exit: exit code 2, after wrong usage.
        """
        with _one_line_errors(debug=False):
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; without arguments show the help.

        Raises:
            typer.BadParameter: an argument is not text.
        """
        for argument in args:
            if argument != (text := argument.encode(errors="replace").decode()):
                raise typer.BadParameter(f"{text!r} has bytes that are no text; rename the file, or write it in UTF-8")
        return super().parse_args(ctx, args or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Exit: exit code 2 after an error that the user can remedy, 130 after Ctrl-C, 143 after a signal of a
                scheduler.
        """
        with _one_line_errors(debug=ctx.params["debug"]):
            return super().invoke(ctx)


@contextmanager
def _one_line_errors(*, debug: bool) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has exited; Typer ends the program silently
    except (PeftlyError, OSError) as error:
        if debug:
            traceback.print_exc()
        _print_error(str(error))
        raise typer.Exit(2) from error
    except TyperException as error:
        context = getattr(error, "ctx", None)
        _print_error(error.format_message() + (f" (see {context.command_path} --help)" if context else ""))
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        _print_error(f"interrupted; {error}" if str(error) else "interrupted")
        raise typer.Exit(error.exit_code if isinstance(error, Stopped) else 130) from error


def _print_error(message: str) -> None:
    """Print an error as one line, whatever a file name, a value or a library has put into the message."""
    has_colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = typer.style("error:", fg="red", bold=True) if has_colour else "error:"
    typer.echo(f"{prefix} {printable(' '.join(message.split()))}", err=True)


def printable(text: str) -> str:
    r"""Return a text with control characters as escapes such as \u001b, which are the escapes of JSON, too."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(text: str = "", *, nl: bool = True) -> None:
    """Print a text that is a result of the command: as it is into a file or pipe, with escapes on a terminal."""
    sys.stdout.write((printable(text) if sys.stdout.isatty() else text) + "\n" * nl)
    sys.stdout.flush()


def console(*, is_progress: bool = False) -> "Console":
    """Return a console on the current standard output: the width of a terminal, otherwise lines without a limit.

    Args:
        is_progress: see `Screen`.
    """
    from peftly.cli.screen import Screen

    return Screen(is_progress=is_progress)


_ESCAPE = "backslashreplace"


def prepare_streams() -> None:
    """Open the standard streams that are closed, and let all of them take texts that their encoding lacks."""
    for name, mode, errors in (("stdin", "r", "replace"), ("stdout", "w", _ESCAPE), ("stderr", "w", _ESCAPE)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 -- open until the end
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def silence_libraries() -> None:
    """Hide warnings and progress bars of other libraries, except downloads. peftly reports the relevant ones itself."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
