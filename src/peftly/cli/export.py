"""`peftly export`."""

from typing import Annotated

import typer

from peftly.cli._console import quiet

__all__ = ["export"]


def export(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER",
            help="An adapter or run folder, or an adapter's Hub id; for gguf also a base.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="peft, vllm, prompt-embeddings or gguf.")],
    out: Annotated[str, typer.Option("--out", help="The folder to write, new or empty.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="For gguf: f16 (without this), bf16, f32 or q8_0.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in that folder.")] = False,
) -> None:
    """Write an adapter as another tool reads it: PEFT, vLLM, servers that take embeddings, or llama.cpp."""
    quiet()
    from peftly.exporting import export as write
    from peftly.utils import bytes_text

    exported = write(adapter, to, out, dtype=dtype, overwrite=overwrite)
    files = sorted(exported.folder.iterdir())
    typer.echo(f"wrote {exported.folder}")
    width = max(len(file.name) for file in files)
    for file in files:
        typer.echo(f"  {file.name:<{width}}  {bytes_text(file.stat().st_size)}")
    for note in exported.notes:
        typer.echo(note)
