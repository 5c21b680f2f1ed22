"""Data of a run as rows (`RawData`), as text (`FormattedData`) and as token ids (`Data`)."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, get_args

from peftly.data.checks import check_answers, check_labels
from peftly.data.config import DataConfig, LongTexts
from peftly.data.detect import TargetKind, detect_format, detect_target_kind
from peftly.data.digests import ExampleDigests
from peftly.data.findings import Finding, FindingCounter
from peftly.data.formats import RowFormat
from peftly.data.formatted import FormattedExamples
from peftly.data.notes import SpaceCounts, label_space_notes, rendered_notes, truncation_notes
from peftly.data.overlaps import answer_key, find_overlaps, find_repeats, prompt_key
from peftly.data.presets import match_preset
from peftly.data.report import DataReport, SplitReport, counted
from peftly.data.rows import Rows, quoted
from peftly.data.sources import NONE
from peftly.data.split import Split, encode_split
from peftly.data.text_findings import is_rendered
from peftly.data.types import TaskName
from peftly.data.usable import UnusableRows, has_no_targets
from peftly.data.validation import choose_validation
from peftly.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Data", "FormattedData", "RawData"]


@dataclass(frozen=True)
class Data:
    """Encoded data of a run.

    Attributes:
        train: training examples.
        validation: validation examples, or None.
        test: test examples, or None.
        row_format: format of the rows, which is saved with the adapter.
        report: counts of rows, tokens, truncated and dropped examples.
        digests: `prompt_key` of each row of "train", and `example_digest` of each row of "validation" and "test";
            empty for data that `load_data` has not made.
    """

    train: Split
    validation: Split | None
    test: Split | None
    row_format: RowFormat
    report: DataReport
    digests: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class _FormattedSplit:
    """Examples of one split as text.

    Attributes:
        examples: the examples.
        keys: `prompt_key` of each example.
        answers: `answer_key` of each example; empty for examples with labels.
        labels: number of each example's label; -1 without one.
        rendered: number of plain texts that are rendered conversations.
        spaces: completions that got a space in front, and completions that go on inside the last word of their prompts.
        dropped: rows of the split that cannot be used.
        without_turns: indices of the conversations without a turn to train. The encoding drops and counts them.
    """

    examples: FormattedExamples
    keys: Sequence[int]
    answers: Sequence[int]
    labels: Sequence[int]
    spaces: SpaceCounts | None = None
    rendered: int = 0
    dropped: Sequence[Finding] = ()
    without_turns: frozenset[int] = frozenset()

    def select(self, indices: Sequence[int]) -> _FormattedSplit:
        codes = (("Q", self.keys), ("Q", self.answers), ("q", self.labels))
        keys, answers, labels = (
            array(code, map(values.__getitem__, indices if values else ())) for code, values in codes
        )
        return _FormattedSplit(self.examples.select(indices), keys, answers, labels)

    def check(self, counter: FindingCounter, *, is_train: bool) -> None:
        """Count the defects that show without token ids."""
        row_format, location = self.examples.row_format, self.examples.location
        names = row_format.labels if row_format.kind == "label" else ()
        answers = self.labels if names else self.answers
        find_repeats(self.keys, answers, counter, location, names, has_tags=row_format.kind == "tags")
        if row_format.kind != "text":
            check_answers(self.keys, self.answers, counter)
        if is_train and row_format.labels:
            check_labels(row_format.labels, self.labels, row_format.target, counter)

    def with_dropped(self, report: SplitReport) -> SplitReport:
        """Return a report on the examples of the split with the dropped rows in its counts."""
        if not self.dropped:
            return report
        count = sum(finding.count for finding in self.dropped)
        return replace(
            report,
            rows=report.rows + count,
            dropped=report.dropped + count,
            first_dropped=self.dropped[0].samples[0],
            findings=[*self.dropped, *report.findings],
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
        long_texts: treatment of plain texts that are longer; see `DataConfig`.
    """

    task: TaskName
    row_format: RowFormat
    max_length: int
    splits: dict[str, _FormattedSplit]
    notes: list[str]
    long_texts: LongTexts = "cut"

    @property
    def num_examples(self) -> int:
        """Number of examples of all splits."""
        return sum(len(split.examples) for split in self.splits.values())

    def encode(self, tokenizer: PreTrainedTokenizerBase, *, max_samples: int = 3) -> Data:
        """Return the data as token ids.

        Args:
            tokenizer: tokenizer of the base. It gets the chat template of the row format, if there is one.
            max_samples: number of samples of each finding in the report.

        Raises:
            DataError: a split has no trained token, or the tokenizer does not support the task.
        """
        if self.row_format.chat_template is not None:
            tokenizer.chat_template = self.row_format.chat_template
        counters = {name: FindingCounter(max_samples) for name in self.splits}
        for name, split in self.splits.items():
            split.check(counters[name], is_train=name == "train")
        find_overlaps({name: (split.keys, split.examples.location) for name, split in self.splits.items()}, counters)
        encoded: dict[str, Split] = {}
        reports: dict[str, SplitReport] = {}
        for name in ("train", "validation", "test"):
            if name in self.splits:
                examples = self.splits[name].examples
                encoded[name], report = encode_split(
                    examples, self.task, tokenizer, self.max_length, counters[name], long_texts=self.long_texts
                )
                reports[name] = self.splits[name].with_dropped(report)
        notes = [*self.notes, *truncation_notes(self.row_format, self.long_texts, reports["train"].truncated)]
        data_report = DataReport(reports, notes)
        held_out = (encoded.get("validation"), encoded.get("test"))
        return Data(encoded["train"], *held_out, self.row_format, data_report, self._digests())

    def _digests(self) -> dict[str, Sequence[int]]:
        held_out = {name: split.examples for name, split in self.splits.items() if name != "train"}
        digests = {name: ExampleDigests(examples) for name, examples in held_out.items()}
        return {"train": self.splits["train"].keys, **digests}


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
        config = self._resolved()
        return detect_target_kind(self.rows["train"], config.template, config.target)

    def _resolved(self) -> DataConfig:
        """Return the settings with the template and the target of the named format."""
        if (name := self.config.format) is None:
            return self.config
        return self.config.model_copy(update=match_preset(name, self.rows["train"], self.config.target)._asdict())

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
        config, rows = self._resolved(), dict(self.rows)
        row_format, format_notes = detect_format(rows["train"], config.template, config.target, task)
        row_format = replace(row_format, add_space=config.add_space)
        notes = [*self.notes, *format_notes]
        if config.format is not None:
            shown = "its chat template" if row_format.template is None else f"the prompt as {row_format.template!r}"
            notes.insert(0, f"format {config.format}: {shown}")
        if config.chat_template is not None:
            if row_format.kind == "chat":
                row_format = replace(row_format, chat_template=config.chat_template)
            else:
                notes.append("chat_template is not used: the rows are no conversations")
        for name, source in (("validation", config.validation), ("test", config.test)):
            if name not in rows or source is not None or not has_no_targets(rows[name], row_format):
                continue
            if name == "test" or row_format.target in rows[name].fields:
                notes.append(f"{rows[name].name} has no value in {row_format.target!r}, so it is no {name} split")
                del rows[name]
        _check_fields(rows, row_format)
        splits = {name: _format_rows(split, row_format) for name, split in rows.items()}
        spaces = splits["train"].spaces
        space_notes = spaces.notes(config.add_space) if spaces is not None and task == "causal_lm" else []
        if task == "causal_lm" and config.template is not None:
            space_notes += label_space_notes(row_format)
        notes += rendered_notes(splits["train"].rendered, len(splits["train"].examples))
        if "validation" not in splits and config.validation != NONE:
            splits, note = _with_validation(splits, config)
            notes.append(note)
        return FormattedData(
            task, row_format, config.max_length, splits, [*notes, *space_notes], long_texts=config.long_texts
        )


