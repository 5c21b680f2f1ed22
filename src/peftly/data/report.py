"""Counts of a data set: rows read, tokens, lengths, defects, and assumptions about the row format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from peftly.data.findings import Finding

__all__ = ["DataReport", "LengthReport", "LossUnit", "SplitReport", "counted"]

LossUnit = Literal["token", "tag", "row"]
"""Unit that the loss counts: trained tokens, tags, or rows with one label each."""


_MAX_LABELS = 12
"""Number of labels that a line lists."""

_MAX_FINDINGS = 6
"""Number of findings that the lines list."""

_NUM_BINS = 10
"""Number of bins of equal width from the shortest example to the maximum length."""


@dataclass(frozen=True)
class LengthReport:
    """Lengths of the examples of a split in tokens, before truncation.

    Attributes:
        limit: maximum length; longer examples are truncated. None: the input and the answer have a limit each.
        median: median length.
        percentile_95: length that 95% of the examples do not exceed.
        longest: greatest length.
        bins: greatest length of each bin of the histogram, and its number of examples. `limit` ends a bin if an example
            is longer.
        shortest: smallest length, with which the first bin begins.
    """

    limit: int | None
    median: int
    percentile_95: int
    longest: int
    bins: tuple[tuple[int, int], ...]
    shortest: int = 1

    @classmethod
    def of(cls, lengths: Sequence[int], limit: int | None) -> LengthReport:
        """Count lengths.

        Args:
            lengths: length of each example; at least one.
            limit: maximum length.
        """
        import numpy as np

        values = np.array(lengths)
        shortest, longest = int(values.min()), int(values.max())
        end = max(shortest, min(longest, limit or longest))
        width = -(-(end - shortest + 1) // _NUM_BINS)
        edges = [*range(shortest - 1 + width, end, width), end]
        while edges[-1] < longest:
            edges.append(min(2 * edges[-1], longest))
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges))
        median, percentile_95 = np.percentile(values, (50, 95), method="inverted_cdf").tolist()
        bins = tuple(zip(edges, counts.tolist(), strict=True))
        return cls(limit, int(median), int(percentile_95), longest, bins, shortest)

    def line(self) -> str:
        """Return the lengths in one line."""
        line = f"length: median {self.median:,}, 95% up to {self.percentile_95:,}, longest {self.longest:,} tokens"
        if self.limit is None:
            return line
        num_longer = sum(count for end, count in self.bins if end > self.limit)
        return f"{line}; max_length {self.limit:,} cuts {counted(num_longer, 'example')}"


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
        lengths: lengths of the examples.
        texts_in_pieces: number of long texts that were cut into several examples.
        pieces: number of these examples.
        hub: data sets on the Hub that the rows are from.
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
    lengths: LengthReport | None = None
    texts_in_pieces: int = 0
    pieces: int = 0
    hub: tuple[str, ...] = ()

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
            listed = [f"{label}: {count:,}" for label, count in self.labels.items()]
            if len(listed) > _MAX_LABELS:
                listed[_MAX_LABELS:] = [f"and {len(listed) - _MAX_LABELS} other labels"]
            line += f" ({', '.join(listed)})"
        if self.truncated:
            line += f"; {self.truncated:,} truncated by {counted(self.tokens_cut, 'token')}"
        if self.pieces:
            line += f"; {counted(self.texts_in_pieces, 'long text')} cut into {self.pieces:,} pieces"
        if self.dropped:
            line += f"; {self.dropped:,} dropped (first: {self.first_dropped})"
        return line


@dataclass(frozen=True)
class DataReport:
    """Counts of a data set.

    Attributes:
        splits: counts of each split, by the name of the split.
        notes: assumptions about the data, one sentence each.
    """

    splits: dict[str, SplitReport]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    @property
    def findings(self) -> list[tuple[str, Finding]]:
        """Name of the split and finding, problems first."""
        found = [(name, finding) for name, split in self.splits.items() for finding in split.findings]
        return sorted(found, key=lambda pair: not pair[1].is_problem)

    @property
    def has_problems(self) -> bool:
        """Whether the data should be mended before a training."""
        return any(finding.is_problem for _, finding in self.findings)

    def lines(self) -> list[str]:
        """Return the report as lines of text: counts, the most important findings, and notes."""
        listed = [
            f"{'problem' if finding.is_problem else 'note'}: {name}: {finding.line()}"
            for name, finding in self.findings[:_MAX_FINDINGS]
        ]
        if (rest := len(self.findings) - len(listed)) > 0:
            listed.append(f"and {counted(rest, 'other finding')}")
        return [*self.counts(), *listed, *self.notes]

    def counts(self) -> list[str]:
        """Return the counts of each split, one line each."""
        return [split.line(name) for name, split in self.splits.items()]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 row" or "2,000 rows"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
