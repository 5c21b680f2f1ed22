"""`peftly merge`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from peftly.cli._console import console, quiet
from peftly.cli._options import Adapters, Weights, read_weights
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.merging import Into, Parity

__all__ = ["merge"]


def merge(
    adapters: Adapters,
    out: Annotated[str, typer.Option("--out", help="The folder of the merged model.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; without: what the base is stored in.")
    ] = None,
    weights: Weights = None,
    into: Annotated[
        str, typer.Option("--into", help="After QLoRA: the base as it was trained over (trained), or the original.")
    ] = "trained",
    text: Annotated[
        str | None,
        typer.Option("--text", help="A file of texts, one a line, to compare on; without: the run's held-out rows."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Of a weights file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a merged model in --out.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Keep a model that differs by more than rounding explains.")
    ] = False,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Write the comparison as JSON, too.")
    ] = None,
) -> None:
    """Fold adapters into their base: an ordinary model folder, compared with the adapted model."""
    numbers = None if weights is None else read_weights(weights)
    if report is not None:
        _check_report(Path(report))
    quiet()
    from peftly.merging import save_merged
    from peftly.runs import held_out_examples

    screen = console()
    parity = save_merged(
        adapters,
        out,
        dtype=dtype,
        weights=numbers,
        into=cast("Into", into),  # `save_merged` checks it
        text=text,
        held_out=partial(held_out_examples, adapters[0]),
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        force=force,
        say=lambda line: screen.print(line, markup=False),
    )
    _print(parity, out)
    if report is not None:
        _write_report(parity, Path(report))


def _check_report(file: Path) -> None:
    """Refuse a place for the report before the work is done."""
    if file.is_dir():
        raise ConfigError(f"--report {file} is a folder; name a file")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--report {file}: there is no folder {file.parent}")


def _write_report(parity: "Parity", file: Path) -> None:
    from dataclasses import asdict

    from peftly.runs import write_json

    write_json(file, {**asdict(parity), "complaint": parity.complaint})


def _print(parity: "Parity", out: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("before and after merging", "")
    for name, value in parity.rows():
        table.add_row(name, Text(value))
    screen = console()
    screen.print(table)
    if parity.complaint is not None:
        screen.print(f"kept by --force: {parity.complaint}", markup=False)
    screen.print(f"{out}: {parity.dtype}, opens with transformers' from_pretrained", markup=False)
