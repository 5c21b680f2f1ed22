"""Predictions of a run for rows of data, batch by batch in an order that the rows and the settings alone determine."""

from collections import Counter
from collections.abc import Container, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from peftly.data import Example, RowFormat, Rows, Template, check_prompt_fields, quoted, row_prompt
from peftly.errors import ConfigError
from peftly.evaluation import vote_on
from peftly.inference import Answer, PredictionKind, RowPredictor, by_length
from peftly.injection import evaluation_mode
from peftly.models import labels_of, task_of

if TYPE_CHECKING:
    from peftly.evaluation import Vote
    from peftly.inference import Prompt
    from peftly.runs.opening import OpenRun

__all__ = ["PredictSettings", "RowPredictions", "format_of_rows", "unreadable_rows"]

_WINDOW_BATCHES = 64
"""Batches whose rows are sorted by length together."""

_MAX_LENGTH = 512
"""Default of `data.max_length`, for an adapter without the configuration of its run."""

_TARGETS = ("label", "completion", "output", "response", "answer", "target")


@dataclass(frozen=True)
class PredictSettings:
    """Settings of predictions.

    Attributes:
        batch_size: number of rows per forward pass.
        max_length: maximum number of tokens of a row; None: `data.max_length` of the run, and for generated text the
            positions of the model.
        is_text: whether a language model writes labels as text, instead of scoring each label.
        window: number of batches whose rows are sorted by length together; None: 64.
        generation: settings of `generate`, for text.
    """

    batch_size: int = 32
    max_length: int | None = None
    is_text: bool = False
    window: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int | None:
        """Seed of the draws; None: nothing is drawn."""
        draws = bool(self.generation.get("temperature")) or bool(self.generation.get("do_sample"))
        return int(self.generation.get("seed") or 0) if draws else None


def format_of_rows(
    rows: Rows, template: str | None, target: str | None = None, labels: Sequence[str] = ()
) -> RowFormat:
    """Return the row format for a model that records none: an untouched base, or an adapter of another tool.

    Args:
        rows: the rows.
        template: template of the prompts; None: the rows are conversations.
        target: name of the field with the targets, which the rows need not have; None: a usual name.
        labels: labels to choose from; empty: the model writes text, or is a classifier with labels of its own.

    Raises:
        ConfigError: there is no template, and the rows are no conversations.
        DataError: the template names a field that no row has.
    """
    if template is None:
        name = target or next((name for name in ("messages", "conversations") if name in rows.fields), None)
        if name is None or labels:
            raise ConfigError(
                "this model records no row format; give the template of its prompts: --template '{text}' (template= in "
                f"Python); the rows have {quoted(rows.fields)}"
            )
        return RowFormat("chat", None, name)
    fields = Template(template).names
    Template(template).check(rows.fields)
    target = target or next((name for name in _TARGETS if name in rows.fields and name not in fields), _TARGETS[0])
    if len(fields) == 1 and isinstance(rows.rows[0].get(fields[0]), list):
        return RowFormat("tags", template, target, tuple(labels))
    return RowFormat("label" if labels else "completion", template, target, tuple(labels))


def unreadable_rows(rows: Rows, row_format: RowFormat) -> list[int]:
    """Return the indices of the rows that give a model nothing to read, after a check of all rows.

    Raises:
        DataError: no row has a field of the prompts, or a field of a row holds another kind of value.
    """
    check_prompt_fields(rows, row_format)
    return [index for index, row in enumerate(rows.rows) if row_prompt(row_format, row, rows.location(index)) is None]


