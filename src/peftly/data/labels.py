"""Labels in rows: their order, and the decision whether the values of a field are labels."""

import re
from collections.abc import Iterable
from typing import Any

from peftly.data.fields import is_missing, label_field, score_error, words_and_tags
from peftly.data.formats import RowFormat
from peftly.data.rows import Rows, quoted
from peftly.errors import DataError

__all__ = ["are_truth_values", "can_be_labels", "has_labels", "label_order", "labels_in"]

_MAX_LABELS = 20
_MAX_LABELS_PER_ROW = 0.1
_MAX_LABELS_PER_ROW_IF_ASKED = 0.5
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)
_UNLABELLED = re.compile(r"unlabell?ed|no[ _]label", re.IGNORECASE)


def label_order(labels: Iterable[str]) -> list[str]:
    """Return labels in order: numbers by value, before texts by their characters."""

    def key(label: str) -> tuple[bool, float, str]:
        is_number = _NUMBER.fullmatch(label) is not None
        return not is_number, _number(label) if is_number else 0, label

    return sorted(labels, key=key)


def labels_in(rows: Rows, row_format: RowFormat, *, needs_two: bool = False) -> tuple[tuple[str, ...], list[str]]:
    """Return the labels or tags of the training rows in order, and notes on classes that no row has.

    Classes of a Parquet file or of a `datasets.Dataset` keep the order of their numbers, so that the class index of the
    model is the number in the data. All other labels are ordered as by `label_order`.

    Args:
        rows: training rows.
        row_format: format of the rows, without labels.
        needs_two: whether to refuse rows that have fewer than two labels.

    Raises:
        DataError: a label cannot be used, the labels are scores with fractions, or a classifier has fewer than two.
    """
    found = label_order(_labels_of_rows(rows, row_format))
    if row_format.kind == "label":
        _check_no_scores(rows, row_format.target, found)
    if needs_two and len(found) < 2:
        raise DataError(
            f"{rows.name}: {row_format.target!r} is {quoted(found)} in every row with a label; a classifier "
            "needs two labels"
        )
    names = [name.strip() for name in rows.class_names.get(row_format.target, ())]
    classes = [name for name in dict.fromkeys(names) if name in found or not _UNLABELLED.fullmatch(name)]
    absent = [name for name in classes if name not in found]
    notes = [f"{rows.name}: no training row has the class {quoted(absent)} of {row_format.target!r}"] if absent else []
    return tuple(dict.fromkeys([*classes, *found])) if found else (), notes


def _labels_of_rows(rows: Rows, row_format: RowFormat) -> set[str]:
    labels: set[str] = set()
    for index, row in enumerate(rows.rows):
        if row_format.kind == "tags":
            labels.update(words_and_tags(row, row_format.words_field, row_format.target, rows.location(index))[1])
        elif row_format.kind == "label" and not is_missing(row.get(row_format.target, False)):
            labels.add(label_field(row, row_format.target, rows.location(index)))
    return labels


def _check_no_scores(rows: Rows, field: str, labels: list[str]) -> None:
    """Check that labels are no scores, such as 0.000 to 5.000 or 0,5."""
    if not all(map(_NUMBER.fullmatch, labels)):
        return
    for label in labels:
        if not _number(label).is_integer():
            raise score_error(rows.name, field, label)


def _number(text: str) -> float:
    """Return the number that a text of `_NUMBER` writes, with a decimal point or comma."""
    return float(text.replace(",", "."))


def has_labels(rows: Rows, target: str) -> bool:
    """Return whether the values of a field are labels: the field is named so, or has few distinct values."""
    if target.lower() in ("label", "labels"):
        return True
    distinct = _distinct(rows, target, _MAX_LABELS)
    return distinct is not None and 1 < len(distinct) <= _MAX_LABELS_PER_ROW * len(rows)


def can_be_labels(rows: Rows, target: str) -> bool:
    """Return whether the values of a field that the user has named can be labels: two rows share one on average.

    Numbers count as labels, so that scores get their own message; see `labels_in`.
    """
    if all(_NUMBER.fullmatch(str(row.get(target)).strip()) for row in rows.rows):
        return True
    most = max(_MAX_LABELS, int(_MAX_LABELS_PER_ROW_IF_ASKED * len(rows)))
    return target.lower() in ("label", "labels") or _distinct(rows, target, most) is not None


def are_truth_values(rows: Rows, target: str) -> bool:
    """Return whether a field answers with yes or no: truth values, or such a word, in every row."""
    words = ("true", "false", "yes", "no")
    return all(str(row.get(target)).strip().lower() in words for row in rows.rows)


def _distinct(rows: Rows, target: str, most: int) -> set[Any] | None:
    """Return the distinct values of a field; None if they are more than `most`, or not labels."""
    distinct = set()
    for row in rows.rows:
        value = row.get(target)
        if not isinstance(value, str | int | float):
            if value is None:
                continue
            return None
        distinct.add(str(value).strip())
        if len(distinct) > most:
            return None
    return distinct - {""}
