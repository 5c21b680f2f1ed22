"""Row formats: the rule that turns a row into an example, detected once and stored with the adapter."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from peftly.data.fields import completion_field, label_field, text_field, words_and_tags
from peftly.data.messages import conversation_field
from peftly.data.rows import quoted
from peftly.data.templates import RenderedPrompt, Template, move_space
from peftly.data.types import Example
from peftly.errors import DataError

__all__ = ["KINDS", "RowFormat"]

KINDS = ("completion", "alpaca", "chat", "label", "tags", "text")

_OPTIONAL = ("input", "context")
"""Fields of instructions that can be missing or empty; a template names one of them."""


@dataclass(frozen=True)
class RowFormat:
    """Rule that turns a row into an example.

    The rule is stored with the adapter, so that inference formats prompts as training did.

    Attributes:
        kind: "completion", "alpaca", "label" or "tags" (a template and a target), "chat" or "text".
        template: template of the prompt. None for "chat" (the chat template of the tokenizer is used) and for "text"
            (there is no prompt). For "tags" the template names the field with the words.
        target: name of the field with the completion, the label, the tags, the messages or the text.
        labels: labels or tags of the training rows, sorted; empty for kinds other than "label" and "tags".
        pair: name of the field with the second text, for a classifier that reads text pairs.
        chat_template: chat template of conversations, where it is not the tokenizer's own.

    Raises:
        DataError: `kind` is unknown, or `template` does not fit `kind`.
    """

    kind: str
    template: str | None
    target: str
    labels: tuple[str, ...] = field(default=())
    pair: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"row format {self.kind!r} is not known; known are {quoted(KINDS)}")
        if (self.template is None) != (self.kind in ("chat", "text")):
            raise DataError(f"a row format of kind {self.kind!r} has template={self.template!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the row format as JSON values; `from_dict` is the inverse."""
        return {
            "kind": self.kind,
            "template": self.template,
            "target": self.target,
            "labels": list(self.labels),
            "pair": self.pair,
            **({} if self.chat_template is None else {"chat_template": self.chat_template}),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RowFormat":
        """Return the row format that `to_dict` wrote.

        Args:
            content: JSON values. `pair` can be missing, since version 0.1.0 did not always write it, and
                `chat_template`.

        Raises:
            DataError: a key is missing or unknown, as in a file of a later version.
        """
        keys = {"kind", "template", "target", "labels", "pair"}
        if (set(content) | {"pair"}) - {"chat_template"} != keys:
            raise DataError(f"a stored row format has {quoted(sorted(content))}; expected {quoted(sorted(keys))}")
        return cls(
            content["kind"],
            content["template"],
            content["target"],
            tuple(content["labels"]),
            content.get("pair"),
            content.get("chat_template"),
        )

    @property
    def num_marked_tokens(self) -> int:
        """Number of virtual tokens that the template marks."""
        return len(self._template.marks)

    @property
    def input_fields(self) -> tuple[str, ...]:
        """Names of the fields of a prompt, in order; empty for conversations."""
        if self.kind in ("chat", "text"):
            return () if self.kind == "chat" else (self.target,)
        pair = () if self.pair is None else (self.pair,)
        return tuple(dict.fromkeys((*self._template.fields, *pair)))

    @property
    def words_field(self) -> str:
        """Name of the field with the words, for a row format of kind "tags"."""
        return self._template.fields[0]

    @property
    def answers(self) -> tuple[str, ...]:
        """Last line of an example of each label: the end of the template and the label, as in "Label: complaint"."""
        if self.kind != "label":
            return ()
        cue = self._template.literals[-1].rpartition("\n")[2].strip()
        return tuple(cue + (self.completion(label) if cue else label) for label in self.labels)

    def examples(
        self, rows: Iterable[Mapping[str, Any]], location: Callable[[int], str] | None = None
    ) -> list[Example]:
        """Return one example per row.

        Args:
            rows: fields and values of each row.
            location: function that returns the location of a row by its index, for error messages; None: "row N".

        Raises:
            DataError: a field is missing or has a wrong value, or a label is not among `labels` (if there are any).
        """
        location = location or (lambda index: f"row {index + 1}")
        return [self.example(row, location(index)) for index, row in enumerate(rows)]

    def example(self, row: Mapping[str, Any], location: str) -> Example:
        """Return the example of one row.

        Args:
            row: fields and values.
            location: location of the row, for error messages.

        Raises:
            DataError: as for `examples`.
        """
        if self.kind == "chat":
            messages, tools, untrained, findings = conversation_field(row, self.target, location)
            return Example(messages=messages, tools=tools, untrained=untrained, findings=findings)
        if self.kind == "text":
            return Example(completion=text_field(row, self.target, location))
        if self.kind == "tags":
            words, tags = words_and_tags(row, self.words_field, self.target, location)
            for tag in tags:
                self._check_label(tag, location)
            return Example(" ".join(words), words=words, tags=tags)
        label = pair = None
        filled = self._fill(row, location)
        prompt = _without_spaces_at_end(filled)
        if self.kind == "label":
            label = label_field(row, self.target, location)
            self._check_label(label, location)
            pair = None if self.pair is None else text_field(row, self.pair, location)
            completion = self._completions.get(label) or self.completion(label)
        else:
            completion = move_space(filled.text, completion_field(row, self.target, location))[1]
        return Example(
            prompt.text,
            completion,
            label,
            spans=prompt.spans,
            virtual_token_offsets=prompt.virtual_token_offsets,
            pair=pair,
        )

    def format_prompt(self, row: Mapping[str, Any] | str, pair: str | None = None) -> Example:
        """Return the prompt of a row at inference, formatted as in training. The target can be missing.

        `generate` and `classify` take the returned example, with the offsets of the virtual tokens that the template
        marks.

        Args:
            row: fields of the template, or a bare text if the template has one field or the kind is "alpaca". A bare
                text for kind "tags" is split into words at blanks.
            pair: second text, if the row format has one and `row` is a bare text.

        Raises:
            DataError: a field is missing, a second text is missing or superfluous, or the kind is "chat".
        """
        if self.kind == "chat":
            raise DataError("a conversation is not a single text; give its messages, as prompt_ids does")
        fields = self._fields_of(row)
        if self.kind == "tags":
            words, _ = words_and_tags(fields, self.words_field, None, "the text")
            return Example(" ".join(words), words=words)
        if pair is not None and self.pair is not None:
            fields = {**fields, self.pair: pair}
        if pair is not None and self.pair is None:
            raise DataError("a second text is given, and this model was trained on one text at a time; leave it out")
        if self.pair is not None and self.pair not in fields:
            raise DataError(f"this model reads two texts; give the second, {self.pair!r}, too (--pair)")
        prompt = _without_spaces_at_end(self._fill(fields, "the text"))
        second = None if self.pair is None else text_field(fields, self.pair, "the text")
        return Example(prompt.text, spans=prompt.spans, virtual_token_offsets=prompt.virtual_token_offsets, pair=second)

    def completion(self, label: str) -> str:
        """Return the completion of a label, which is the same text for every row.

        Whether a space comes first depends on the template only: if the template ends with a field, `_fill` removes
        blanks at the end of the field's value.
        """
        tail = self._template.literals[-1]
        return move_space(tail if tail.strip() else f"x{tail}", label)[1]

    @cached_property
    def _template(self) -> Template:
        return Template(self.template or "")

    @cached_property
    def _template_without_optional(self) -> Template:
        lines = self._template.text.splitlines(keepends=True)
        return Template("".join(line for line in lines if not any(f"{{{name}}}" in line for name in _OPTIONAL)))

    @cached_property
    def _completions(self) -> dict[str, str]:
        return {label: self.completion(label) for label in self.labels}

    def _check_label(self, label: str, location: str) -> None:
        if self.labels and label not in self._completions:
            kind = "tag" if self.kind == "tags" else "label"
            raise DataError(
                f"{location}: {kind} {label!r} is in none of the training rows; they have {quoted(self.labels)}"
            )

    def _fill(self, row: Mapping[str, Any], location: str) -> RenderedPrompt:
        if self.kind == "text":
            return RenderedPrompt(text_field(row, self.target, location), ())
        template = self._template
        if self.kind == "alpaca":
            optional = [name for name in _OPTIONAL if name in template.fields]
            if not any(str(row.get(name) or "").strip() for name in optional):
                template = self._template_without_optional
        values = {name: text_field(row, name, location) for name in template.fields}
        if self.kind == "label" and template.fields and not template.literals[-1].strip():
            values[template.fields[-1]] = values[template.fields[-1]].rstrip()
        rendered = template.render(values)
        return rendered._replace(spans=()) if template.is_one_field else rendered

    def _fields_of(self, row: Mapping[str, Any] | str) -> Mapping[str, Any]:
        """Return the fields of a row that may be given as one bare text."""
        if not isinstance(row, str):
            return row
        if self.kind == "text":
            return {self.target: row}
        if self.kind == "alpaca":
            return {"instruction": row}
        if self.kind == "tags":
            return {self.words_field: row.split()}
        fields = list(dict.fromkeys(self._template.fields))
        if len(fields) != 1:
            raise DataError(f"one bare text cannot fill the fields {quoted(fields)}; give each of them by name")
        return {fields[0]: row}


def _without_spaces_at_end(prompt: RenderedPrompt) -> RenderedPrompt:
    """Return the prompt without spaces at its end: generation starts at the first one."""
    text, spans, offsets = prompt
    bare = text.rstrip(" ")
    if len(bare) == len(text):
        return prompt
    return RenderedPrompt(
        bare,
        tuple((min(start, len(bare)), min(end, len(bare))) for start, end in spans),
        tuple(min(offset, len(bare)) for offset in offsets),
    )
