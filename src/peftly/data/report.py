"""What was read, made, cut, dropped and guessed on the way from rows to tokens."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["DataReport", "Overlap", "SplitReport", "Unit", "counted"]

Unit = Literal["token", "tag", "row"]
"""What the loss counts."""


@dataclass(frozen=True)
class SplitReport:
    """What became of a split's rows.

    Attributes:
        source: the file or data set.
        rows: how many were read; `rows == kept + dropped`.
        kept: how many are trained or evaluated on.
        truncated: how many of the kept ones were cut to the length.
        tokens_cut: how many tokens that cost.
        dropped: how many had no trained token.
        first_dropped: the place of the first of them.
        tokens: of the kept rows, all told.
        trained_tokens: what the loss counts: trained tokens, tagged words, or rows with a label.
        labels: kept rows by label, or words by tag.
        unit: which of the three the loss counts.
    """

    source: str
    rows: int
    kept: int
    truncated: int
    tokens_cut: int
    dropped: int
    first_dropped: str | None
    tokens: int
    trained_tokens: int
    labels: dict[str, int] = field(default_factory=dict)
    unit: Unit = "token"

    def line(self, name: str) -> str:
        """Return this in one line."""
        words = f"{name}: {counted(self.rows, 'row')} of {self.source}, {counted(self.tokens, 'token')}"
        if self.unit == "token":
            words += f", {self.trained_tokens:,} of them trained"
        elif self.unit == "tag":
            words += f", {counted(self.trained_tokens, 'tag')}"
        if self.labels:
            words += " (" + ", ".join(f"{label}: {count:,}" for label, count in self.labels.items()) + ")"
        if self.truncated:
            words += f"; {self.truncated:,} truncated by {counted(self.tokens_cut, 'token')}"
        if self.dropped:
            words += f"; {self.dropped:,} dropped, having nothing to train on (first: {self.first_dropped})"
        return words


@dataclass(frozen=True)
class Overlap:
    """Rows of one split whose prompt stands in another split too.

    Attributes:
        split, other: the names of the two; `other` comes first of train, validation, test.
        count: how many rows of `split`.
        place, other_place: where the first of them stands, in each.
    """

    split: str
    other: str
    count: int
    place: str
    other_place: str

    def line(self) -> str:
        """Return this in one line."""
        verb = "stands" if self.count == 1 else "stand"
        rows = counted(self.count, "row")
        return f"{rows} of {self.split} {verb} in {self.other} too (first: {self.place} is {self.other_place})"


@dataclass(frozen=True)
class DataReport:
    """What was read, made, cut, dropped and guessed.

    Attributes:
        splits: by name.
        overlaps: rows that stand in two splits.
        notes: what was guessed, in sentences.
    """

    splits: dict[str, SplitReport]
    overlaps: list[Overlap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report for a person, a line each."""
        return [
            *(split.line(name) for name, split in self.splits.items()),
            *(overlap.line() for overlap in self.overlaps),
            *self.notes,
        ]


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
