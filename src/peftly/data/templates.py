"""The template language, and what a row's fields must hold."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from peftly.data.readers import describe
from peftly.errors import DataError

__all__ = ["ALPACA", "Rendered", "Template", "label_of", "listed", "spaced", "text_of", "words_of"]

ALPACA = "Instruction: {instruction}\nInput: {input}\nAnswer:"
"""The layout of instruction data; the line of an empty input is left out."""


class Rendered(NamedTuple):
    """A filled-in template, and where its fields' texts and its marks came to stand."""

    text: str
    spans: tuple[tuple[int, int], ...]
    marks: tuple[int, ...] = ()


class Template:
    """A text with `{field}` places; `{{` and `}}` stand for braces.

    Whatever is between braces is the name of a field, spaces and dots included; nothing is evaluated, and braces
    inside a row's own text mean nothing. `{prompt:3}` is no field: it marks where three virtual tokens of a method
    with `position: template` stand, and adds nothing to the text.
    """

    def __init__(self, text: str):
        self.text = text
        self.literals: list[str] = [""]  # one more than fields: before, between and after them
        self.fields: list[str] = []
        self.marks: list[tuple[int, int]] = []  # for every virtual token, in which literal it stands, and how far in
        for match in re.finditer(r"\{\{|\}\}|\{[^{}]+\}|[{}]|[^{}]+", text):
            piece = match[0]
            if piece in ("{{", "}}"):
                self.literals[-1] += piece[0]
            elif piece in ("{", "}"):
                raise DataError(
                    f"template {text!r} has a lone {piece!r} at character {match.start() + 1}; "
                    f"write {{field}} for a field or {piece * 2!r} for a brace"
                )
            elif piece.startswith(_MARK):
                self.marks += [(len(self.fields), len(self.literals[-1]))] * _marked(piece, text)
            elif piece.startswith("{"):
                self.fields.append(piece[1:-1])
                self.literals.append("")
            else:
                self.literals[-1] += piece

    @property
    def is_one_field(self) -> bool:
        """The template adds nothing to its single field."""
        return len(self.fields) == 1 and not "".join(self.literals).strip()

    def check(self, present: Iterable[str]) -> None:
        """Raise DataError unless there is a field, and every field is among `present`."""
        if not self.fields:
            raise DataError(f"template {self.text!r} names no field, so every prompt would be the same text")
        present = list(present)
        for name in self.fields:
            if name not in present:
                raise DataError(f"template {self.text!r} names the field {name!r}; the rows have {listed(present)}")

    def render(self, values: Mapping[str, str]) -> Rendered:
        """Return the text with every field replaced by its value, as it is."""
        text, spans, starts = self.literals[0], [], [0]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            spans.append((len(text), len(text) + len(values[name])))
            starts.append(spans[-1][1])
            text += values[name] + literal
        return Rendered(text, tuple(spans), tuple(starts[literal] + offset for literal, offset in self.marks))


_MARK = "{prompt:"


def _marked(piece: str, text: str) -> int:
    """Return how many virtual tokens a mark stands for."""
    count = piece[len(_MARK) : -1]
    if not re.fullmatch(r"[1-9][0-9]{0,3}", count):
        raise DataError(
            f"template {text!r} has {piece!r}; write the number of virtual tokens that stand there, as in {{prompt:3}}"
        )
    return int(count)


def spaced(prompt: str, completion: str) -> tuple[str, str]:
    """Return prompt and completion with the space between them at the head of the completion.

    Tokenizers keep a word together with the space before it, so that is where a generating model will put it: a
    prompt that ends in a space starts generation from tokens that training never showed. Spaces at the prompt's end
    are moved; where the two would run into one word, one space is added (not in scripts that write none, nor after an
    opening bracket). What is already apart stays as it is, so doing this twice changes nothing.
    """
    bare = prompt.rstrip(" ")
    moved = prompt[len(bare) :]
    if bare and not moved and _runs_into(bare[-1], completion):
        moved = " "
    return bare, moved + completion


_WRITTEN_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def _runs_into(last: str, completion: str) -> bool:
    if not completion[:1].isalnum() or last.isspace() or unicodedata.category(last) in ("Ps", "Pi"):
        return False
    return not unicodedata.name(completion[0], "").startswith(_WRITTEN_WITHOUT_SPACES)


def text_of(row: Mapping[str, Any], name: str, place: str) -> str:
    """Return a field that must be text, or raise DataError naming the place and what is there instead."""
    value = _value_of(row, name, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: field {name!r} holds {describe(value)} where a text is needed")
    return value


def label_of(row: Mapping[str, Any], name: str, place: str) -> str:
    """Return a field as a label: text without the spaces around it, or a whole number's or truth value's own text."""
    return _label(_value_of(row, name, place), name, place)


def words_of(row: Mapping[str, Any], words: str, tags: str | None, place: str) -> tuple[tuple[str, ...], ...]:
    """Return the words in one field and the tag that another gives each of them.

    Args:
        row: fields and values.
        words: the field with a list of words.
        tags: the field with a list of labels; None: there are no tags, as for a text that is to get some.
        place: of the row, for messages.

    Raises:
        DataError: a field is missing, is no list of its kind, or the two lists differ in length.
    """
    spoken = _list_of(row, words, place)
    for word in spoken:
        if not isinstance(word, str):
            raise DataError(f"{place}: field {words!r} holds {describe(word)} among its words; each must be a text")
    if tags is None:
        return tuple(spoken), ()
    given = tuple(_label(tag, tags, place) for tag in _list_of(row, tags, place))
    if len(given) != len(spoken):
        raise DataError(f"{place}: {words!r} has {len(spoken)} words and {tags!r} {len(given)} tags; give one a word")
    return tuple(spoken), given


def _list_of(row: Mapping[str, Any], name: str, place: str) -> list[Any]:
    value = _value_of(row, name, place)
    if not isinstance(value, list):
        raise DataError(f"{place}: field {name!r} holds {describe(value)} where a list is needed, an entry a word")
    return value


def _label(value: object, name: str, place: str) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a gap in it comes as floats
    if not isinstance(value, str | int):
        raise DataError(
            f"{place}: field {name!r} holds {describe(value)} where a label (a text or a whole number) is needed"
        )
    label = str(value).strip()
    if not label:
        raise DataError(f"{place}: field {name!r} is empty where a label is needed")
    return label


def _value_of(row: Mapping[str, Any], name: str, place: str) -> object:
    if name not in row:
        raise DataError(f"{place} has no field {name!r}; it has {listed(row)}")
    if row[name] is None:
        raise DataError(f"{place}: field {name!r} has no value (null)")
    return row[name]


def listed(names: Iterable[str]) -> str:
    """Return names in quotes, for messages."""
    return ", ".join(map(repr, names)) or "none"
