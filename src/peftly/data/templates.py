"""How a row becomes text: the template language, and the shape that stays with an adapter for its whole life."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data.formats import describe
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ALPACA", "KINDS", "Example", "Shape", "Template", "spaced"]

KINDS = ("completion", "alpaca", "chat", "label", "text")
ALPACA = "Instruction: {instruction}\nInput: {input}\nAnswer:"
"""The layout of instruction data; the line of an empty input is left out."""

Where = Callable[[int], str]


@dataclass(frozen=True)
class Example:
    """A row as text, before tokens.

    Attributes:
        prompt: what the model is given; it never ends in a space.
        completion: what the model is to answer, with the space that parts it from the prompt.
        label: the bare label, for data with labels.
        messages: a conversation, instead of prompt and completion.
        spans: where in `prompt` the row's own texts stand; a prompt that is too long is shortened there.
    """

    prompt: str = ""
    completion: str = ""
    label: str | None = None
    messages: tuple[dict[str, Any], ...] = ()
    spans: tuple[tuple[int, int], ...] = ()


class Rendered(NamedTuple):
    """A filled-in template and where its fields' texts came to stand."""

    text: str
    spans: tuple[tuple[int, int], ...]


class Template:
    """A text with `{field}` places; `{{` and `}}` stand for braces.

    Whatever is between braces is the name of a field, spaces and dots included; nothing is evaluated, and braces
    inside a row's own text mean nothing.
    """

    def __init__(self, text: str):
        self.text = text
        self.literals: list[str] = [""]  # one more than fields: before, between and after them
        self.fields: list[str] = []
        for match in re.finditer(r"\{\{|\}\}|\{[^{}]+\}|[{}]|[^{}]+", text):
            piece = match[0]
            if piece in ("{{", "}}"):
                self.literals[-1] += piece[0]
            elif piece in ("{", "}"):
                raise DataError(
                    f"template {text!r} has a lone {piece!r} at character {match.start() + 1}; "
                    f"write {{field}} for a field or {piece * 2!r} for a brace"
                )
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
                raise DataError(f"template {self.text!r} names the field {name!r}; the rows have {_listed(present)}")

    def render(self, values: Mapping[str, str]) -> Rendered:
        """Return the text with every field replaced by its value, as it is."""
        text, spans = self.literals[0], []
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            spans.append((len(text), len(text) + len(values[name])))
            text += values[name] + literal
        return Rendered(text, tuple(spans))


