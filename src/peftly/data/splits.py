"""From the files that a run names to its three splits, encoded, with everything counted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from peftly.data.collate import epoch_order
from peftly.data.detect import holds, recognise
from peftly.data.formats import RowFormat
from peftly.data.overlaps import key_of, overlaps
from peftly.data.readers import Rows, read
from peftly.data.report import DataReport, SplitReport, Unit, counted
from peftly.data.task_encoding import encode_for
from peftly.data.templates import Template
from peftly.data.types import EncodedExample, Example, TaskName
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Data", "DataConfig", "RawData", "ShapedData", "Split", "load_data", "read_data"]

_UNITS: dict[TaskName, Unit] = {"sequence_classification": "row", "token_classification": "tag"}

_SPLITTING = -1
"""The "epoch" whose order chooses the validation rows: one that no epoch of training has."""


class DataConfig(BaseModel):
    """Where a run's rows come from, and how they become text.

    Attributes:
        train: a file, a `datasets` folder or the id of a data set on the Hub.
        validation: likewise; None: the data set's own validation split, or else a part of `train`.
        test: likewise; None: the data set's own test split, or else none.
        template: the prompt, as in "Tweet text : {text} Label :"; None: that of the recognised shape. `{prompt:3}` in
            it marks where three virtual tokens of a method with `position: template` stand.
        target: the field to learn; None: guessed, and said.
        max_length: tokens of an example, at most.
        validation_fraction: the part of `train` that becomes validation when there is none.
        seed: of that choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str
    validation: str | None = None
    test: str | None = None
    template: str | None = None
    target: str | None = None
    max_length: int = Field(default=512, ge=2)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Split:
    """Examples and their tokens, side by side; what was dropped is in neither.

    Attributes:
        examples: the rows as texts.
        encoded: the rows as tokens.
        adapters: what works on each row where that is not the same for all, as `use_adapters` takes it.
    """

    examples: list[Example]
    encoded: list[EncodedExample]
    adapters: list[str | Sequence[str] | None] | None = None


@dataclass(frozen=True)
class Data:
    """A run's data: three splits, how their rows became text, and what was counted on the way."""

    train: Split
    validation: Split | None
    test: Split | None
    row_format: RowFormat
    report: DataReport


@dataclass(frozen=True)
class _Part:
    """A split before encoding: its examples and where each comes from."""

    source: str
    examples: list[Example]
    places: list[str]

    def chosen(self, indices: Sequence[int]) -> "_Part":
        return _Part(self.source, [self.examples[at] for at in indices], [self.places[at] for at in indices])


@dataclass(frozen=True)
class ShapedData:
    """A run's data before any tokens: what the rows say, and what is to be learned of them."""

    task: TaskName
    row_format: RowFormat
    max_length: int
    parts: dict[str, "_Part"]
    notes: list[str]

    def encoded(self, tokenizer: "PreTrainedTokenizerBase") -> Data:
        """Return the data as tokens.

        Args:
            tokenizer: the base's own.

        Raises:
            DataError: a split has nothing left to learn, or the tokenizer cannot do what the task needs.
        """
        splits: dict[str, Split] = {}
        reports: dict[str, SplitReport] = {}
        for name in ("train", "validation", "test"):
            if name in self.parts:
                splits[name], reports[name] = _encoded(self.parts[name], tokenizer, self)
        report = DataReport(
            reports, overlaps({name: (part.examples, part.places) for name, part in self.parts.items()}), self.notes
        )
        return Data(splits["train"], splits.get("validation"), splits.get("test"), self.row_format, report)


@dataclass(frozen=True)
class RawData:
    """A run's rows by split, as they were read, before it is decided what is learned of them."""

    config: DataConfig
    sources: dict[str, Rows]
    notes: list[str]

    def holds(self) -> Literal["tags", "labels", "texts"]:
        """Say what there is to learn in the rows."""
        return holds(self.sources["train"], self.config.template, self.config.target)

    def shaped(self, task: TaskName) -> ShapedData:
        """Return the rows in the shape that a task asks for.

        Raises:
            DataError: they have none, or a row or label cannot be used.
        """
        config, sources = self.config, dict(self.sources)
        row_format, guesses = recognise(sources["train"], config.template, config.target, task)
        notes = [*self.notes, *guesses]
        if "test" in sources and config.test is None and _is_unlabelled(sources["test"], row_format):
            notes.append(f"{sources['test'].name} has no value in {row_format.target!r}, so there is no test split")
            del sources["test"]
        parts = {name: _part(rows, row_format) for name, rows in sources.items()}
        if "validation" not in parts:
            parts, note = _with_validation(parts, config)
            notes.append(note)
        if task == "causal_lm":
            notes += _added_spaces(row_format, sources["train"])
        return ShapedData(task, row_format, config.max_length, parts, notes)


def read_data(config: DataConfig) -> RawData:
    """Read a run's rows.

    Raises:
        DataError: a file cannot be read, or holds no rows.
    """
    return RawData(config, *_sources(config))


def load_data(config: DataConfig, tokenizer: "PreTrainedTokenizerBase", task: TaskName = "causal_lm") -> Data:
    """Read, split and encode a run's data.

    Args:
        config: where from and how.
        tokenizer: the base's own.
        task: what is to be learned of the rows.

    Raises:
        DataError: a file, row or label cannot be used, or a split has no row with a trained token.
    """
    return read_data(config).shaped(task).encoded(tokenizer)


