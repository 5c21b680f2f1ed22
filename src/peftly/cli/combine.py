"""`peftly combine`."""

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from peftly.cli._console import quiet
from peftly.cli._options import Adapters, Weights, read_weights

if TYPE_CHECKING:
    from peftly.merging import Combined

__all__ = ["combine"]


def combine(
    adapters: Adapters,
    out: Annotated[str, typer.Option("--out", help="The folder of the new adapter.")],
    weights: Weights = None,
    method: Annotated[
        str, typer.Option("--method", help="linear: the sum exactly; svd: the best adapter of a lower rank.")
    ] = "linear",
    rank: Annotated[
        int | None, typer.Option("--rank", help="For svd; without: the largest that one of them has.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the adapter in --out.")] = False,
) -> None:
    """Make one LoRA adapter of several: their weighted sum, as a folder that every command and PEFT open."""
    numbers = None if weights is None else read_weights(weights)
    quiet()
    from peftly.merging import save_combined

    chosen = cast(Literal["linear", "svd"], method)  # `save_combined` checks it
    combined = save_combined(
        adapters, out, weights=numbers, method=chosen, rank=rank, overwrite=overwrite, say=typer.echo
    )
    left_out = f", {combined.left_out:.1%} of the sum left out" if method == "svd" else ""
    typer.echo(f"{out}: {_words(combined)}{left_out}")


def _words(combined: "Combined") -> str:
    from peftly.runs import folder_bytes
    from peftly.utils import bytes_text, count_text

    ranks = sorted({combined.config.rank, *combined.config.rank_pattern.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return f"LoRA of {rank}, {count_text(combined.parameters)} parameters, {bytes_text(folder_bytes(combined.folder))}"
