"""`peftly export`."""

from typing import Annotated

import typer

from peftly.cli.console import echo, silence_libraries
from peftly.cli.options import MovedBase

__all__ = ["export"]


def export(
    adapter: Annotated[
        str,
        typer.Argument(metavar="ADAPTER", help="Adapter folder, run folder, or Hub id; for gguf also a base."),
    ],
    to: Annotated[str, typer.Option("--to", help="Format: peft, vllm, prompt-embeddings, gguf or gguf-lora.")],
    out: Annotated[str, typer.Option("--out", help="Output folder, new or empty.")],
    base: MovedBase = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Dtype for gguf: f16 (the default), bf16, f32 or q8_0; for gguf-lora f32 (the default), f16 or bf16.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in --out.")] = False,
) -> None:
    """Write an adapter in the format of another tool: PEFT, vLLM, servers that take embeddings, or llama.cpp."""
    silence_libraries()
    from peftly.exporting import export as write
    from peftly.utils import bytes_text

    exported = write(adapter, to, out, base=base, dtype=dtype, overwrite=overwrite)
    files = sorted(exported.folder.iterdir())
    echo(f"wrote {exported.folder}")
    width = max(len(file.name) for file in files)
    for file in files:
        echo(f"  {file.name:<{width}}  {bytes_text(file.stat().st_size)}")
    for note in exported.notes:
        echo(note)