@dataclass(frozen=True)
class Shape:
    """How a row becomes an example. Stored beside an adapter, so that a prompt is formed at use as in training.

    Attributes:
        kind: "completion", "alpaca", "label" (a template and a target), "chat" or "text".
        template: how the prompt is made; None for chat (the tokenizer's own is used) and text (there is no prompt).
        target: the field with the completion, the label, the messages or the text.
        labels: the labels that the training rows have, sorted; only for "label".
    """

    kind: str
    template: str | None
    target: str
    labels: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"shape kind {self.kind!r} is not known; known are {_listed(KINDS)}")
        if (self.template is None) != (self.kind in ("chat", "text")):
            raise DataError(f"a shape of kind {self.kind!r} has template={self.template!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; `from_dict` is the way back."""
        return {"kind": self.kind, "template": self.template, "target": self.target, "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Shape":
        """Return the shape that `to_dict` wrote.

        Raises:
            DataError: a part is missing or unknown, as in a file of a later version.
        """
        parts = {"kind", "template", "target", "labels"}
        if set(content) != parts:
            raise DataError(f"a stored shape has {_listed(sorted(content))}; expected {_listed(sorted(parts))}")
        return cls(content["kind"], content["template"], content["target"], tuple(content["labels"]))

    def examples(self, rows: Iterable[Mapping[str, Any]], where: Where | None = None) -> list[Example]:
        """Return one example a row.

        Args:
            rows: fields and values.
            where: the place of a row, for messages; "row N" if not given.

        Raises:
            DataError: a field is missing or is not text, or a label is none of `labels` (when there are any).
        """
        where = where or (lambda index: f"row {index + 1}")
        return [self._example(row, where(index)) for index, row in enumerate(rows)]

    def prompt(self, row: Mapping[str, Any] | str) -> str:
        """Return the prompt of a row at use, equal to the one in training; the target need not be there.

        Args:
            row: the template's fields, or, where it has exactly one (or instructions are asked for), the bare text.

        Raises:
            DataError: fields are missing, or the shape is "chat" (see `prompt_ids`).
        """
        if self.kind == "chat":
            raise DataError("a conversation has no prompt text of its own; ask Shape.prompt_ids(row, tokenizer)")
        return self._rendered(self._row(row), "the prompt").text

    def prompt_ids(self, row: Mapping[str, Any] | str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Return the tokens that generation starts from, for every kind of shape.

        Args:
            row: as for `prompt`; for chat the fields of a row, of which all before a closing assistant turn is used,
                or the bare text of one user turn.
            tokenizer: the base's own.
        """
        from peftly.data import chat, encoding

        if self.kind != "chat":
            return encoding.encode_prompt(self.prompt(row), tokenizer)
        if isinstance(row, str):
            row = {self.target: [{"role": "user", "content": row}]}
        messages = chat.messages_of(row, self.target, "the prompt")
        return chat.prompt_ids(messages[:-1] if messages[-1]["role"] == "assistant" else messages, tokenizer)

    def completion(self, label: str) -> str:
        """Return a label as the text that follows the prompt: the same for every row.

        Whether a space comes first is therefore read from the template, not from the row: `_rendered` sees to it that
        the row's own text ends in none where the template ends in a field.
        """
        tail = Template(self.template or "").literals[-1]
        return spaced(tail if tail.strip() else f"x{tail}", label)[1]

    def _example(self, row: Mapping[str, Any], place: str) -> Example:
        if self.kind == "chat":
            from peftly.data.chat import messages_of

            return Example(messages=messages_of(row, self.target, place))
        if self.kind == "text":
            return Example(completion=text_of(row, self.target, place))
        prompt = self._rendered(row, place)
        if self.kind != "label":
            raw = self._filled(row, place).text
            completion = spaced(raw, text_of(row, self.target, place))[1]
            return Example(prompt.text, completion, spans=prompt.spans)
        label = label_of(row, self.target, place)
        if self.labels and label not in self.labels:
            raise DataError(
                f"{place}: label {label!r} is in none of the training rows; they have {_listed(self.labels)}"
            )
        return Example(prompt.text, self.completion(label), label, spans=prompt.spans)

    def _filled(self, row: Mapping[str, Any], place: str) -> Rendered:
        if self.kind == "text":
            return Rendered(text_of(row, self.target, place), ())
        template = Template(self.template or "")
        if self.kind == "alpaca" and row.get("input") in (None, ""):
            lines = template.text.splitlines(keepends=True)
            template = Template("".join(line for line in lines if "{input}" not in line))
        values = {name: text_of(row, name, place) for name in template.fields}
        if self.kind == "label" and template.fields and not template.literals[-1].strip():
            values[template.fields[-1]] = values[template.fields[-1]].rstrip()
        filled = template.render(values)
        return Rendered(filled.text, ()) if template.is_one_field else filled

    def _rendered(self, row: Mapping[str, Any], place: str) -> Rendered:
        text, spans = self._filled(row, place)
        bare = text.rstrip(" ")
        return Rendered(bare, tuple((min(start, len(bare)), min(end, len(bare))) for start, end in spans))

    def _row(self, row: Mapping[str, Any] | str) -> Mapping[str, Any]:
        if not isinstance(row, str):
            return row
        if self.kind == "text":
            return {self.target: row}
        if self.kind == "alpaca":
            return {"instruction": row}
        fields = list(dict.fromkeys(Template(self.template or "").fields))
        if len(fields) != 1:
            raise DataError(f"one bare text cannot fill the fields {_listed(fields)}; give each of them by name")
        return {fields[0]: row}


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
    value = _value_of(row, name, place)
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
        raise DataError(f"{place} has no field {name!r}; it has {_listed(row)}")
    if row[name] is None:
        raise DataError(f"{place}: field {name!r} has no value (null)")
    return row[name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
