"""The command line. Each command is one thin file; torch is imported inside it, so that `--help` answers at once."""

import os
from typing import Annotated

import typer

from peftly.cli._console import CommandGroup
from peftly.cli.chat import chat
from peftly.cli.combine import combine
from peftly.cli.env import env
from peftly.cli.evaluate import evaluate
from peftly.cli.explain import explain
from peftly.cli.export import export
from peftly.cli.generate import generate
from peftly.cli.inspect import inspect
from peftly.cli.merge import merge
from peftly.cli.methods import methods
from peftly.cli.quickstart import quickstart
from peftly.cli.train import train

__all__ = ["app", "main"]

SPINS = "10000"
"""How often a thread without work looks for some before it lets others have its core. With OpenMP's own number, thirty
times as many, training crawls on a machine that does anything else; see docs/log.md."""

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (quickstart, train, evaluate, generate, chat, combine, merge, export, inspect, explain, methods, env):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"peftly {version('peftly')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="PEFTLY_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Adapt a frozen language model: soft prompts, LoRA and their family, from raw data to a portable adapter."""
    # Where the HTTP, tokenizer and OpenMP libraries look for it, before any of them is imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit code."""
    app(prog_name="peftly")
