"""The page of a data audit: findings, lengths, and examples with their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data import FINDING_KINDS
from peftly.report.page import write_page
from peftly.report.token_units import TokenUnit, visible

if TYPE_CHECKING:
    from peftly.data import DataReport

__all__ = ["ShownExample", "finding_rows", "length_rows", "write_audit"]

_LEARNED = {"token": "of the tokens are trained", "tag": "tags are learned", "row": "labels are learned"}


@dataclass(frozen=True)
class ShownExample:
    """An example to show.

    Attributes:
        title: location and counts.
        units: tokens that the model reads.
        answer: target that is not part of them.
    """

    title: str
    units: Sequence[TokenUnit]
    answer: Sequence[TokenUnit] = ()


def write_audit(
    file: Path,
    report: "DataReport",
    examples: Sequence[ShownExample],
    found: Mapping[tuple[str, str], Sequence[ShownExample]],
    *,
    title: str,
    subtitle: str,
) -> Path:
    """Write the page of an audit.

    Args:
        file: path of the page.
        report: report on the data.
        examples: training examples to show.
        found: examples of each finding, by the name of the split and the kind.
        title, subtitle: head of the page.

    Returns:
        `file`.
    """
    content = report.to_dict()
    rows = finding_rows(content["splits"])
    for row in rows:
        row["examples"] = found.get((row["split"], row["kind"]), ())
    train = report.splits["train"]
    num_problems = sum(row["is_problem"] for row in rows)
    tiles = [
        ("examples to train on", f"{train.examples:,}"),
        ("tokens", f"{train.tokens:,}"),
        (_LEARNED[train.unit], _learned(train)),
        ("problems" if num_problems != 1 else "problem", str(num_problems)),
    ]
    lengths = {name: split.lengths for name, split in report.splits.items() if split.lengths}
    return write_page(
        file,
        "audit.html.jinja",
        title=visible(title),
        subtitle=visible(subtitle),
        tiles=tiles,
        findings=rows,
        lengths=[
            (name, length.line(), length.limit, length_rows(length) if name == "train" else [])
            for name, length in lengths.items()
        ],
        examples=examples,
        data_lines=[visible(line) for line in (*report.counts(), *report.notes)],
        visible=visible,
    )


def _learned(split: Any) -> str:
    return (
        f"{split.trained_tokens / max(1, split.tokens):.0%}" if split.unit == "token" else f"{split.trained_tokens:,}"
    )


def finding_rows(splits: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings of a data report as rows of a table, problems first.

    Args:
        splits: `splits` of a report as JSON values; a split of an earlier version has no findings.
    """
    rows = []
    for name, split in splits.items():
        for finding in split.get("findings", []):
            known = FINDING_KINDS.get(finding["kind"])
            rows.append(
                {
                    "split": name,
                    "kind": finding["kind"],
                    "count": finding["count"],
                    "text": known.text if known else finding["kind"],
                    "is_problem": known is not None and known.is_problem,
                    "samples": finding["samples"],
                }
            )
    return sorted(rows, key=lambda row: not row["is_problem"])


def length_rows(lengths: Any) -> list[tuple[str, int, float, bool]]:
    """Return the bins of a histogram: lengths, number of examples, share of the largest bin, and whether it is cut.

    Args:
        lengths: a `LengthReport`.
    """
    most = max((count for _, count in lengths.bins), default=0)
    rows, start = [], lengths.shortest
    for end, count in lengths.bins:
        name = f"{start:,}" if start == end else f"{start:,}–{end:,}"
        is_cut = lengths.limit is not None and start > lengths.limit
        rows.append((name, count, count / max(1, most), is_cut))
        start = end + 1
    return rows
