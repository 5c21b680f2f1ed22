"""What every command shares: where it prints, and how an error reaches a person."""

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

__all__ = ["CommandGroup", "console", "quiet"]


class CommandGroup(TyperGroup):
    """The commands; what a person can mend, wrong usage included, becomes one line and exit code 2."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options that stand before the command.

        Raises:
            typer.Exit: 2 after wrong usage.
        """
        with _one_line(debug=False):
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command line; none at all asks for help."""
        return super().parse_args(ctx, args or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command.

        Raises:
            typer.Exit: 2 after an error that a person can mend, 130 after Ctrl-C.
        """
        with _one_line(debug=ctx.params["debug"]):
            return super().invoke(ctx)


@contextmanager
def _one_line(*, debug: bool) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of our output left; Typer ends the program without a word
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
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    word = typer.style("error:", fg="red", bold=True) if colour else "error:"
    typer.echo(f"{word} {' '.join(message.split())}", err=True)


def console() -> "Console":
    """Return a console on standard output as it is now; a width is only imposed where there is a terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 120)


def quiet() -> None:
    """Keep the libraries' own warnings off the screen: what matters of them peftly says. Downloads stay visible."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
