"""Counts of a data set: rows read, tokens, truncated and dropped examples, and assumptions about the row format."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from peftly.data.findings import Finding

__all__ = ["DataReport", "LossUnit", "Overlap", "SplitReport", "counted"]

LossUnit = Literal["token", "tag", "row"]
"""Unit that the loss counts: trained tokens, tags, or rows with one label each."""


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split.

    Attributes:
        source: file or data set of the split; the name of the split for rows given in memory.
        rows: number of rows read; `rows == examples + dropped`, unless a conversation or a long text gives several
            examples.
        examples: number of examples to train or evaluate on.
        truncated: number of examples that were cut to the maximum length.
        tokens_cut: number of tokens removed from the truncated examples.
        dropped: number of rows without a trained token, which are left out.
        first_dropped: location of the first dropped row.
        tokens: number of tokens of all examples.
        trained_tokens: number of loss terms: trained tokens, tags, or examples with a label.
        labels: number of examples of each label, or of words of each tag.
        unit: unit that the loss counts.
        findings: defects of the examples, by kind.
        texts_in_pieces: number of long texts that were cut into several examples.
        pieces: number of these examples.
    """

    source: str
    rows: int
    examples: int
    truncated: int
    tokens_cut: int
    dropped: int
    first_dropped: str | None
    tokens: int
    trained_tokens: int
    labels: dict[str, int] = field(default_factory=dict)
    unit: LossUnit = "token"
    findings: list[Finding] = field(default_factory=list)
    texts_in_pieces: int = 0
    pieces: int = 0

    def line(self, name: str) -> str:
        """Return the counts in one line.

        Args:
            name: name of the split.
        """
        source = "" if self.source == name else f" of {self.source}"
        line = f"{name}: {counted(self.rows, 'row')}{source}, {counted(self.tokens, 'token')}"
        if self.unit == "token":
            line += f", {self.trained_tokens:,} of them trained"
        elif self.unit == "tag":
            line += f", {counted(self.trained_tokens, 'tag')}"
        if self.labels:
            line += " (" + ", ".join(f"{label}: {count:,}" for label, count in self.labels.items()) + ")"
        if self.truncated:
            line += f"; {self.truncated:,} truncated by {counted(self.tokens_cut, 'token')}"
        if self.pieces:
            line += f"; {counted(self.texts_in_pieces, 'long text')} cut into {self.pieces:,} pieces"
        if self.dropped:
            line += f"; {self.dropped:,} dropped, with no trained token (first: {self.first_dropped})"
        return line


@dataclass(frozen=True)
class Overlap:
    """Examples of one split whose prompt is in another split, too.

    Attributes:
        split: name of the later split in the order train, validation, test.
        other: name of the earlier split.
        count: number of examples of `split` whose prompt is in `other`.
        location: location of the first of these examples in `split`.
        other_location: location of the same prompt in `other`.
    """

    split: str
    other: str
    count: int
    location: str
    other_location: str

    def line(self) -> str:
        """Return the overlap in one line."""
        verb = "is" if self.count == 1 else "are"
        rows = counted(self.count, "row")
        return f"{rows} of {self.split} {verb} in {self.other}, too (first: {self.location} is {self.other_location})"


@dataclass(frozen=True)
class DataReport:
    """Counts of a data set.

    Attributes:
        splits: counts of each split, by the name of the split.
        overlaps: prompts that two splits share.
        notes: assumptions about the data, one sentence each.
    """

    splits: dict[str, SplitReport]
    overlaps: list[Overlap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        return [
            *(split.line(name) for name, split in self.splits.items()),
            *(f"{name}: {finding.line()}" for name, split in self.splits.items() for finding in split.findings),
            *(overlap.line() for overlap in self.overlaps),
            *self.notes,
        ]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 row" or "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