class RowPredictions:
    """Predictions of one model, or of the members of an ensemble, for rows.

    Attributes:
        rows: the rows.
        predictor: predictions of the model.
        kind: kind of the predictions.
    """

    def __init__(
        self,
        opened: "OpenRun",
        rows: Rows,
        row_format: RowFormat,
        settings: PredictSettings,
        *,
        members: Sequence[str] = (),
        vote: "Vote | None" = None,
    ) -> None:
        """Prepare the predictions.

        Args:
            opened: model.
            rows: rows that `unreadable_rows` has checked.
            row_format: format of the rows.
            settings: settings.
            members: names of the adapters that vote on a label; empty: the active adapters predict.
            vote: rule of the vote.

        Raises:
            ConfigError: the model predicts nothing for such rows, or the members of an ensemble predict no labels.
        """
        own_labels = tuple(labels_of(opened.model)) if (task_of(opened.model) or "").endswith("classification") else ()
        if not row_format.labels and own_labels:
            row_format = replace(row_format, labels=own_labels)
        is_scored = row_format.kind == "label" and not settings.is_text
        default = _MAX_LENGTH if opened.config is None else opened.config.data.max_length
        max_length = settings.max_length or (default if is_scored or own_labels else None)
        self.rows, self._settings = rows, settings
        self._members, self._vote = tuple(members) if vote else (), vote
        self.predictor = RowPredictor(
            opened.model, opened.tokenizer, row_format, max_length, settings.generation, settings.is_text
        )
        self.kind: PredictionKind = self.predictor.kind
        if self._members and self.kind != "label":
            raise ConfigError(
                f"an ensemble votes on labels, and this one predicts {self.kind}; name one of its members"
            )
        if row_format.chat_template is not None:
            opened.tokenizer.chat_template = row_format.chat_template

    @property
    def row_format(self) -> RowFormat:
        """Format of the rows, with the labels of the model."""
        return self.predictor.row_format

    def batches(self, done: Container[int] = ()) -> Generator[tuple[list[int], list[Answer]]]:
        """Yield the indices of the rows of each batch, and the answers for them.

        Args:
            done: indices of the rows of the batches that are known already.
        """
        window = self._settings.batch_size * (self._settings.window or _WINDOW_BATCHES)
        drawn = Counter[object]()
        with evaluation_mode(self.predictor.model):
            for start in range(0, len(self.rows), window):
                indices = range(start, min(start + window, len(self.rows)))
                if self._settings.seed is None and all(index in done for index in indices):
                    continue
                prompts = self._prompts(indices)
                seeds = self._seeds(prompts, drawn)
                if (empty := [index for index in indices if index not in prompts]) and empty[0] not in done:
                    yield empty, [Answer()] * len(empty)
                lengths = [len(prompt.encoded.input_ids) for prompt in prompts.values()]
                order = list(prompts)
                equal = self.predictor.reads_padding
                for batch in by_length(lengths, self._settings.batch_size, equal_lengths=equal):
                    chosen = [order[number] for number in batch]
                    if chosen[0] not in done:
                        own_seeds = None if seeds is None else [seeds[index] for index in chosen]
                        yield chosen, self._predict([prompts[index] for index in chosen], own_seeds)

    def _prompts(self, indices: range) -> "dict[int, Prompt]":
        """Return the prompts of some rows by their indices, without the rows that the model cannot read."""
        examples: dict[int, Example] = {}
        for index in indices:
            example = row_prompt(self.row_format, self.rows.rows[index], self.rows.location(index))
            if example is not None:
                examples[index] = example
        encoded = self.predictor.encode(list(examples.values()))
        return {index: prompt for index, prompt in zip(examples, encoded, strict=True) if prompt is not None}

    def _seeds(self, prompts: "Mapping[int, Prompt]", drawn: Counter[object]) -> dict[int, int] | None:
        """Return the seed of each row: that of the settings, and higher ones for the copies of an earlier prompt."""
        if self._settings.seed is None:
            return None
        seeds = {}
        for index, prompt in prompts.items():
            tokens = tuple(prompt.encoded.input_ids)
            seeds[index] = (self._settings.seed + drawn[tokens]) % 2**32
            drawn[tokens] += 1
        return seeds

    def _predict(self, prompts: "Sequence[Prompt]", seeds: Sequence[int] | None) -> list[Answer]:
        if not self._members:
            return [answer.rounded() for answer in self.predictor.predict(prompts, seeds=seeds)]
        by_member = [self.predictor.predict(prompts, adapter=member) for member in self._members]
        return [self._voted(answers) for answers in zip(*by_member, strict=True)]

    def _voted(self, answers: Sequence[Answer]) -> Answer:
        probabilities = [answer.probabilities or {} for answer in answers]
        label, mean = vote_on(probabilities, list(probabilities[0]), self._vote or "majority")
        return Answer(label, mean, answers[0].is_cut).rounded()
