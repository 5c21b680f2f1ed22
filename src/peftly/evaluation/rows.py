"""Rows in memory or in a file as examples of a model, for functions that take both rows and encoded data."""

import warnings
from typing import TYPE_CHECKING

from peftly.data import (
    Data,
    DataSource,
    FormattedExamples,
    RowFormat,
    Split,
    counted,
    encode_split,
    load_data,
    read_rows,
    usable_rows,
)
from peftly.models import max_tokens, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["data_of", "split_of"]

_MAX_LENGTH = 512
"""Maximum number of tokens of an example, as of `load_data`."""


def data_of(model: "PreTrainedModel", source: DataSource, tokenizer: "PreTrainedTokenizerBase") -> Data:
    """Return rows as data of a model's task, encoded as `load_data` does by default.

    Args:
        model: model with its adapters, whose virtual tokens take positions.
        source: rows.
        tokenizer: tokenizer of the model.

    Raises:
        DataError: as of `load_data`.
    """
    return load_data(source, tokenizer, task=task_of(model) or "causal_lm", max_length=_max_length(model))


def split_of(
    model: "PreTrainedModel", source: "Split | DataSource", tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat
) -> Split:
    """Return rows as examples of a model's task; a `Split` is returned as it is.

    Args:
        model: model with its adapters.
        source: rows, of which the test split is used if they have several; or a split.
        tokenizer: tokenizer of the model.
        row_format: format of the rows.

    Raises:
        DataError: as of `load_data`.
    """
    if isinstance(source, Split):
        return source
    rows = read_rows(source)
    usable, findings = usable_rows(rows, row_format)
    task = task_of(model) or "causal_lm"
    split, report = encode_split(FormattedExamples(usable, row_format), task, tokenizer, _max_length(model))
    dropped = [finding.line() for finding in findings]
    if report.dropped:
        dropped.append(f"{counted(report.dropped, 'row')} dropped: no target is left")
    if dropped:
        warnings.warn(f"{rows.name}: {'; '.join(dropped)}", stacklevel=3)
    return split


def _max_length(model: "PreTrainedModel") -> int:
    return min(_MAX_LENGTH, max_tokens(model) or _MAX_LENGTH)
