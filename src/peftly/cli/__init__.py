"""The command line, with one thin file per command. May import: all packages.

console  output, and errors as one line
screen   console of the commands
printable  text that cannot change a terminal
options  options that several commands share
opening  model of a run, an adapter or a base
prompts  prompts in the format of a run
answers  answers of a classifier, printed
next_commands  commands to try after a training
row_progress  a bar over rows
tokens   tokens of an example, printed
audit    examples of `inspect`

The commands import torch and other large libraries inside their functions, so that `--help` stays fast.
"""

import os
from typing import Annotated

import typer

from peftly.cli.chat import chat
from peftly.cli.combine import combine
from peftly.cli.console import Command, CommandGroup, echo, is_launched, prepare_streams, silence_other_processes
from peftly.cli.convert import convert
from peftly.cli.env import env
from peftly.cli.evaluate import evaluate
from peftly.cli.explain import explain
from peftly.cli.export import export
from peftly.cli.find_lr import find_lr
from peftly.cli.generate import generate
from peftly.cli.inspect import inspect
from peftly.cli.merge import merge
from peftly.cli.methods import methods
from peftly.cli.predict import predict
from peftly.cli.push import push
from peftly.cli.quickstart import quickstart
from peftly.cli.schema import schema
from peftly.cli.train import train
from peftly.errors import ConfigError

__all__ = ["app", "main"]

_SPIN_COUNT = "10000"
"""Spins of an idle OpenMP thread before it yields its core. With OpenMP's default, 30 times as many, training becomes
very slow on a machine with other load; see docs/log.md."""

app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    quickstart,
    train,
    find_lr,
    evaluate,
    predict,
    generate,
    chat,
    combine,
    merge,
    export,
    convert,
    push,
    inspect,
    explain,
    methods,
    schema,
    env,
):
    app.command(cls=Command)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        echo(f"peftly {version('peftly')}")
        raise typer.Exit


@app.callback()
def _set_environment(
    context: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="PEFTLY_DEBUG", help="Show the traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Parameter-efficient fine-tuning of language models: soft prompts, LoRA and related methods."""
    silence_other_processes()
    if is_launched() and context.invoked_subcommand != "train":
        raise ConfigError(f"{context.invoked_subcommand} runs in one process; start it without the launcher")
    # The tokenizer and OpenMP libraries read these variables when they are imported.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def main() -> None:
    """Run the command line on `sys.argv` and exit with its exit code."""
    prepare_streams()
    app(prog_name="peftly")
