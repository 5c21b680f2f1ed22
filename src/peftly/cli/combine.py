"""`peftly combine`."""

from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from peftly.cli.console import console, silence_libraries
from peftly.cli.options import Adapters, MovedBase, Weights, read_weights

if TYPE_CHECKING:
    from peftly.merging import Combined

__all__ = ["combine"]


def combine(
    adapters: Adapters,
    out: Annotated[str, typer.Option("--out", help="Folder of the new adapter.")],
    base: MovedBase = None,
    weights: Weights = None,
    method: Annotated[
        str, typer.Option("--method", help="linear: exact sum; svd: best approximation of a lower rank.")
    ] = "linear",
    rank: Annotated[int | None, typer.Option("--rank", help="Rank for svd. Default: the largest rank.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter in --out.")] = False,
) -> None:
    """Add several LoRA adapters, with a weight for each, into one adapter that PEFT opens, too."""
    numbers = None if weights is None else read_weights(weights)
    silence_libraries()
    from peftly.merging import save_combined

    screen = console(is_progress=True)
    chosen = cast(Literal["linear", "svd"], method)  # `save_combined` checks it
    combined = save_combined(
        adapters, out, base=base, weights=numbers, method=chosen, rank=rank, overwrite=overwrite, log=screen.print
    )
    left_out = f", {combined.left_out:.1%} of the sum left out" if method == "svd" else ""
    screen.print(f"{out}: {_summary(combined)}{left_out}")


def _summary(combined: "Combined") -> str:
    from peftly.utils import bytes_text, count_text, folder_bytes

    ranks = sorted({combined.config.rank, *combined.config.rank_pattern.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return f"LoRA of {rank}, {count_text(combined.parameters)} parameters, {bytes_text(folder_bytes(combined.folder))}"
