"""The examples of an audit: the first ones, and those of each finding."""

from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

from peftly.data import Data, encode_for, read_data
from peftly.models import choose_task, load_tokenizer, resolve_base
from peftly.report import ShownExample, answer_units, example_units, raw_units

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import EncodedExample, FormattedData
    from peftly.runs import RunConfig

__all__ = ["Audit"]

_LEARNED = {"sequence_classification": "label", "token_classification": "tagged"}


@dataclass(frozen=True)
class Audit:
    """Encoded data of a configuration, to look at before a training.

    Attributes:
        formatted: the data as text.
        data: the data as token ids, with the report.
        tokenizer: tokenizer of the base.
        reason: reason for the choice of the task.
    """

    formatted: "FormattedData"
    data: Data
    tokenizer: "PreTrainedTokenizerBase"
    reason: str

    @classmethod
    def of(cls, config: "RunConfig", *, max_samples: int) -> "Audit":
        """Read and encode the data of a configuration. No weights are read.

        Args:
            config: the configuration.
            max_samples: number of samples of each finding.
        """
        raw = read_data(config.data)
        base = resolve_base(config.base)
        task, reason = choose_task(config.task, base.config, raw.target_kind(), config.base)
        formatted = raw.format(task)
        tokenizer = load_tokenizer(base)
        return cls(formatted, formatted.encode(tokenizer, max_samples=max_samples), tokenizer, reason)

    def first(self, count: int) -> list[ShownExample]:
        """Return the first training examples.

        Args:
            count: number of examples.
        """
        train = self.data.train
        locations = getattr(train.examples, "location", lambda index: f"row {index + 1}")
        return [
            self._shown(f"example {index + 1}: {locations(index)}", encoded)
            for index, encoded in enumerate(train.encoded[:count])
        ]

    def found(self) -> dict[tuple[str, str], list[ShownExample]]:
        """Return the examples of each finding, by the name of the split and the kind."""
        return {
            (name, finding.kind): [
                self._shown_row(name, row, sample)
                for row, sample in zip(chain(finding.rows, repeat(-1)), finding.samples, strict=False)
            ]
            for name, finding in self.data.report.findings
        }

    def _shown_row(self, split: str, row: int, sample: str) -> ShownExample:
        if row < 0:
            return ShownExample(sample, ())
        examples = self.formatted.splits[split].examples
        example, row_format = examples[row], self.formatted.row_format
        location = examples.location(row)
        encoded = encode_for(
            self.formatted.task,
            [example],
            self.tokenizer,
            row_format,
            self.formatted.max_length,
            location=lambda _: location,
        )[0]
        if encoded is None or not encoded.input_ids:
            return ShownExample(sample, raw_units(example))
        return self._shown(sample, encoded)

    def _shown(self, title: str, encoded: "EncodedExample") -> ShownExample:
        learned = _LEARNED.get(self.formatted.task, "trained")
        cut = f", {encoded.num_truncated} cut" if encoded.num_truncated else ""
        counts = f"{encoded.num_tokens} tokens, {encoded.num_targets} {learned}{cut}"
        labels = self.formatted.row_format.labels
        return ShownExample(
            f"{title}: {counts}",
            example_units(encoded, self.tokenizer, labels),
            answer_units(encoded, self.tokenizer, labels),
        )
