"""`peftly explain`."""

from typing import Annotated

import typer

from peftly.cli.console import console, echo, silence_libraries
from peftly.cli.options import MovedBase, Run

__all__ = ["explain"]


def explain(
    run: Run,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Name of the adapter, if several were trained together.")
    ] = None,
    base: MovedBase = None,
    neighbours: Annotated[
        int, typer.Option("--neighbours", min=1, help="Vocabulary tokens to show for each virtual token.")
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the virtual tokens of a learned prompt: their nearest vocabulary tokens, norms and changes in training."""
    silence_libraries()
    from peftly.inference import explain as explain_prompt
    from peftly.runs import open_run

    opened = open_run(run, base=base)
    explanation = explain_prompt(
        opened.model,
        opened.tokenizer,
        name=adapter,
        neighbours=neighbours,
        seed=None if opened.config is None else opened.config.train.seed,
        labels=() if opened.row_format is None else opened.row_format.answers,
    )
    if as_json:
        import json
        from dataclasses import asdict

        from peftly.utils import json_values

        echo(json.dumps(json_values(asdict(explanation)), ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("position", "nearest tokens (cosine)", "norm", "moved", "initial token")
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    for position, embedding in enumerate(explanation.embeddings):
        near = ", ".join(f"{neighbour.token!r} {neighbour.cosine:.2f}" for neighbour in embedding.nearest)
        moved = "?" if embedding.moved is None else f"{embedding.moved:.2f}"
        start = "?" if embedding.start is None else repr(embedding.start.token)
        # Not as markup of Rich, which a token may contain.
        table.add_row(str(position), Text(near), f"{embedding.norm:.2f}", moved, Text(start))
    screen = console()
    screen.print(table)
    screen.print(
        f"norm: the median of the vocabulary is {explanation.typical_norm:.2f}; moved: distance from the initial value"
    )
