"""`peftly evaluate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli._console import console, quiet

if TYPE_CHECKING:
    from rich.console import Console

    from peftly.evaluation import Evaluation

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, an adapter folder or a Hub id.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Rows to score; without: the run's own test (or validation) rows.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Rows that go through the model at once.")
    ] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Score a trained adapter on held-out rows."""
    quiet()
    from peftly.evaluation import evaluate as score
    from peftly.held_out import held_out_rows
    from peftly.run_folder import open_run

    opened = open_run(run)
    name, split, shape, lines = held_out_rows(opened, data)
    evaluation = score(opened.model, opened.tokenizer, split, shape, batch_size=batch_size)
    if as_json:
        _print_json(name, evaluation)
        return
    screen = console()
    for line in lines:
        screen.print(line, markup=False)
    _print_tables(screen, name, evaluation)


def _print_json(name: str, evaluation: "Evaluation") -> None:
    import json
    from dataclasses import asdict

    from peftly.run_folder import plain

    typer.echo(json.dumps(plain({"rows_from": name, **asdict(evaluation)}), ensure_ascii=False, allow_nan=False))


def _print_tables(screen: "Console", name: str, evaluation: "Evaluation") -> None:
    from rich.table import Table
    from rich.text import Text

    from peftly._units import count_text, score_rows

    table = Table("score", name, title_justify="left")
    table.columns[1].justify = "right"
    table.add_row("rows", count_text(evaluation.rows))
    for score, text in score_rows(vars(evaluation)):
        table.add_row(score, text)
    screen.print(table)
    if evaluation.confusion is not None:
        screen.print("\nrows: what an example is; columns: what was predicted")
        # As plain text: a label may hold what Rich reads as markup.
        counts = Table("")
        for label in evaluation.labels:
            counts.add_column(Text(label))
        for label, row in zip(evaluation.labels, evaluation.confusion, strict=True):
            counts.add_row(Text(label), *map(str, row))
        screen.print(counts)
