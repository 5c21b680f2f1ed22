"""`peftly quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from peftly.cli._console import console, quiet

__all__ = ["quickstart"]


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="The folder for both runs and their report.")] = Path(
        "runs/quickstart"
    ),
    base: Annotated[str, typer.Option("--base", help="The base to adapt.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides what is drawn at random.")] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="For both methods; without: what works.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Use only this many rows of each split.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the results to this file.")] = None,
) -> None:
    """Train two adapters on a real base with sample data, and show what they gain."""
    quiet()
    from peftly.runs import quickstart as run_quickstart

    run_quickstart(out, base_spec=base, seed=seed, epochs=epochs, limit=limit, json_file=json_file, screen=console())