def _check_fields(splits: Mapping[str, Rows], row_format: RowFormat) -> None:
    """Refuse a split of which no row has a field of the training rows: it is often a file of other data."""
    needed = [] if row_format.template is None else [*row_format.input_fields, row_format.target]
    for name, rows in splits.items():
        lacking = [field for field in needed if field not in (*rows.fields, *row_format.optional_fields)]
        if lacking and name != "train":
            raise DataError(
                f"{rows.name}: the {name} rows have no field {lacking[0]!r}, which the training rows have; they have "
                f"{quoted(rows.fields)}: give other rows with --{name}, or --{name} none"
            )


def _format_rows(rows: Rows, row_format: RowFormat) -> _FormattedSplit:
    """Return the examples of the rows, after a check of every row."""
    keys, answers, labels, spaces, rendered = array("Q"), array("Q"), array("q"), SpaceCounts(), 0
    number_of_label: dict[str | None, int] = {label: number for number, label in enumerate(row_format.labels)}
    counts_spaces = row_format.kind in ("completion", "alpaca")
    unusable, without_turns = UnusableRows(rows, row_format), set[int]()
    for index, row in enumerate(rows.rows):
        if unusable.has(index, row):
            continue
        example = row_format.example(row, rows.location(index))
        if example.messages and not example.has_trained_turn:
            without_turns.add(len(keys))
        keys.append(prompt_key(example))
        if row_format.kind != "label":
            answers.append(answer_key(example))
        labels.append(number_of_label.get(example.label, -1))
        if counts_spaces:
            spaces.count(example)
        rendered += row_format.kind == "text" and is_rendered(example.completion)
    examples = FormattedExamples(unusable.others(), row_format)
    return _FormattedSplit(
        examples, keys, answers, labels, spaces, rendered, unusable.findings(), frozenset(without_turns)
    )


def _with_validation(
    splits: Mapping[str, _FormattedSplit], config: DataConfig
) -> tuple[dict[str, _FormattedSplit], str]:
    """Return the splits with a part of the training examples as validation split, and a note about the choice."""
    train = splits["train"]
    if not config.validation_fraction:
        return dict(splits), "no validation split: validation_fraction is 0"
    candidates: Sequence[int] = range(len(train.keys))
    if train.without_turns:
        candidates = [index for index in candidates if index not in train.without_turns]
    part = train.select(candidates) if train.without_turns else train
    labels = _by_text(part.labels, train.examples.row_format.labels)
    picked = choose_validation(part.keys, labels, config.validation_fraction, config.seed) if candidates else []
    chosen = [candidates[index] for index in picked]
    if not chosen:
        return dict(splits), "no validation split: there are too few rows to take one from training"
    is_chosen = set(chosen)
    others = [index for index in range(len(train.examples)) if index not in is_chosen]
    note = f"validation is {counted(len(chosen), 'row')} taken from {train.examples.rows.name} by seed {config.seed}"
    rest = replace(train.select(others), dropped=train.dropped)
    return {**splits, "train": rest, "validation": train.select(chosen)}, note


def _by_text(labels: Sequence[int], names: Sequence[str]) -> Sequence[int]:
    """Return label numbers in the order of the labels' texts, so that the choice does not depend on their order."""
    if list(names) == sorted(names):
        return labels
    rank = {names.index(name): number for number, name in enumerate(sorted(names))}
    return array("q", (rank.get(label, label) for label in labels))
