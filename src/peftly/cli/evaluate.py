"""`peftly evaluate`."""

from collections.abc import Mapping
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
    from peftly.evaluation import evaluate_ensemble
    from peftly.runs import held_out_rows, open_ensemble, open_run

    ensemble = open_ensemble(run)
    opened = open_run(run) if ensemble is None else ensemble.opened
    name, split, row_format, lines = held_out_rows(opened, data)
    members: dict[str, Evaluation] = {}
    if ensemble is None:
        evaluation = score(opened.model, opened.tokenizer, split, row_format, batch_size=batch_size)
    else:
        found = evaluate_ensemble(
            opened.model,
            opened.tokenizer,
            split,
            row_format,
            ensemble.members,
            vote=ensemble.vote,
            batch_size=batch_size,
        )
        evaluation, members = found.together, found.members
    if as_json:
        _print_json(name, evaluation, members)
        return
    screen = console()
    for line in lines:
        screen.print(line, markup=False)
    _print_tables(screen, name, evaluation, members)


def _print_json(name: str, evaluation: "Evaluation", members: Mapping[str, "Evaluation"]) -> None:
    import json
    from dataclasses import asdict

    from peftly.runs import plain

    scores = {"rows_from": name, **asdict(evaluation)}
    if members:
        scores["members"] = {member: asdict(own) for member, own in members.items()}
    typer.echo(json.dumps(plain(scores), ensure_ascii=False, allow_nan=False))


def _print_tables(screen: "Console", name: str, evaluation: "Evaluation", members: Mapping[str, "Evaluation"]) -> None:
    from rich.table import Table
    from rich.text import Text

    from peftly.evaluation import label_loss
    from peftly.utils import count_text, score_rows, score_text

    models = [evaluation, *members.values()]
    table = Table("score", "ensemble" if members else name, *members, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("rows", *(count_text(one.rows) for one in models))
    columns = [dict(score_rows(vars(one))) for one in models]
    if members:  # of the members' losses over tokens an ensemble has none
        table.add_row("loss over labels", *(score_text(label_loss(one.predictions)) for one in models))
    for score in [score for score in columns[0] if not (members and score == "loss")]:
        table.add_row(score, *(column[score] for column in columns))
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
