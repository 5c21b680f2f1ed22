"""`peftly quickstart`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from peftly.cli.console import console, silence_libraries

__all__ = ["quickstart"]


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Output folder of both runs and their report.")] = Path(
        "runs/quickstart"
    ),
    task: Annotated[
        Literal["messages", "tweets"],
        typer.Option(
            "--task",
            metavar="TASK",
            help="messages: find the department of a message. tweets: find complaints, which is hard.",
        ),
    ] = "messages",
    base: Annotated[
        str, typer.Option("--base", help="Base model: short name, Hub id, folder or .gguf file.")
    ] = "smollm2-135m",
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of both runs.")] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs of both runs. Default: those of the task.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Maximum number of examples per split.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Additional file for the results.")] = None,
) -> None:
    """Train prompt tuning and LoRA on sample data, and compare them with the untouched base."""
    silence_libraries()
    from peftly.runs import quickstart as run_quickstart

    screen = console(is_progress=True)
    run_quickstart(
        out, task=task, base_spec=base, seed=seed, epochs=epochs, limit=limit, json_file=json_file, screen=screen
    )
