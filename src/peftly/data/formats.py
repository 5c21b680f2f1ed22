"""How a row becomes an example: the shape that is found once and stays with an adapter for its whole life."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peftly.data.messages import messages_of
from peftly.data.templates import Rendered, Template, label_of, listed, spaced, text_of, words_of
from peftly.data.types import Example
from peftly.errors import DataError

if TYPE_CHECKING:
    pass

__all__ = ["KINDS", "RowFormat"]


KINDS = ("completion", "alpaca", "chat", "label", "tags", "text")

Where = Callable[[int], str]


@dataclass(frozen=True)
class RowFormat:
    """How a row becomes an example. Stored beside an adapter, so that a prompt is formed at use as in training.

    Attributes:
        kind: "completion", "alpaca", "label", "tags" (a template and a target), "chat" or "text".
        template: how the prompt is made; None for chat (the tokenizer's own is used) and text (there is no prompt);
            for tags it names the field with the words.
        target: the field with the completion, the label, the tags, the messages or the text.
        labels: the labels or tags that the training rows have, sorted; only for "label" and "tags".
        pair: the field with a second text, where a classifier reads two.
    """

    kind: str
    template: str | None
    target: str
    labels: tuple[str, ...] = field(default=())
    pair: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"shape kind {self.kind!r} is not known; known are {listed(KINDS)}")
        if (self.template is None) != (self.kind in ("chat", "text")):
            raise DataError(f"a shape of kind {self.kind!r} has template={self.template!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; `from_dict` is the way back."""
        return {
            "kind": self.kind,
            "template": self.template,
            "target": self.target,
            "labels": list(self.labels),
            "pair": self.pair,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RowFormat":
        """Return the shape that `to_dict` wrote.

        Raises:
            DataError: a part is missing or unknown, as in a file of a later version.
        """
        parts = {"kind", "template", "target", "labels", "pair"}
        if set(content) | {"pair"} != parts:
            raise DataError(f"a stored shape has {listed(sorted(content))}; expected {listed(sorted(parts))}")
        return cls(
            content["kind"], content["template"], content["target"], tuple(content["labels"]), content.get("pair")
        )

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
            raise DataError(
                "a conversation has no prompt text of its own; use prompt_ids_of_row(shape, row, tokenizer)"
            )
        return self._rendered(self._row(row), "the prompt").text

    @property
    def marked_tokens(self) -> int:
        """How many virtual tokens the template marks a place for."""
        return len(Template(self.template or "").marks)

    @property
    def words_field(self) -> str:
        """The field with the words, of a shape of kind "tags"."""
        return Template(self.template or "").fields[0]

    def format_prompt(self, row: Mapping[str, Any] | str, pair: str | None = None) -> Example:
        """Return what a model reads of a row at use, as in training; the target need not be there.

        It is the prompt with the places that a template marks in it, which `generate` takes, and `classify`.

        Args:
            row: as for `prompt`; the words of a bare text to be tagged are what blanks part.
            pair: the second text, where the shape has one and `row` is a bare text.

        Raises:
            DataError: fields are missing, a second text is given or missing against the shape, or the shape is "chat".
        """
        if self.kind == "chat":
            raise DataError("a conversation is no single text; give its messages as they are")
        fields = self._row(row)
        if self.kind == "tags":
            words = words_of(fields, self.words_field, None, "the text")[0]
            return Example(" ".join(words), words=words)
        if pair is not None and self.pair is not None:
            fields = {**fields, self.pair: pair}
        if pair is not None and self.pair is None:
            raise DataError("a second text is given, and this model was trained on one text at a time; leave it out")
        if self.pair is not None and self.pair not in fields:
            raise DataError(f"this model reads two texts; give the second, {self.pair!r}, too (--pair)")
        rendered = self._rendered(fields, "the text")
        second = None if self.pair is None else text_of(fields, self.pair, "the text")
        return Example(rendered.text, spans=rendered.spans, marks=rendered.marks, pair=second)

    @property
    def answers(self) -> tuple[str, ...]:
        """What rows of each label end in: the label, behind the last words of the template ("Label: complaint")."""
        if self.kind != "label":
            return ()
        before = Template(self.template or "").literals[-1].rpartition("\n")[2].strip()
        return tuple(before + (self.completion(label) if before else label) for label in self.labels)

    def completion(self, label: str) -> str:
        """Return a label as the text that follows the prompt: the same for every row.

        Whether a space comes first is therefore read from the template, not from the row: `_rendered` sees to it that
        the row's own text ends in none where the template ends in a field.
        """
        tail = Template(self.template or "").literals[-1]
        return spaced(tail if tail.strip() else f"x{tail}", label)[1]

    def _example(self, row: Mapping[str, Any], place: str) -> Example:
        if self.kind == "chat":
            return Example(messages=messages_of(row, self.target, place))
        if self.kind == "text":
            return Example(completion=text_of(row, self.target, place))
        if self.kind == "tags":
            words, tags = words_of(row, self.words_field, self.target, place)
            for tag in tags:
                self._check_label(tag, place)
            return Example(" ".join(words), words=words, tags=tags)
        prompt = self._rendered(row, place)
        if self.kind != "label":
            raw = self._filled(row, place).text
            completion = spaced(raw, text_of(row, self.target, place))[1]
            return Example(prompt.text, completion, spans=prompt.spans, marks=prompt.marks)
        label = label_of(row, self.target, place)
        self._check_label(label, place)
        pair = None if self.pair is None else text_of(row, self.pair, place)
        return Example(prompt.text, self.completion(label), label, spans=prompt.spans, marks=prompt.marks, pair=pair)

    def _check_label(self, label: str, place: str) -> None:
        if self.labels and label not in self.labels:
            kind = "tag" if self.kind == "tags" else "label"
            raise DataError(
                f"{place}: {kind} {label!r} is in none of the training rows; they have {listed(self.labels)}"
            )

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
        return filled._replace(spans=()) if template.is_one_field else filled

    def _rendered(self, row: Mapping[str, Any], place: str) -> Rendered:
        text, spans, marks = self._filled(row, place)
        bare = text.rstrip(" ")
        return Rendered(
            bare,
            tuple((min(start, len(bare)), min(end, len(bare))) for start, end in spans),
            tuple(min(mark, len(bare)) for mark in marks),
        )

    def _row(self, row: Mapping[str, Any] | str) -> Mapping[str, Any]:
        if not isinstance(row, str):
            return row
        if self.kind == "text":
            return {self.target: row}
        if self.kind == "alpaca":
            return {"instruction": row}
        if self.kind == "tags":
            return {self.words_field: row.split()}
        fields = list(dict.fromkeys(Template(self.template or "").fields))
        if len(fields) != 1:
            raise DataError(f"one bare text cannot fill the fields {listed(fields)}; give each of them by name")
        return {fields[0]: row}
