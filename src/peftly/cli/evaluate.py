"""`peftly evaluate`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli.console import console, echo, silence_libraries
from peftly.cli.options import MovedBase, Run

if TYPE_CHECKING:
    from rich.console import Console

    from peftly.evaluation import Evaluation

__all__ = ["evaluate"]


def evaluate(
    run: Run,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data to score. Default: the test (or validation) data of the run."),
    ] = None,
    base: MovedBase = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Examples per batch.")] = 32,
    generate: Annotated[
        int,
        typer.Option(
            "--generate",
            metavar="N",
            min=0,
            help="Generate the answers of the first N examples, too, and compare them with the expected answers.",
        ),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as one JSON object.")] = False,
) -> None:
    """Score a trained adapter on held-out examples."""
    silence_libraries()
    from peftly.evaluation import check_answers, evaluate_ensemble, missing_scores
    from peftly.evaluation import evaluate as score
    from peftly.runs import held_out_split, open_ensemble, open_run

    ensemble = open_ensemble(run, base=base)
    opened = open_run(run, base=base) if ensemble is None else ensemble.opened
    folder = run if ensemble is None else Path(run) / ensemble.members[0]
    name, split, row_format, lines = held_out_split(opened, data, run=folder)
    if generate:
        check_answers(row_format)
        lines += filter(None, [missing_scores()])
    members: Mapping[str, Evaluation] = {}
    if ensemble is None:
        evaluation = score(opened.model, opened.tokenizer, split, row_format, batch_size=batch_size, generate=generate)
    else:
        scores = evaluate_ensemble(
            opened.model,
            opened.tokenizer,
            split,
            row_format,
            ensemble.members,
            vote=ensemble.vote,
            batch_size=batch_size,
        )
        evaluation, members = scores.together, scores.members
    if as_json:
        _print_json(name, lines, evaluation, members)
        return
    screen = console()
    for line in lines:
        screen.print(line)
    _print_scores(screen, name, evaluation, members)
    if evaluation.confusion is not None:
        _print_confusion(screen, evaluation)


def _print_json(name: str, notes: list[str], evaluation: "Evaluation", members: Mapping[str, "Evaluation"]) -> None:
    import json
    from dataclasses import asdict

    from peftly.utils import json_values

    scores = {"rows_from": name, "notes": notes, **asdict(evaluation)}
    if members:
        scores["members"] = {member: asdict(member_scores) for member, member_scores in members.items()}
    echo(json.dumps(json_values(scores), ensure_ascii=False, allow_nan=False))


def _print_scores(screen: "Console", name: str, evaluation: "Evaluation", members: Mapping[str, "Evaluation"]) -> None:
    from rich.table import Table

    from peftly.evaluation import label_loss
    from peftly.utils import count_text, score_rows, score_text

    models = [evaluation, *members.values()]
    table = Table("score", "ensemble" if members else name, *members, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("examples", *(count_text(model.rows) for model in models))
    columns = [dict(score_rows(vars(model))) for model in models]
    if members:  # an ensemble has no loss over tokens
        table.add_row("loss over labels", *(score_text(label_loss(model.predictions)) for model in models))
    for score in [score for score in columns[0] if not (members and score == "loss")]:
        table.add_row(score, *(column[score] for column in columns))
    screen.print(table)


def _print_confusion(screen: "Console", evaluation: "Evaluation") -> None:
    from rich.table import Table
    from rich.text import Text

    screen.print("\nrows: true label; columns: predicted label")
    table = Table("")
    for label in evaluation.labels:
        table.add_column(Text(label))  # not as markup of Rich, which a label may contain
    for label, counts in zip(evaluation.labels, evaluation.confusion or (), strict=True):
        table.add_row(Text(label), *map(str, counts))
    screen.print(table)
