"""What every command shares: where it prints, and how an error reaches a person."""

import logging
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from peftly.errors import PeftlyError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["CommandGroup", "console", "quiet"]


class CommandGroup(TyperGroup):
    """The commands; what a person can mend becomes one line and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command.

        Raises:
            typer.Exit: 2 after an error that a person can mend, 130 after Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output left; Typer ends the program without a word
        except (PeftlyError, OSError) as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            _print_error(" ".join(str(error).split()))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            _print_error(f"interrupted; {error}" if str(error) else "interrupted")
            raise typer.Exit(130) from error


def _print_error(line: str) -> None:
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    typer.echo(f"{typer.style('error:', fg='red', bold=True) if colour else 'error:'} {line}", err=True)


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
