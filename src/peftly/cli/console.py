"""Output of the commands, and their errors as one line."""

import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from peftly.cli.printable import printable
from peftly.errors import ConfigError, PeftlyError, Stopped
from peftly.setting_names import other_name

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Command",
    "CommandGroup",
    "console",
    "echo",
    "echo_pieces",
    "import_libraries",
    "is_launched",
    "prepare_streams",
    "silence_libraries",
    "silence_other_processes",
    "without_cut_character",
]


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


class Command(TyperCommand):
    """A command that refuses an option with one value which is given twice; the first value would have no effect."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options and arguments of the command.

        Raises:
            ConfigError: an option is given twice.
        """
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        options = [part for part in given if isinstance(part, TyperOption)]
        for number, option in enumerate(options):
            if option in options[:number] and not option.multiple and not option.is_flag:
                raise ConfigError(f"{option.opts[0]} is given twice, and takes one value; give it once")
        return super().parse_args(ctx, args)


@contextmanager
def _one_line_errors(*, debug: bool) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has exited; Typer ends the program silently
    except (PeftlyError, OSError) as error:
        if debug:
            traceback.print_exc(file=sys.__stderr__ if is_launched() else None)
        _print_error(str(error))
        raise typer.Exit(2) from error
    except TyperException as error:
        context = getattr(error, "ctx", None)
        message = _option_advice(error) or error.format_message()
        message = message.replace(": Value error, ", ": ")  # pydantic's words for a value that is none of the choices
        _print_error(message.removesuffix(".") + (f" (see {context.command_path} --help)" if context else ""))
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        if is_main_process():  # a signal stops all processes
            _print_error(f"interrupted; {error}" if str(error) else "interrupted")
        raise typer.Exit(error.exit_code if isinstance(error, Stopped) else 130) from error
    except Exception as error:
        if not is_launched():
            raise
        raise typer.Exit(_report_of_process(error)) from error


def _option_advice(error: TyperException) -> str:
    """Return a line on an option of another tool, such as `--lr`; an empty text for other errors."""
    option = getattr(error, "option_name", None) or ""
    other, context = other_name(option.lstrip("-")), getattr(error, "ctx", None)
    if other is None or context is None or not context.command_path.endswith(" train"):
        return ""
    return f"No such option: {option}; {other.advice()}; a setting is given as --set KEY=VALUE"


def is_launched() -> bool:
    """Return whether this process is one of several, started by `torchrun` or `accelerate launch`."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def is_main_process() -> bool:
    """Return whether this is the main one of the processes of a launch, or the only process."""
    return os.environ.get("RANK", "0") == "0"


def silence_other_processes() -> None:
    """Hide the output of all processes but the main one; errors that end the run stay visible."""
    if is_launched():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch reads it when it is imported
    if is_launched() and not is_main_process():
        sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 -- open until the end


def _report_of_process(error: Exception) -> int:
    """Report an unexpected error of one of several processes, and return the exit code."""
    from peftly.training import lost_process

    if lost := lost_process(error):
        _print_error(str(lost))
        return 2
    if _reports():
        traceback.print_exc(file=sys.__stderr__)
    return 1


def _reports() -> bool:
    """Return whether this process prints the error that ends the command: of several processes, the first to fail."""
    if not is_launched():
        return True
    from peftly.training import is_first_report

    return is_first_report()


def _print_error(message: str) -> None:
    """Print an error as one line, whatever a file name, a value or a library has put into the message."""
    if not _reports():
        return
    has_colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    prefix = typer.style("error:", fg="red", bold=True) if has_colour else "error:"
    stream = sys.__stderr__ if is_launched() else sys.stderr
    typer.echo(f"{prefix} {printable(' '.join(message.split()))}", file=stream)


def _print_warning(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"warning: {printable(' '.join(str(message).split()))}", err=True)


def echo(text: str = "", *, nl: bool = True) -> None:
    """Print a text that is a result of the command: as it is into a file or pipe, with escapes on a terminal."""
    sys.stdout.write((printable(text) if sys.stdout.isatty() else text) + "\n" * nl)
    sys.stdout.flush()


def echo_pieces() -> "Callable[[str], None]":
    """Return a function that prints the pieces of an answer, without the blanks in front of it.

    Where a prompt ends without a space, the answer that was learned begins with one. An answer that was cut at a
    limit of tokens can end inside a character, of which nothing is printed.
    """
    has_begun, held = False, ""

    def write(piece: str) -> None:
        nonlocal has_begun, held
        piece = held + (piece if has_begun else piece.lstrip())
        has_begun = has_begun or bool(piece)
        whole = without_cut_character(piece)
        held = piece[len(whole) :]
        echo(whole, nl=False)

    return write


def console(*, is_progress: bool = False) -> "Console":
    """Return a console on the current standard output: the width of a terminal, otherwise lines without a limit.

    Args:
        is_progress: see `Screen`.
    """
    from peftly.cli.screen import Screen

    return Screen(is_progress=is_progress)


def without_cut_character(text: str) -> str:
    """Return an answer without the sign for bytes that are no character at its end."""
    return text.rstrip("\ufffd")


_ESCAPE = "backslashreplace"


def prepare_streams() -> None:
    """Open the standard streams that are closed, and let all of them take texts that their encoding lacks."""
    for name, mode, errors in (("stdin", "r", "replace"), ("stdout", "w", _ESCAPE), ("stderr", "w", _ESCAPE)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 -- open until the end
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def import_libraries() -> None:
    """Import the large libraries without garbage collections, which take a third of the time of imports and of the end.

    The objects of modules live as long as the process; later collections and the end of the process leave them out.
    """
    if "torch" in sys.modules:
        return
    # On a CPU, oneDNN and torch's layer above it each keep code for 1,024 shapes of matrices by default: half a
    # gigabyte for batches of many sizes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "16")
    gc.disable()
    try:
        import peftly.runs  # noqa: F401 -- imports torch, transformers and most packages
    finally:
        gc.freeze()
        gc.enable()


def silence_libraries() -> None:
    """Import the large libraries, and hide their warnings and progress bars, except downloads.

    peftly reports the relevant ones itself.
    """
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    warnings.filterwarnings("ignore")
    warnings.filterwarnings("always", ".* was trained over another base")
    warnings.showwarning = _print_warning
    logging.getLogger().setLevel(logging.ERROR)
    import_libraries()
    import transformers

    transformers.logging.set_verbosity_error()
