"""Checked values of a row's fields: texts, labels, words and tags."""

from collections.abc import Mapping
from typing import Any

from peftly.data.rows import describe, quoted
from peftly.errors import DataError

__all__ = [
    "completion_field",
    "history_field",
    "is_missing",
    "label_field",
    "score_error",
    "text_field",
    "words_and_tags",
]


def is_missing(value: object) -> bool:
    """Return whether a value is none: null, not a number, or a text of blanks."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def text_field(row: Mapping[str, Any], field: str, location: str) -> str:
    """Return the text in a field.

    Args:
        row: fields and values.
        field: name of the field.
        location: location of the row, for error messages.

    Raises:
        DataError: the field is missing, or its value is not text.
    """
    value = _value(row, field, location)
    if not isinstance(value, str):
        raise DataError(f"{location}: field {field!r} holds {describe(value)} where a text is needed")
    return value


def completion_field(row: Mapping[str, Any], field: str, location: str) -> str:
    """Return the text to learn in a field: a text, a number, or the first of several answers, as in SQuAD.

    Args:
        row, field, location: as for `text_field`.

    Raises:
        DataError: the field is missing, or its value is not text.
    """
    value = row.get(field)
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    if isinstance(value, list) and all(isinstance(answer, str) for answer in value):
        value = value[0] if value else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) else text_field(row, field, location)


def label_field(row: Mapping[str, Any], field: str, location: str) -> str:
    """Return the label in a field: a text without surrounding spaces, or a whole number or truth value as text.

    Args:
        row, field, location: as for `text_field`.

    Raises:
        DataError: the field is missing, or its value is not a label.
    """
    return _label(_value(row, field, location), field, location)


def history_field(row: Mapping[str, Any], field: str, location: str) -> list[tuple[str, str]]:
    """Return the earlier instructions with their answers; an empty list if the row has none.

    Args:
        row, field, location: as for `text_field`.

    Raises:
        DataError: the value is not a list of pairs of texts.
    """
    value = row.get(field)
    if value is None:
        return []
    pairs = value if isinstance(value, list) else [value]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(
                f"{location}: field {field!r} holds {describe(pair)} where a list of [instruction, answer] pairs is "
                "needed"
            )
    return [(instruction, answer) for instruction, answer in pairs]


def words_and_tags(
    row: Mapping[str, Any], words_field: str, tags_field: str | None, location: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words in one field, and the tag of each word in another field.

    Args:
        row: fields and values.
        words_field: name of the field with a list of words.
        tags_field: name of the field with a list of tags; None returns no tags.
        location: location of the row, for error messages.

    Raises:
        DataError: a field is missing, a value is not a list of words or tags, or the two lists differ in length.
    """
    words = _list(row, words_field, location)
    for word in words:
        if not isinstance(word, str):
            raise DataError(
                f"{location}: field {words_field!r} holds {describe(word)} among its words; each must be a text"
            )
    if tags_field is None:
        return tuple(words), ()
    tags = tuple(_label(tag, tags_field, location) for tag in _list(row, tags_field, location))
    if len(tags) != len(words):
        raise DataError(
            f"{location}: {words_field!r} has {len(words)} words and {tags_field!r} {len(tags)} tags; "
            "give each word one tag"
        )
    return tuple(words), tags


def score_error(location: str, field: str, value: object) -> DataError:
    """Return the error about a number with a fraction in place of a label.

    Args:
        location: location of the row, or name of the rows.
        field: name of the field.
        value: the number.
    """
    return DataError(
        f"{location}: field {field!r} holds the score {value}, and regression is not supported; write a few labels, "
        "such as the score rounded to a whole number"
    )


def _list(row: Mapping[str, Any], field: str, location: str) -> list[Any]:
    value = _value(row, field, location)
    if not isinstance(value, list):
        raise DataError(
            f"{location}: field {field!r} holds {describe(value)} where a list is needed, with one entry per word"
        )
    return value


def _label(value: object, field: str, location: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a missing value is read as floats
    if isinstance(value, float):
        raise score_error(location, field, value)
    if not isinstance(value, str | int):
        raise DataError(
            f"{location}: field {field!r} holds {describe(value)} where a label (a text or a whole number) is needed"
        )
    label = str(value).strip()
    if not label:
        raise DataError(f"{location}: field {field!r} is empty where a label is needed")
    if label == "-100":
        raise DataError(
            f"{location}: field {field!r} holds -100, which marks tokens that are not trained; give the labels as they "
            "were before tokenization"
        )
    return label


def _value(row: Mapping[str, Any], field: str, location: str) -> object:
    if field not in row:
        raise DataError(f"{location} has no field {field!r}; it has {quoted(row)}")
    if row[field] is None:
        raise DataError(f"{location}: field {field!r} has no value (null)")
    return row[field]
