"""`peftly predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli.console import console, silence_libraries
from peftly.cli.options import (
    MaxNewTokens,
    MinP,
    ModelBase,
    NumBeams,
    OptionalRun,
    RepetitionPenalty,
    RowLabels,
    RowLimit,
    RowsFile,
    RowTarget,
    RowTemplate,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from peftly.runs import PredictedFile

__all__ = ["predict"]


def predict(
    run: OptionalRun = None,
    data: RowsFile = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="File to write: .jsonl, .json, .csv, .tsv or .parquet."),
    ] = None,
    form: Annotated[
        str,
        typer.Option("--form", help="rows: the rows with their predictions. raft: a submission to RAFT (ID, Label)."),
    ] = "rows",
    limit: RowLimit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows per batch.")] = 32,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length",
            min=1,
            help="Maximum tokens of a row; longer ones are cut. Default: as in training; for text, as the base reads.",
        ),
    ] = None,
    base: ModelBase = None,
    template: RowTemplate = None,
    target: RowTarget = None,
    label: RowLabels = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    num_beams: NumBeams = 1,
    stop: Stop = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file, and begin again after an interruption.")
    ] = False,
) -> None:
    """Predict the label, tags, number or answer of every row of a file. After a stop, the same command continues."""
    if data is None or out is None:
        raise ConfigError("give the rows with --data, and the file to write with --out predictions.jsonl")
    silence_libraries()
    from peftly.cli.row_progress import RowProgress
    from peftly.data import read_escapes
    from peftly.runs import PredictionRequest, predict_file

    request = PredictionRequest(run, base, template and read_escapes(template), target, tuple(label or ()))
    generation = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "num_beams": num_beams,
        "stop": list(stop or ()),
        "seed": seed,
    }
    screen = console(is_progress=True)
    with RowProgress(screen) as progress:
        result = predict_file(
            request,
            data if len(data) > 1 else data[0],
            Path(out).expanduser(),
            form=form,
            batch_size=batch_size,
            max_length=max_length,
            limit=limit,
            generation=generation,
            overwrite=overwrite,
            on_batch=progress.on_batch,
        )
    _print_result(screen, result, out, progress.seconds_text())


def _print_result(screen: "Console", result: "PredictedFile", out: str, seconds: str) -> None:
    from rich.table import Table

    from peftly.data import counted
    from peftly.utils import score_rows

    rows = result.rows
    continued = f", {result.num_continued:,} of them by an earlier process" if result.num_continued else ""
    screen.print(f"{counted(len(rows), 'row')} of {rows.name} predicted in {seconds}{continued}: {out}")
    for note in result.notes:
        screen.print(note)
    if result.counts:
        screen.print("predicted: " + ", ".join(f"{label} {count:,}" for label, count in result.counts.items()))
    if result.unread:
        first = rows.location(result.unread[0])
        screen.print(
            f"{counted(len(result.unread), 'row')} without a text to read: the prediction is empty (first: {first})"
        )
    if result.num_cut:
        screen.print(f"{counted(result.num_cut, 'row')} cut to the maximum length")
    if result.scores:
        table = Table("score", f"{counted(result.num_scored, 'row')} with a target", title_justify="left")
        table.columns[1].justify = "right"
        for name, value in score_rows(result.scores):
            table.add_row(name, value)
        screen.print(table)
