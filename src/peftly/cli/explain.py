"""`peftly explain`."""

from typing import Annotated

import typer

from peftly.cli._console import console, quiet

__all__ = ["explain"]


def explain(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, an adapter folder or a Hub id.")],
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Which one, where several were trained together.")
    ] = None,
    neighbours: Annotated[int, typer.Option("--neighbours", min=1, help="Words to show for each row.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as one JSON object.")] = False,
) -> None:
    """Show what a learned prompt is near to: each row's nearest words, its length, and how far it moved."""
    quiet()
    from peftly.inference import explain as look
    from peftly.runs import open_run

    opened = open_run(run)
    found = look(
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

        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("row", "nearest words (cosine)", "length", "moved", "started at")
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    for place, row in enumerate(found.rows):
        near = ", ".join(f"{neighbour.word!r} {neighbour.cosine:.2f}" for neighbour in row.nearest)
        moved = "?" if row.moved is None else f"{row.moved:.2f}"
        start = "?" if row.start is None else repr(row.start.word)
        # As plain text: a word may be what Rich reads as markup.
        table.add_row(str(place), Text(near), f"{row.norm:.2f}", moved, Text(start))
    screen = console()
    screen.print(table)
    screen.print(f"length: of a word's embedding {found.typical_norm:.2f} (median); moved: from where the row started")
