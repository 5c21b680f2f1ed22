"""Output of the commands, and their errors as one line."""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from peftly.errors import PeftlyError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["CommandGroup", "console", "silence_libraries"]


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
        """Parse the command line; without arguments show the help."""
        return super().parse_args(ctx, args or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Exit: exit code 2 after an error that the user can remedy, 130 after Ctrl-C.
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
        raise typer.Exit(130) from error


def _print_error(message: str) -> None:
    has_colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = typer.style("error:", fg="red", bold=True) if has_colour else "error:"
    typer.echo(f"{prefix} {' '.join(message.split())}", err=True)


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


def console() -> "Console":
    """Return a console on the current standard output: the width of a terminal, otherwise lines without a limit."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else 120)


def silence_libraries() -> None:
    """Hide warnings and progress bars of other libraries, except downloads. peftly reports the relevant ones itself."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", ".* was trained over another base")
    warnings.showwarning = _print_warning
    logging.getLogger().setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
