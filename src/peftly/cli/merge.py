"""`peftly merge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from peftly.cli._console import console, quiet
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.merged_model import Into
    from peftly.parity import Parity

__all__ = ["merge"]


def merge(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER...", help="Run folders, adapter folders or Hub ids, of one base.")
    ],
    out: Annotated[str, typer.Option("--out", help="The folder of the merged model.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; without: what the base is stored in.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="How much of each adapter, as in 0.7,0.3; for LoRA.")
    ] = None,
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
    numbers = None if weights is None else _numbers(weights)
    if report is not None and Path(report).is_dir():
        raise ConfigError(f"--report {report} is a folder; name a file")
    if report is not None and not Path(report).absolute().parent.is_dir():
        raise ConfigError(f"--report {report}: there is no folder {Path(report).parent}")
    quiet()
    from peftly.merged_model import save_merged

    screen = console()
    parity = save_merged(
        adapters,
        out,
        dtype=dtype,
        weights=numbers,
        into=cast("Into", into),  # `save_merged` checks it
        text=text,
        max_shard_size=max_shard_size,
        overwrite=overwrite,
        force=force,
        say=lambda line: screen.print(line, markup=False),
    )
    _print(parity, out)
    if report is not None:
        from dataclasses import asdict

        from peftly.run_folder import write_json

        write_json(Path(report), {**asdict(parity), "complaint": parity.complaint})


def _numbers(weights: str) -> list[float]:
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {weights}: give numbers with commas between them, as in 0.7,0.3") from None


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
