"""Which rows speak about a finished run, and how new rows are brought into the shape it was trained with."""

from pathlib import Path
from typing import Any, NamedTuple

from peftly.adapters import find_adapter, read_notes
from peftly.data import Data, DataConfig, EncodedExample, RowFormat, Split, encode_for, load_data, read
from peftly.errors import ConfigError, DataError
from peftly.models import task_of
from peftly.runs.config import one_run
from peftly.runs.folder import OpenRun, read_config

__all__ = ["HeldOut", "evaluation_split", "held_out_examples", "held_out_rows"]


class HeldOut(NamedTuple):
    """Rows to score.

    Attributes:
        name: the split or the file they come from.
        split: the rows.
        row_format: how they became text.
        lines: what a person should know about them.
    """

    name: str
    split: Split
    row_format: RowFormat
    lines: list[str]


def evaluation_split(data: Data) -> tuple[str, Split | None]:
    """Return the test rows, else the validation rows, and which of the two they are."""
    return ("test", data.test) if data.test is not None else ("validation", data.validation)


def held_out_rows(opened: OpenRun, source: str | None) -> HeldOut:
    """Return the rows to score a model on.

    Args:
        opened: the model, with its run if it is known.
        source: a file, folder or Hub id in the shape of the training rows; None: the run's own held-out rows.

    Raises:
        ConfigError: there is no telling which rows, or how they become text.
        DataError: the rows cannot be read or do not have that shape.
    """
    if source is not None:
        return _from_source(opened, source)
    if opened.config is None:
        raise ConfigError("this adapter is not in a run folder, so it has no rows of its own; give --data")
    data = load_data(opened.config.data, opened.tokenizer, task_of(opened.model) or "causal_lm")
    name, split = evaluation_split(data)
    if split is None:
        raise ConfigError("this run has neither test nor validation rows; give --data")
    return HeldOut(name, split, data.row_format, [f"{len(split.examples)} {name} rows of the run"])


def held_out_examples(adapter: str | Path, model: Any, tokenizer: Any) -> tuple[list[EncodedExample], str]:
    """Return the held-out examples of the run of an adapter, encoded, and the words for their source.

    Raises:
        ConfigError: the adapter is in no run folder, or its run has no held-out rows.
        DataError: the rows cannot be read.
    """
    found = read_config(Path(adapter))
    if found is None:
        raise ConfigError("the adapter is not in a run folder")
    noted = read_notes(find_adapter(adapter)).get("row_format")
    row_format = RowFormat.from_dict(noted) if noted else None
    rows = held_out_rows(OpenRun(model, tokenizer, row_format, one_run(found, adapter)), None)
    return rows.split.encoded, f"{rows.name} rows of the run"


def _from_source(opened: OpenRun, source: str) -> HeldOut:
    if opened.row_format is None:
        raise ConfigError("this adapter notes nowhere how a row becomes text (its shape); evaluate it from Python")
    splits = read(source)
    name = next((name for name in ("test", "validation") if name in splits), next(iter(splits)))
    rows = splits[name]
    max_length = opened.config.data.max_length if opened.config else int(DataConfig.model_fields["max_length"].default)
    examples = opened.row_format.examples(rows.rows, rows.where)
    task = task_of(opened.model) or "causal_lm"
    encoded = encode_for(task, examples, opened.tokenizer, opened.row_format, max_length)
    pairs = [(example, row) for example, row in zip(examples, encoded, strict=True) if row is not None]
    if not pairs:
        raise DataError(f"{source}: no row has a trained token left within {max_length} tokens")
    lines = [f"{len(pairs)} rows of {rows.name}"]
    cut = sum(row.cut > 0 for _, row in pairs)
    if cut or len(pairs) < len(rows):
        lines.append(
            f"{cut} truncated to {max_length} tokens, {len(rows) - len(pairs)} dropped (no trained token left)"
        )
    return HeldOut(
        rows.name, Split([example for example, _ in pairs], [row for _, row in pairs]), opened.row_format, lines
    )
