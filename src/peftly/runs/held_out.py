"""The held-out examples of a finished run, and new data in the row format of its training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peftly.adapters import AdapterSet
from peftly.data import (
    Data,
    DataConfig,
    EncodedExample,
    FormattedExamples,
    RowFormat,
    Split,
    counted,
    encode_split,
    load_data,
    read,
)
from peftly.errors import ConfigError
from peftly.models import max_tokens, task_of
from peftly.runs.config import one_run
from peftly.runs.folder import read_config
from peftly.runs.opening import OpenRun

__all__ = ["HeldOut", "evaluation_split", "held_out_examples", "held_out_split"]


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


def held_out_split(opened: OpenRun, source: str | None) -> HeldOut:
    """Return the examples on which a model is evaluated.

    Args:
        opened: model, with the configuration of its run if it has one.
        source: file, folder or Hub id with rows like those of the training; None: the held-out split of the run.

    Raises:
        ConfigError: neither `source` nor a run determines the examples, or the adapter records no row format.
        DataError: the data cannot be read, or do not have the row format.
    """
    if source is not None:
        return _read_source(opened, source)
    if opened.config is None:
        raise ConfigError("this adapter is not in a run folder, so it has no held-out examples; give --data")
    data = load_data(opened.config.data, opened.tokenizer, task=task_of(opened.model))
    name, split = evaluation_split(data)
    if split is None:
        raise ConfigError("this run has neither test nor validation examples; give --data")
    return HeldOut(name, split, data.row_format, [f"{counted(len(split.examples), f'{name} example')} of the run"])


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
        DataError: the data of the run cannot be read.
    """
    config = read_config(Path(adapters.source))
    if config is None:
        raise ConfigError("the adapter is not in a run folder")
    run_config = one_run(config, adapters.source)
    held_out = held_out_split(OpenRun(model, tokenizer, adapters.row_format, run_config), None)
    return held_out.split.encoded, f"{held_out.name} examples of the run"


def _read_source(opened: OpenRun, source: str) -> HeldOut:
    """Read new data in the row format of the adapter."""
    if opened.row_format is None:
        raise ConfigError("this adapter records no row format, so its data cannot be read; evaluate it from Python")
    splits = read(source)
    name = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    table = splits[name]
    settings = opened.config.data if opened.config else DataConfig(train="unused")
    max_length = min(settings.max_length, max_tokens(opened.model) or settings.max_length)
    examples = FormattedExamples(table, opened.row_format)
    split, report = encode_split(
        examples,
        task_of(opened.model) or "causal_lm",
        opened.tokenizer,
        max_length,
        long_texts=settings.long_texts,
    )
    lines = [f"{report.examples} examples of {table.name}"]
    if report.truncated or report.dropped:
        lines.append(
            f"{report.truncated} truncated to {max_length} tokens, {report.dropped} dropped (no trained token left)"
        )
    return HeldOut(table.name, split, opened.row_format, lines)
