"""`load_data`: training, validation and test examples from files, the Hub, or objects in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from peftly.data.config import AddSpace, DataConfig, LongTexts
from peftly.data.rows import describe, quoted
from peftly.data.sources import DataSource, read_splits, source_name
from peftly.data.splits import Data, RawData
from peftly.data.types import TaskName
from peftly.errors import ConfigError, DataError
from peftly.settings import shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_data", "read_data"]


def read_data(source: DataSource | DataConfig, **settings: Any) -> RawData:
    """Read the rows of a run, for callers that choose the task by the rows.

    Args:
        source: as for `load_data`.
        settings: keyword arguments of `load_data`, except `task`.

    Raises:
        ConfigError: a setting is not known or has an impossible value.
        DataError: a source has the wrong kind, cannot be read, or has no rows.
    """
    if isinstance(source, DataConfig):
        if settings:
            raise ConfigError(f"a DataConfig is given, and {quoted(settings)} too; set them in the DataConfig")
        return RawData(source, *read_splits(source.train, source.validation, source.test))
    sources = {split: settings.pop(split, None) for split in ("validation", "test")}
    names = {split: source_name(part, split) for split, part in sources.items() if part is not None}
    try:
        config = DataConfig.model_validate({"train": source_name(source, "train"), **names, **settings})
    except ValidationError as error:
        problem = error.errors()[0]
        setting = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{setting}={shortened(problem['input'])}: {problem['msg']}") from None
    return RawData(config, *read_splits(source, sources["validation"], sources["test"]))


def load_data(
    source: DataSource | DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: TaskName | None = None,
    validation: DataSource | None = None,
    test: DataSource | None = None,
    template: str | None = None,
    target: str | None = None,
    format: str | None = None,  # noqa: A002 - the name of the setting
    chat_template: str | None = None,
    max_length: int = 512,
    long_texts: LongTexts = "cut",
    add_space: AddSpace = "auto",
    validation_fraction: float = 0.1,
    seed: int = 0,
) -> Data:
    """Read, split and encode the data of a run.

    Rows are mappings of field to value. Their format is detected from the names of the fields, or given by `template`
    and `target`. A row takes about 100 bytes of memory: large data are stored in temporary files in peftly's cache
    folder, and a `Dataset` is read where it is. Only a list and a `.json` file with a list are in memory as a whole.

    Example::

        rows = [{"text": "third day of waiting", "label": "complaint"}, {"text": "thanks!", "label": "no complaint"}]
        data = peftly.load_data(rows, tokenizer, max_length=256)

    Args:
        source: training rows, as one of: a file (`.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`, `.parquet`), a folder
            written by the `datasets` library's `save_to_disk`, or the id of a data set on the Hub; a list of these,
            whose rows are joined; a list of rows; a `datasets.Dataset`, `DatasetDict` or stream (`IterableDataset`); a
            mapping of split name ("train", "validation", "test") to one of these. A `DataConfig` can be given instead
            of a source and the keyword arguments below, except `task`.
        tokenizer: tokenizer of the base.
        task: task of the model; None: "causal_lm", since the data do not know the base. For a loaded model, the task is
            `peftly.models.task_of(model)`.
        validation: validation rows, as for `source`. None: the validation split of `source`, otherwise a part of the
            training rows. "none": no validation rows.
        test: test rows, as for `source`. None: the test split of `source`, otherwise no test rows. "none": no test
            rows.
        template: template of the prompt, such as "Tweet text : {text} Label :"; None: template of the detected format.
        target: name of the field to learn; None: guessed and reported in `Data.report`.
        format: named row format with a template of its own, such as "alpaca-human"; see `DataConfig`.
        chat_template: chat template of conversations: its text, or a file with it. None: the tokenizer's own. The
            tokenizer gets this template, so that `generate` renders conversations as training did.
        max_length: maximum number of tokens of an example.
        long_texts: plain texts that are longer are "cut", or become several examples ("pieces").
        add_space: whether a space is added between prompt and completion; see `DataConfig`.
        validation_fraction: fraction of the training rows that become validation rows if there are no others; 0 for
            none.
        seed: random seed of the choice of these validation rows.

    Returns:
        The encoded splits, the row format, and a report.

    Raises:
        ConfigError: the task is not known, or a setting has an impossible value.
        DataError: a source has the wrong kind or cannot be read, a row or a label cannot be used, or a split has no
            trained token.
    """
    if not callable(tokenizer):
        raise DataError(
            f"tokenizer is {describe(tokenizer)}; give a tokenizer of transformers, such as load_base(...).tokenizer"
        )
    settings = {
        "validation": validation,
        "test": test,
        "template": template,
        "target": target,
        "format": format,
        "chat_template": chat_template,
        "max_length": max_length,
        "long_texts": long_texts,
        "add_space": add_space,
        "validation_fraction": validation_fraction,
        "seed": seed,
    }
    raw = read_data(source, **{name: value for name, value in settings.items() if not _is_default(name, value)})
    return raw.format("causal_lm" if task is None else task).encode(tokenizer)


def _is_default(setting: str, value: object) -> bool:
    default = DataConfig.model_fields[setting].default
    return value is None if default is None else value == default
