"""Data of a run as rows (`RawData`), as text (`FormattedData`) and as token ids (`Data`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from peftly.data.config import DataConfig
from peftly.data.detect import TargetKind, detect_format, detect_target_kind
from peftly.data.formats import RowFormat
from peftly.data.overlaps import find_overlaps
from peftly.data.report import DataReport, LossUnit, SplitReport, counted
from peftly.data.rows import Rows, quoted
from peftly.data.task_encoding import encode_for
from peftly.data.templates import Template
from peftly.data.types import EncodedExample, Example, TaskName
from peftly.data.validation import choose_validation
from peftly.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Data", "FormattedData", "RawData", "Split"]

_UNITS: dict[TaskName, LossUnit] = {"sequence_classification": "row", "token_classification": "tag"}


@dataclass(frozen=True)
class Split:
    """Examples of one split with their token ids. Dropped rows are in neither list.

    Attributes:
        examples: the examples as text.
        encoded: the examples as token ids, in the same order.
        adapters: adapters of each example, as for `use_adapters`; None: the active adapters for all examples.
    """

    examples: list[Example]
    encoded: list[EncodedExample]
    adapters: list[str | Sequence[str] | None] | None = None


@dataclass(frozen=True)
class Data:
    """Encoded data of a run.

    Attributes:
        train: training examples.
        validation: validation examples, or None.
        test: test examples, or None.
        row_format: format of the rows, which is saved with the adapter.
        report: counts of rows, tokens, truncated and dropped examples.
    """

    train: Split
    validation: Split | None
    test: Split | None
    row_format: RowFormat
    report: DataReport


@dataclass(frozen=True)
class _FormattedSplit:
    """Examples of one split as text, with the location of each example."""

    source: str
    examples: list[Example]
    locations: list[str]

    def select(self, indices: Sequence[int]) -> _FormattedSplit:
        return _FormattedSplit(
            self.source, [self.examples[index] for index in indices], [self.locations[index] for index in indices]
        )


@dataclass(frozen=True)
class FormattedData:
    """Data of a run as text, in the row format of a task.

    Attributes:
        task: task of the model.
        row_format: format of the rows.
        max_length: maximum number of tokens of an example.
        splits: examples of each split.
        notes: assumptions about the data, one sentence each.
    """

    task: TaskName
    row_format: RowFormat
    max_length: int
    splits: dict[str, _FormattedSplit]
    notes: list[str]

    def encode(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        """Return the data as token ids.

        Args:
            tokenizer: tokenizer of the base.

        Raises:
            DataError: a split has no trained token, or the tokenizer does not support the task.
        """
        encoded: dict[str, Split] = {}
        reports: dict[str, SplitReport] = {}
        for name in ("train", "validation", "test"):
            if name in self.splits:
                encoded[name], reports[name] = _encode_split(self.splits[name], tokenizer, self)
        overlaps = find_overlaps({name: (split.examples, split.locations) for name, split in self.splits.items()})
        report = DataReport(reports, overlaps, self.notes)
        return Data(encoded["train"], encoded.get("validation"), encoded.get("test"), self.row_format, report)


@dataclass(frozen=True)
class RawData:
    """Rows of a run by split, before the choice of a task.

    Attributes:
        config: settings of the conversion to token ids.
        rows: rows of each split.
        notes: assumptions about the data, one sentence each.
    """

    config: DataConfig
    rows: dict[str, Rows]
    notes: list[str]

    def target_kind(self) -> TargetKind:
        """Return the kind of the targets in the training rows: "tags", "labels" or "texts"."""
        return detect_target_kind(self.rows["train"], self.config.template, self.config.target)

    def format(self, task: TaskName) -> FormattedData:
        """Return the rows as examples of a task.

        Args:
            task: task of the model.

        Raises:
            ConfigError: the task is not known.
            DataError: the rows have no row format of the task, or a row or a label cannot be used.
        """
        if task not in get_args(TaskName):
            raise ConfigError(f"task {task!r} is not known; known are {quoted(get_args(TaskName))}")
        config, rows = self.config, dict(self.rows)
        row_format, format_notes = detect_format(rows["train"], config.template, config.target, task)
        notes = [*self.notes, *format_notes]
        if "test" in rows and config.test is None and _is_unlabelled(rows["test"], row_format):
            notes.append(f"{rows['test'].name} has no value in {row_format.target!r}, so there is no test split")
            del rows["test"]
        splits = {name: _format_rows(split, row_format) for name, split in rows.items()}
        space_notes = _added_spaces(row_format, rows["train"], splits["train"]) if task == "causal_lm" else []
        if "validation" not in splits:
            splits, note = _with_validation(splits, config)
            notes.append(note)
        return FormattedData(task, row_format, config.max_length, splits, [*notes, *space_notes])


def _is_unlabelled(rows: Rows, row_format: RowFormat) -> bool:
    return all(row.get(row_format.target) is None for row in rows.rows)


def _format_rows(rows: Rows, row_format: RowFormat) -> _FormattedSplit:
    locations = [rows.location(index) for index in range(len(rows))]
    return _FormattedSplit(rows.name, row_format.examples(rows.rows, rows.location), locations)


def _with_validation(
    splits: Mapping[str, _FormattedSplit], config: DataConfig
) -> tuple[dict[str, _FormattedSplit], str]:
    """Return the splits with a part of the training examples as validation split, and a note about the choice."""
    train = splits["train"]
    if not config.validation_fraction:
        return dict(splits), "no validation split: validation_fraction is 0"
    chosen = choose_validation(train.examples, config.validation_fraction, config.seed)
    if not chosen:
        return dict(splits), "no validation split: there are too few rows to take one from training"
    is_chosen = set(chosen)
    others = [index for index in range(len(train.examples)) if index not in is_chosen]
    note = f"validation is {counted(len(chosen), 'row')} taken from {train.source} by seed {config.seed}"
    return {**splits, "train": train.select(others), "validation": train.select(chosen)}, note


def _encode_split(
    split: _FormattedSplit, tokenizer: PreTrainedTokenizerBase, data: FormattedData
) -> tuple[Split, SplitReport]:
    """Return the encoded split without the dropped rows, and the counts."""
    results = encode_for(
        data.task, split.examples, tokenizer, data.row_format, data.max_length, locations=split.locations
    )
    pairs = [(example, result) for example, result in zip(split.examples, results, strict=True) if result is not None]
    if not pairs:
        raise DataError(
            f"{split.source}: no trained token is left in any of {counted(len(results), 'row')} (first: "
            f"{split.locations[0]}); completions are empty, or max_length={data.max_length} is too small"
        )
    examples, encoded = [example for example, _ in pairs], [tokens for _, tokens in pairs]
    labels = Counter(label for example in examples for label in (*example.tags, *filter(None, [example.label])))
    dropped = [location for location, result in zip(split.locations, results, strict=True) if result is None]
    report = SplitReport(
        source=split.source,
        rows=len(results),
        examples=len(examples),
        truncated=sum(tokens.num_truncated > 0 for tokens in encoded),
        tokens_cut=sum(tokens.num_truncated for tokens in encoded),
        dropped=len(dropped),
        first_dropped=dropped[0] if dropped else None,
        tokens=sum(tokens.num_tokens for tokens in encoded),
        trained_tokens=sum(tokens.num_targets for tokens in encoded),
        labels=dict(sorted(labels.items())),
        unit=_UNITS.get(data.task, "token"),
    )
    return Split(examples, encoded), report


def _added_spaces(row_format: RowFormat, rows: Rows, split: _FormattedSplit) -> list[str]:
    """Return a note if a space was added between prompts and completions that are written without one."""
    template = Template(row_format.template or "")
    if row_format.kind != "completion" or not template.is_one_field:
        return []
    num_added = sum(
        len(example.prompt) + len(example.completion) > len(row[template.fields[0]]) + len(row[row_format.target])
        for row, example in zip(rows.rows, split.examples, strict=True)
    )
    if not num_added:
        return []
    return [f"{counted(num_added, 'completion')} got a space in front, since the prompt ends in none"]