def _sources(config: DataConfig) -> tuple[dict[str, Rows], list[str]]:
    found, notes = read(config.train), []
    sources = {"train": _one_of(config.train, found, ("train",))}
    for name, given, own in (
        ("validation", config.validation, ("validation", "valid", "dev")),
        ("test", config.test, ("test",)),
    ):
        if given is not None:
            sources[name] = _one_of(given, read(given), own)
        elif part := next((split for split in own if split in found and found[split] is not sources["train"]), None):
            sources[name] = found[part]
            notes.append(f"{name} is the split {part!r} of {config.train}")
    return sources, notes


def _one_of(source: str, found: Mapping[str, Rows], wanted: tuple[str, ...]) -> Rows:
    for name in wanted:
        if name in found:
            return found[name]
    if len(found) > 1:
        raise DataError(f"{source}: has the splits {', '.join(map(repr, found))}, none of them {wanted[0]!r}")
    return next(iter(found.values()))


def _is_unlabelled(rows: Rows, row_format: RowFormat) -> bool:
    return all(row.get(row_format.target) is None for row in rows.rows)


def _part(rows: Rows, row_format: RowFormat) -> _Part:
    places = [rows.where(index) for index in range(len(rows))]
    return _Part(rows.name, row_format.examples(rows.rows, rows.where), places)


def _with_validation(parts: dict[str, _Part], config: DataConfig) -> tuple[dict[str, _Part], str]:
    train = parts["train"]
    if not config.validation_fraction:
        return parts, "no validation split: validation_fraction is 0"
    chosen = _validation_rows(train.examples, config.validation_fraction, config.seed)
    if not chosen:
        return parts, "no validation split: there are too few rows to take one from training"
    taken = set(chosen)
    rest = [index for index in range(len(train.examples)) if index not in taken]
    note = f"validation is {counted(len(chosen), 'row')} taken from {train.source} by seed {config.seed}"
    return {**parts, "train": train.chosen(rest), "validation": train.chosen(chosen)}, note


def _validation_rows(examples: Sequence[Example], fraction: float, seed: int) -> list[int]:
    """Return which rows become validation, in order.

    The share of every label is kept as nearly as whole rows allow (largest remainders), every label keeps a row to
    train on, and rows whose prompt stands there once come first, so that splitting makes no duplicates by itself.
    """
    keys = [key_of(example) for example in examples]
    times = Counter(keys)
    groups: dict[str | None, list[int]] = {}
    for index in epoch_order(len(examples), seed=seed, epoch=_SPLITTING):
        groups.setdefault(examples[index].label, []).append(index)
    total = max(1, round(fraction * len(examples)))
    names = sorted(groups, key=lambda label: label or "")
    quota = {name: int(fraction * len(groups[name])) for name in names}
    by_remainder = sorted(names, key=lambda name: int(fraction * len(groups[name])) - fraction * len(groups[name]))
    for name in by_remainder:
        if sum(quota.values()) < total and quota[name] < len(groups[name]) - 1:
            quota[name] += 1
    return sorted(
        index for name in names for index in sorted(groups[name], key=lambda at: times[keys[at]] > 1)[: quota[name]]
    )


def _encoded(part: _Part, tokenizer: "PreTrainedTokenizerBase", data: ShapedData) -> tuple[Split, SplitReport]:
    made = encode_for(data.task, part.examples, tokenizer, data.row_format, data.max_length, places=part.places)
    kept = [(example, encoded) for example, encoded in zip(part.examples, made, strict=True) if encoded is not None]
    if not kept:
        raise DataError(
            f"{part.source}: no trained token is left in any of {counted(len(made), 'row')} (first: {part.places[0]}); "
            f"completions are empty, or max_length={data.max_length} is too small"
        )
    encoded = [tokens for _, tokens in kept]
    labels = Counter(label for example, _ in kept for label in (*example.tags, *filter(None, [example.label])))
    report = SplitReport(
        source=part.source,
        rows=len(made),
        kept=len(kept),
        truncated=sum(tokens.cut > 0 for tokens in encoded),
        tokens_cut=sum(tokens.cut for tokens in encoded),
        dropped=len(made) - len(kept),
        first_dropped=next((place for place, one in zip(part.places, made, strict=True) if one is None), None),
        tokens=sum(tokens.num_tokens for tokens in encoded),
        trained_tokens=sum(tokens.num_targets for tokens in encoded),
        labels=dict(sorted(labels.items())),
        unit=_UNITS.get(data.task, "token"),
    )
    return Split([example for example, _ in kept], encoded), report


def _added_spaces(row_format: RowFormat, rows: Rows) -> list[str]:
    """Return a note if spaces were put between prompts and completions that are written without."""
    if row_format.kind != "completion" or not Template(row_format.template or "").is_one_field:
        return []
    pairs = zip(rows.rows, row_format.examples(rows.rows, rows.where), strict=True)
    name = Template(row_format.template or "").fields[0]
    added = sum(
        len(example.prompt) + len(example.completion) > len(row[name]) + len(row[row_format.target])
        for row, example in pairs
    )
    return [f"{counted(added, 'completion')} got a space in front, since the prompt ends in none"] if added else []
