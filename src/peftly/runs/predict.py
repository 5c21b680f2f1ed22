"""`predict`: predictions of a run for rows of data, in memory and as a file that a killed process continues."""

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peftly.data import (
    DataSource,
    RowFormat,
    Rows,
    counted,
    is_without_target,
    read_prompt_rows,
    row_prompt,
    row_target,
)
from peftly.errors import ConfigError
from peftly.evaluation import prediction_scores
from peftly.inference import Answer
from peftly.models import resolve_base
from peftly.runs.data_file import DataFile, read_data_file
from peftly.runs.folder import run_of
from peftly.runs.held_out import trained_lines
from peftly.runs.opening import FoundRun, OpenRun, open_base
from peftly.runs.prediction_files import (
    Form,
    Journal,
    check_fields,
    check_form,
    id_field,
    predicted_rows,
    write_predictions,
)
from peftly.runs.prediction_request import PredictionRequest, prepare_rows
from peftly.runs.row_predictions import PredictSettings, RowPredictions, unreadable_rows
from peftly.settings import check_seed
from peftly.utils import stops_raised

__all__ = ["PredictedFile", "predict", "predict_file"]

OnBatch = Callable[[int, int], None]
"""Function that receives the number of rows with an answer, and of all rows."""


@dataclass(frozen=True)
class PredictedFile:
    """Result of `predict_file`.

    Attributes:
        rows: the rows.
        num_continued: number of rows whose answers an earlier process has left.
        unread: indices of the rows whose prediction is empty, since they give the model nothing to read.
        num_cut: number of rows that were cut to the maximum length.
        counts: number of rows of each predicted label, the most frequent first.
        scores: scores by the names of the fields of `Evaluation`; empty if no row has a target.
        num_scored: number of rows with a target that is compared.
        notes: sentences on assumptions.
    """

    rows: Rows
    num_continued: int
    unread: list[int]
    num_cut: int
    counts: dict[str, int]
    scores: dict[str, float | str]
    num_scored: int
    notes: tuple[str, ...] = ()


def predict(
    run: str | os.PathLike[str] | OpenRun,
    rows: DataSource,
    *,
    base: str | None = None,
    template: str | None = None,
    target: str | None = None,
    labels: Sequence[str] = (),
    batch_size: int = 32,
    max_length: int | None = None,
    seed: int | None = None,
    **generation: Any,
) -> list[dict[str, Any]]:
    """Return rows of data with the predictions of a run, whatever its task. The rows need no targets.

    `generate`, `classify` and `tag_words` take texts and a model; this function takes rows with the fields that the
    run was trained on, and formats them as training did.

    Example::

        rows = peftly.predict("runs/tweets", [{"text": "third day of waiting"}])
        rows[0]["prediction"], rows[0]["probabilities"]

    Args:
        run: run folder, folder of an ensemble (whose members vote), adapter folder or Hub id of an adapter; or a model
            that is open, as `open_run` returns it: `OpenRun(model, tokenizer, data.row_format)`.
        rows: rows in any form that `load_data` takes. Of a data set with splits the test split is used.
        base: base of the adapter, where it has moved.
        template: template of the prompts, for a model that records no row format; None: the rows are conversations.
        target: field of the rows that is not read, for such a model.
        labels: labels to choose from, for such a model.
        batch_size: number of rows per forward pass.
        max_length: maximum number of tokens of a row; None: `data.max_length` of the run, and for generated text the
            positions of the model.
        seed: seed of the draws; None: other draws in every call.
        generation: settings of `generate`, for text: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `min_p`,
            `num_beams`, `repetition_penalty`, `stop`.

    Returns:
        Each row with its own fields, `prediction`, and `probabilities` for labels. The prediction is a label, a list of
        labels (of a multi-label classifier), a number, a list with a tag for each word, or a text; None for a row that
        gives the model nothing to read.

    Raises:
        AdapterError: there is no adapter, or it is damaged.
        ConfigError: a setting is out of range, or the model does not fit the rows.
        DataError: the rows cannot be read, or a field of a row is missing or holds another kind of value.
    """
    request = PredictionRequest(
        None if isinstance(run, OpenRun) else os.fspath(run), base, template, target, tuple(labels)
    )
    read = read_prompt_rows(rows)
    check_fields(read)
    found = None if isinstance(run, OpenRun) else request.find()
    recorded = run.row_format if isinstance(run, OpenRun) else found.row_format if found else None
    row_format = request.row_format(read, recorded)
    unreadable_rows(read, row_format)
    seed = secrets.randbits(32) if seed is None else seed
    settings = _settings({**generation, "seed": seed}, batch_size=batch_size, max_length=max_length)
    opened = run if isinstance(run, OpenRun) else found.open() if found else open_base(str(base))
    predictions = _predictions(opened, read, row_format, settings, found)
    answers: dict[int, Answer] = {}
    for indices, batch in predictions.batches():
        answers.update(zip(indices, batch, strict=True))
    return list(predicted_rows(read, answers))


