"""Rows that cannot be used: without a label, a text or an answer, or with an answer that is marked as bad."""

from array import array
from collections.abc import Callable, Mapping
from typing import Any

from peftly.data.fields import is_missing
from peftly.data.findings import Finding
from peftly.data.formats import RowFormat
from peftly.data.known_formats import FORMATS
from peftly.data.report import counted
from peftly.data.rows import Rows
from peftly.errors import DataError

__all__ = ["UnusableRows", "has_no_targets", "is_without_target", "mark_field", "usable_rows"]

_MAX_SAMPLES = 3
_MARKS = ("label", "kto_tag")
"""Fields that mark a completion as good or bad, in the format of KTO (Kahneman-Tversky optimization)."""

_TRUE, _FALSE = ("true", "1", "1.0", "desirable"), ("false", "0", "0.0", "undesirable")
_COMPLETIONS = {name for known in FORMATS["causal_lm"] if known.kind != "label" for name in known.targets}
"""Names of fields that hold completions; a field of another name can hold labels that the user wants to be learned."""
_UNLABELLED = ("-1", "-1.0", "unlabeled", "unlabelled", "?")


class UnusableRows:
    """Finds the rows of a split that cannot be used, in one pass over the rows."""

    def __init__(self, rows: Rows, row_format: RowFormat) -> None:
        """Prepare the search.

        Args:
            rows: rows of a split.
            row_format: format of the rows.
        """
        self._rows = rows
        self._defect_of = _defects(rows, row_format)
        self._kept = array("q")
        self._dropped: dict[str, array[int]] = {}

    def has(self, index: int, row: Mapping[str, Any]) -> bool:
        """Return whether a row cannot be used. The rows must be asked for in order.

        Args:
            index: index of the row.
            row: fields and values.
        """
        defect = self._defect_of(row)
        (self._kept if defect is None else self._dropped.setdefault(defect, array("q"))).append(index)
        return defect is not None

    def findings(self) -> list[Finding]:
        """Return the rows that cannot be used, by the reason."""
        return [
            Finding(defect, len(indices), tuple(map(self._rows.location, indices[:_MAX_SAMPLES])))
            for defect, indices in self._dropped.items()
        ]

    def others(self) -> Rows:
        """Return the rows that can be used.

        Raises:
            DataError: no row can be used.
        """
        if not self._kept:
            reasons = "; ".join(finding.line() for finding in self.findings())
            count = counted(len(self._rows), "row")
            raise DataError(f"{self._rows.name}: no trained token is left in any of {count}: {reasons}")
        return self._rows.select(self._kept) if self._dropped else self._rows


def usable_rows(rows: Rows, row_format: RowFormat) -> tuple[Rows, list[Finding]]:
    """Return the rows that can be used, and the others by the reason.

    Args:
        rows: rows of a split.
        row_format: format of the rows.

    Raises:
        DataError: no row can be used.
    """
    unusable = UnusableRows(rows, row_format)
    for index, row in enumerate(rows.rows):
        unusable.has(index, row)
    return unusable.others(), unusable.findings()


def has_no_targets(rows: Rows, row_format: RowFormat) -> bool:
    """Return whether no row has a value to learn, as in the test split of a benchmark: null, blank, -1 or "Unlabeled".

    Args:
        rows: rows of a split.
        row_format: format of the training rows.
    """
    if row_format.kind in ("chat", "text"):
        return False

    return all(is_without_target(row.get(row_format.target), row_format) for row in rows.rows)


def is_without_target(value: object, row_format: RowFormat) -> bool:
    """Return whether the value of the target field is missing, or a word of benchmarks for "no label"."""
    text = str(value).strip()
    is_placeholder = row_format.kind == "label" and text not in row_format.labels and text.lower() in _UNLABELLED
    return is_missing(value) or is_placeholder


def _defects(rows: Rows, row_format: RowFormat) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a function that returns why a row cannot be used, as a key of `FINDING_KINDS`; None for usable rows."""
    kind, target = row_format.kind, row_format.target
    inputs = dict.fromkeys(() if kind in ("chat", "text") else row_format.input_fields)
    mark = mark_field(rows, row_format)

    def has_no_text(row: Mapping[str, Any]) -> bool:
        values = [row[name] for name in inputs if name in row]
        return bool(values) and all(map(is_missing, values))

    # Prompts that are all empty are meant so: the model learns to write such texts without a prompt.
    needs_text = kind != "tags" and not (kind == "completion" and all(map(has_no_text, rows.rows)))

    reasons = {"label": "no_label", "tags": "no_label", "text": "empty_text", "chat": "no_assistant_turn"}

    def defect_of(row: Mapping[str, Any]) -> str | None:
        if mark is not None and is_missing(row.get(mark)):
            return "no_label"
        if mark is not None and _as_mark(row.get(mark)) in _FALSE:
            return "bad_completion"
        if target in row and (is_missing(row[target]) or (kind == "chat" and row[target] == [])):
            return reasons.get(kind, "empty_answer")
        return "empty_text" if needs_text and has_no_text(row) else None

    return defect_of


def mark_field(rows: Rows, row_format: RowFormat) -> str | None:
    """Return the field that marks completions as good or bad; None without such a field.

    Args:
        rows: rows of a split.
        row_format: format of the rows.
    """
    if row_format.kind not in ("completion", "alpaca", "chat"):
        return None
    used = {*row_format.input_fields, row_format.target, row_format.pair}
    marks = [name for name in _MARKS if name in rows.fields and name not in used]
    return next((name for name in marks if _marks_completions(rows, name, row_format.target)), None)


def _marks_completions(rows: Rows, field: str, target: str) -> bool:
    """Return whether each value of a field is a mark of a completion, and not the number of a label in the target.

    Labels are often written twice, as `label` (0 or 1) and `label_text`.
    """
    marks = set[str]()
    for row in rows.rows:
        if not is_missing(row.get(field)) and (mark := _as_mark(row.get(field))) not in marks:
            marks.add(mark)
            if mark not in (*_TRUE, *_FALSE):
                return False
    if not marks:
        return False
    if field == "label" and target in ("messages", "conversations") and not marks <= {"true", "false"}:
        return False  # a class of the conversation, such as 1 for a toxic one
    if target in _COMPLETIONS:
        return True
    mark_of: dict[str, str] = {}
    for row in rows.rows:
        mark = _as_mark(row.get(field))
        if mark_of.setdefault(str(row.get(target)), mark) != mark:
            return True
    return 2 * len(mark_of) > len(rows)


def _as_mark(value: object) -> str:
    return str(value).strip().lower()
