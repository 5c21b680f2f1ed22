"""`peftly convert`."""

from typing import Annotated

import typer

from peftly.cli.console import echo, silence_libraries
from peftly.cli.options import MovedBase

__all__ = ["convert"]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN", help="Folder or Hub id: PEFT with adapter_model.bin, mlx-lm, litgpt, torchtune, AdapterHub."
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Output folder, new or empty.")],
    base: MovedBase = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion in OUT.")] = False,
) -> None:
    """Convert an adapter of another tool, or an old one of PEFT, to a folder that peftly and PEFT open."""
    silence_libraries()
    from peftly.exporting import convert as write

    converted = write(source, out, base=base, overwrite=overwrite)
    echo(f"wrote {converted.folder}")
    for note in converted.notes:
        echo(note)
