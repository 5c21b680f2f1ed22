"""`peftly merge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from peftly.cli.console import console, silence_libraries
from peftly.cli.options import Adapters, MovedBase, Weights, read_weights
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.merging import Into, Parity

__all__ = ["merge"]


def merge(
    adapters: Adapters,
    out: Annotated[str, typer.Option("--out", help="Folder of the merged model.")],
    base: MovedBase = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. Default: the dtype of the base.")
    ] = None,
    weights: Weights = None,
    into: Annotated[
        str,
        typer.Option(
            "--into",
            help="For an adapter from QLoRA: merge into the quantized base (trained) or the original one (original).",
        ),
    ] = "trained",
    text: Annotated[
        str | None,
        typer.Option("--text", help="Texts to compare, one per line of a file. Default: held-out data of the run."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Maximum size of a weights file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a merged model in --out.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Keep the merged model even if its outputs differ by more than rounding explains."
        ),
    ] = False,
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="JSON file for the comparison.")
    ] = None,
) -> None:
    """Merge adapters into their base, write a model folder, and compare its outputs with the adapted model."""
    numbers = None if weights is None else read_weights(weights)
    if report is not None:
        _check_report(Path(report))
    silence_libraries()
    from peftly.merging import save_merged
    from peftly.runs import held_out_examples

    screen = console(is_progress=True)
    parity = save_merged(
        adapters,
        out,
        base=base,
        dtype=dtype,
        weights=numbers,
        into=cast("Into", into),  # `save_merged` checks it
        text=text,
        held_out=held_out_examples,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        force=force,
        log=screen.print,
    )
    _print(parity)
    if report is not None:
        _write_report(parity, Path(report))


def _check_report(file: Path) -> None:
    """Refuse a path for the report before the work is done."""
    if file.is_dir():
        raise ConfigError(f"--report {file} is a folder; name a file")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--report {file}: there is no folder {file.parent}")


def _write_report(parity: "Parity", file: Path) -> None:
    from dataclasses import asdict

    from peftly.utils import write_json

    write_json(file, {**asdict(parity), "complaint": parity.complaint})


def _print(parity: "Parity") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("before and after merging", "")
    for name, value in parity.rows():
        table.add_row(name, Text(value))
    screen = console(is_progress=True)
    screen.print(table)
    if parity.complaint is not None:
        screen.print(f"kept by --force: {parity.complaint}")
