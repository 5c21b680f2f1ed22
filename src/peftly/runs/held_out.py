"""The held-out examples of a finished run, and new data in the row format of its training.

A run folder holds digests of the rows. The held-out examples are found by them, wherever they stand in the data now:
after a change of the data, a new split by `data.seed` could choose rows that the adapter was trained on.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from peftly.adapters import AdapterSet
from peftly.data import (
    Data,
    DataConfig,
    EncodedExample,
    Example,
    FormattedExamples,
    RowFormat,
    Split,
    counted,
    encode_split,
    example_digest,
    load_data,
    prompt_key,
    read,
    read_data,
    usable_rows,
)
from peftly.errors import ConfigError, DataError
from peftly.models import max_tokens, task_of
from peftly.runs.config import RunConfig, one_run
from peftly.runs.data_file import DataFile, read_data_file
from peftly.runs.folder import read_config, run_of
from peftly.runs.opening import OpenRun

__all__ = ["HeldOut", "evaluation_split", "held_out_examples", "held_out_split", "trained_lines"]

_ADVICE = "give the rows to evaluate on with --data"


class HeldOut(NamedTuple):
    """Examples for an evaluation, as `held_out_split` returns them.

    Attributes:
        name: name of the split, or of the file.
        split: the examples.
        row_format: conversion of a row of data into text.
        lines: notes for the user, such as counts of truncated examples.
    """

    name: str
    split: Split
    row_format: RowFormat
    lines: list[str]


def evaluation_split(data: Data) -> tuple[str, Split | None]:
    """Return name and examples of the test split, or of the validation split if there is no test split."""
    return ("test", data.test) if data.test is not None else ("validation", data.validation)


def held_out_split(opened: OpenRun, source: str | None, *, run: str | Path | None = None) -> HeldOut:
    """Return the examples on which a model is evaluated.

    Args:
        opened: model, with the configuration of its run if it has one.
        source: file, folder or Hub id with rows like those of the training; None: the held-out split of the run.
        run: path that the model was opened from; None: the output folder in the configuration of the run.

    Raises:
        ConfigError: neither `source` nor a run determines the examples, or the adapter records no row format.
        DataError: the data cannot be read, do not have the row format, or lack held-out rows of the run.
    """
    folder = None
    if opened.config is not None:
        folder = run_of(Path(opened.config.out if run is None else run))
    stored = read_data_file(folder)
    if source is not None:
        return _read_source(opened, source, stored)
    if opened.config is None:
        raise ConfigError("this adapter is not in a run folder, so it has no held-out examples; give --data")
    if stored.problem is not None:
        raise DataError(f"{stored.problem}, so the held-out rows of the run are not known; {_ADVICE}")
    if opened.row_format is None or not stored.digests:
        return _read_again(opened, opened.config, stored)
    return _find(opened, opened.config, opened.row_format, stored)


def held_out_examples(adapters: AdapterSet, model: Any, tokenizer: Any) -> tuple[Sequence[EncodedExample], str]:
    """Return the held-out examples of an adapter's run.

    Args:
        adapters: adapters from a run folder, or from an adapter folder in a run folder.
        model: model with the adapter.
        tokenizer: tokenizer of the model.

    Returns:
        The encoded examples, and a description of their source.

    Raises:
        ConfigError: the adapter is not in a run folder, or the run has no held-out examples.
        DataError: the data of the run cannot be read, or lack held-out rows of the run.
    """
    config = read_config(Path(adapters.source))
    if config is None:
        raise ConfigError("the adapter is not in a run folder")
    run_config = one_run(config, adapters.source)
    opened = OpenRun(model, tokenizer, adapters.row_format, run_config)
    held_out = held_out_split(opened, None, run=adapters.source)
    return held_out.split.encoded, f"{held_out.name} examples of the run"


def _find(opened: OpenRun, config: RunConfig, row_format: RowFormat, stored: DataFile) -> HeldOut:
    """Return the held-out examples of a run, found by their digests in the data of the run."""
    name = next((name for name in ("test", "validation") if name in stored.digests), None)
    if name is None:
        raise ConfigError("this run has neither test nor validation examples; give --data")
    try:
        rows = read_data(config.data).rows
        usable, _ = usable_rows(rows.get(name, rows["train"]), row_format)
    except DataError as error:
        raise DataError(f"{error}; {_ADVICE}") from None
    examples = FormattedExamples(usable, row_format)
    digests = stored.digests[name]
    indices_of: dict[int, list[int]] = {digest: [] for digest in digests}
    for index, digest in _digests(examples):
        if digest in indices_of:
            indices_of[digest].append(index)
    for indices in indices_of.values():
        indices.reverse()
    found = array("q", [indices_of[digest].pop() for digest in digests if indices_of[digest]])
    if len(found) < len(digests):
        missing = len(digests) - len(found)
        raise DataError(
            f"{examples.rows.name} was changed after the training: {missing:,} of the {counted(len(digests), 'row')} "
            f"held out for {name} are no longer in it; {_ADVICE}"
        )
    task, held_out = task_of(opened.model) or "causal_lm", examples.select(found)
    settings = config.data
    split, _ = encode_split(held_out, task, opened.tokenizer, settings.max_length, long_texts=settings.long_texts)
    lines = [f"{counted(len(split.examples), f'{name} example')} of the run"]
    return HeldOut(name, split, row_format, [*lines, *trained_lines(held_out, held_out.location, stored)])


def _digests(examples: FormattedExamples) -> Iterator[tuple[int, int]]:
    """Yield index and digest of every row that still has the row format."""
    for index in range(len(examples)):
        try:
            example = examples[index]
        except DataError:
            continue
        yield index, example_digest(example)


def _read_again(opened: OpenRun, config: RunConfig, stored: DataFile) -> HeldOut:
    """Return the held-out examples of a run that records no digests, split as its training split them."""
    data = load_data(config.data, opened.tokenizer, task=task_of(opened.model))
    name, split = evaluation_split(data)
    if split is None:
        raise ConfigError("this run has neither test nor validation examples; give --data")
    for part, report in data.report.splits.items():
        if stored.num_rows.get(part, report.rows) != report.rows:
            raise DataError(
                f"{report.source} was changed after the training: its {part} split has {counted(report.rows, 'row')}, "
                f"and the run had {stored.num_rows[part]:,}, so rows that were trained on could be among them; "
                f"{_ADVICE}"
            )
    row_format = opened.row_format or data.row_format
    if row_format != data.row_format and isinstance(split.examples, FormattedExamples):
        # Version 0.1.0 ordered labels by their texts. The class numbers of the model are those of its row format.
        examples = split.examples.with_format(row_format)
        split, _ = encode_split(
            examples, task_of(opened.model) or "causal_lm", opened.tokenizer, config.data.max_length
        )
    lines = [
        f"{counted(len(split.examples), f'{name} example')} of the run",
        "the run records no digests of its rows, so a change of the data after the training would not be noticed",
    ]
    return HeldOut(name, split, row_format, lines)


def _read_source(opened: OpenRun, source: str, stored: DataFile) -> HeldOut:
    """Read new data in the row format of the adapter."""
    if opened.row_format is None:
        raise ConfigError(
            "this adapter records no row format, so its data cannot be read; peftly predict scores it, with --template "
            "and --target (and --label for each label)"
        )
    splits = read(source)
    name = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    table = splits[name]
    settings = opened.config.data if opened.config else DataConfig(train="unused")
    max_length = min(settings.max_length, max_tokens(opened.model) or settings.max_length)
    usable, findings = usable_rows(table, opened.row_format)
    examples = FormattedExamples(usable, opened.row_format)
    task = task_of(opened.model) or "causal_lm"
    split, report = encode_split(examples, task, opened.tokenizer, max_length, long_texts=settings.long_texts)
    lines = [f"{counted(report.examples, 'example')} of {table.name}"]
    if report.truncated or report.dropped:
        lines.append(
            f"{report.truncated} truncated to {max_length} tokens, {report.dropped} dropped (no trained token left)"
        )
    lines += [finding.line() for finding in findings]
    return HeldOut(table.name, split, opened.row_format, [*lines, *trained_lines(examples, examples.location, stored)])


def trained_lines(examples: Sequence[Example], location: Callable[[int], str], stored: DataFile) -> list[str]:
    """Return a line on the examples whose prompt is among the training rows of a run.

    Args:
        examples: the examples.
        location: function from the index of an example to its location, for the line.
        stored: digests of the training rows.
    """
    if stored.problem is not None:
        return [f"{stored.problem}, so rows that were trained on are not counted"]
    if "train" not in stored.digests:
        return []
    keys = np.fromiter(map(prompt_key, examples), dtype=np.uint64, count=len(examples))
    indices = np.flatnonzero(np.isin(keys, np.array(stored.digests["train"], dtype=np.uint64))).tolist()
    if not indices:
        return []
    return [
        f"{len(indices):,} of {counted(len(examples), 'row')} have a prompt that the adapter was trained on "
        f"(first: {location(indices[0])}), so these scores say little about new rows"
    ]