def predict_file(
    request: PredictionRequest,
    source: DataSource,
    out: Path,
    *,
    form: Form = "rows",
    batch_size: int = 32,
    max_length: int | None = None,
    limit: int | None = None,
    generation: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_batch: OnBatch | None = None,
    on_open: Callable[[], None] | None = None,
) -> PredictedFile:
    """Write the predictions of a run for rows of data to a file.

    A process that is killed leaves its answers beside the file. The same call continues after the last batch, and the
    file has the same bytes as that of an uninterrupted call.

    Args:
        request: the model.
        source: rows, as for `predict`.
        out: file to write; the ending of its name determines the format.
        form: form of the rows of the file; see `FORMS`.
        batch_size, max_length: as for `predict`.
        limit: number of rows to predict, from the first on; None: all.
        generation: settings of `generate`, for text. Without a seed the seed of draws is 0.
        overwrite: whether to replace a file, and to begin again where a process was killed.
        on_batch: function that is called after each batch.
        on_open: function that is called before the model is opened.

    Raises:
        AdapterError, ConfigError, DataError: as for `predict`; or the file exists, or the answers of a killed process
            were for other rows, adapters or settings.
        KeyboardInterrupt: Ctrl-C, or SIGTERM, SIGHUP or SIGUSR1, with the advice to continue.
    """
    check_form(out, form)
    rows, row_format, found = prepare_rows(request, source, limit)
    if form == "rows":
        check_fields(rows)
    settings = _settings(dict(generation or {}), batch_size=batch_size, max_length=max_length)
    journal = Journal(out, _facts(request, rows, row_format, found, settings))
    journal.check(overwrite=overwrite)
    if on_open is not None:
        on_open()
    opened = found.open() if found else open_base(str(request.base))
    predictions = _predictions(opened, rows, row_format, settings, found)
    if form == "raft" and predictions.kind != "label":
        raise ConfigError(
            f"a submission to RAFT has labels, and this model predicts {predictions.kind}; leave out --form"
        )
    with journal.open(overwrite=overwrite) as answers:
        num_continued = len(answers)
        try:
            with stops_raised(), closing(predictions.batches(frozenset(answers))) as batches:
                _report(on_batch, answers, rows)
                for indices, batch in batches:
                    journal.add(indices, batch)
                    answers.update(zip(indices, batch, strict=True))
                    _report(on_batch, answers, rows)
        except KeyboardInterrupt as stop:
            kept = f"{len(answers):,} of {len(rows):,} rows are kept; the same command continues"
            raise type(stop)("; ".join(filter(None, [str(stop), kept]))) from stop
        write_predictions(out, rows, answers, form)
        journal.remove()
    stored = read_data_file(run_of(Path(request.run)) if request.run is not None else None)
    return _result(predictions, answers, num_continued, form, stored)


def _report(on_batch: OnBatch | None, answers: Mapping[int, Answer], rows: Rows) -> None:
    if on_batch is not None:
        on_batch(len(answers), len(rows))


def _settings(generation: dict[str, Any], *, batch_size: int, max_length: int | None) -> PredictSettings:
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1; got {value}")
    if generation.get("seed") is not None:
        check_seed(generation["seed"])
    return PredictSettings(batch_size, max_length, generation=generation)


def _predictions(
    opened: OpenRun, rows: Rows, row_format: RowFormat, settings: PredictSettings, found: FoundRun | None
) -> RowPredictions:
    members, vote = (tuple(found.adapters), found.vote) if found else ((), None)
    return RowPredictions(opened, rows, row_format, settings, members=members, vote=vote)


def _facts(
    request: PredictionRequest, rows: Rows, row_format: RowFormat, found: FoundRun | None, settings: PredictSettings
) -> dict[str, Any]:
    """Return everything that the answers depend on, by its name for messages."""
    base = resolve_base(str(request.base)) if found is None else found.first.base
    digest = hashlib.sha256()
    for row in rows.rows:
        digest.update(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
    return {
        "the version of peftly": version("peftly"),
        "the number of rows": len(rows),
        "the data": digest.hexdigest(),
        "the adapter": None if found is None else found.digest(),
        "the base": base.name,
        "the files of the base": base.files_digest(),
        "the row format": json.dumps(row_format.to_dict(), ensure_ascii=False),
        "--batch-size": settings.batch_size,
        "--max-length": settings.max_length,
        **{f"--{name.replace('_', '-')}": value for name, value in settings.generation.items()},
    }


def _result(
    predictions: RowPredictions, answers: Mapping[int, Answer], num_continued: int, form: Form, stored: DataFile
) -> PredictedFile:
    rows, row_format = predictions.rows, predictions.row_format
    ordered = [answers[index] for index in range(len(rows))]
    targets = (row_target(row_format, row, rows.location(index)) for index, row in enumerate(rows.rows))
    pairs = [
        (target, answer.prediction)
        for target, answer in zip(targets, ordered, strict=True)
        if target is not None and answer.prediction is not None
    ]
    counts = Counter(answer.prediction for answer in ordered if predictions.kind == "label" and answer.prediction)
    return PredictedFile(
        rows=rows,
        num_continued=num_continued,
        unread=[index for index, answer in enumerate(ordered) if answer.prediction is None],
        num_cut=sum(answer.is_cut for answer in ordered),
        counts=dict(counts.most_common()),
        scores=prediction_scores(predictions.kind, pairs, row_format.labels),
        num_scored=len(pairs),
        notes=(*_notes(rows, row_format, form), *(_trained_notes(rows, row_format, stored) if pairs else ())),
    )


def _trained_notes(rows: Rows, row_format: RowFormat, stored: DataFile) -> list[str]:
    """Return a sentence on scored rows that the run was trained on."""
    if row_format.template is None or stored == DataFile():  # a conversation without its last turn has another digest
        return []
    found = [(index, row_prompt(row_format, row, rows.location(index))) for index, row in enumerate(rows.rows)]
    prompts = [(index, prompt) for index, prompt in found if prompt is not None]
    return trained_lines([prompt for _, prompt in prompts], lambda i: rows.location(prompts[i][0]), stored)


def _notes(rows: Rows, row_format: RowFormat, form: Form) -> Iterator[str]:
    """Yield sentences on IDs that are assumed, and on targets that are missing or not compared."""
    if form == "raft" and id_field(rows) is None:
        yield "no field is named ID: the IDs are the indices of the rows, from 0"
    if form == "rows" and row_format.kind != "text" and row_format.target not in rows.fields:
        yield f"no scores: the rows have no field {row_format.target!r} (--target names another one)"
    if row_format.kind != "label" or not row_format.labels:
        return
    written = ((index, row.get(row_format.target)) for index, row in enumerate(rows.rows))
    unknown = [
        (index, value)
        for index, value in written
        if not is_without_target(value, row_format)
        and row_target(row_format, rows.rows[index], rows.location(index)) is None
    ]
    if unknown:
        index, value = unknown[0]
        yield (
            f"not in the scores: {counted(len(unknown), 'row')} with a {row_format.target} that the model cannot "
            f"predict (first: {rows.location(index)}, {value!r})"
        )
