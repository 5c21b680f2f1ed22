"""Row formats: the rule that turns a row into an example, detected once and stored with the adapter."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from peftly.data.config import AddSpace
from peftly.data.fields import completion_field, history_field, is_missing, label_field, text_field, words_and_tags
from peftly.data.messages import conversation_field
from peftly.data.rows import quoted
from peftly.data.templates import RenderedPrompt, Template, move_space, needs_space
from peftly.data.types import Example
from peftly.errors import DataError

__all__ = ["KINDS", "RowFormat"]

_OPTIONAL = ("system", "history", "input", "context")
"""Fields of instructions that can be missing or empty; the line of such a field is then left out of the template."""

KINDS = ("completion", "alpaca", "chat", "label", "tags", "text")


@dataclass(frozen=True)
class RowFormat:
    """Rule that turns a row into an example.

    The rule is stored with the adapter, so that inference formats prompts as training did.

    Attributes:
        kind: "completion", "alpaca" (instructions, with optional fields), "label" or "tags" (a template and a target),
            "chat" or "text".
        template: template of the prompt. None for "chat" (the chat template of the tokenizer is used) and for "text"
            (there is no prompt). For "tags" the template names the field with the words.
        target: name of the field with the completion, the label, the tags, the messages or the text.
        labels: labels or tags of the training rows in the order of their class indices; empty for kinds
            other than "label" and "tags".
        pair: name of the field with the second text, for a classifier that reads text pairs.
        chat_template: chat template of conversations, where it is not the tokenizer's own.
        add_space: whether a space is added between prompt and completion; see `needs_space`. A label behind a
            field gets the space unless it is False.

    Raises:
        DataError: `kind` is unknown, or `template` does not fit `kind`.
    """

    kind: str
    template: str | None
    target: str
    labels: tuple[str, ...] = field(default=())
    pair: str | None = None
    chat_template: str | None = None
    add_space: AddSpace = "auto"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"row format {self.kind!r} is not known; known are {quoted(KINDS)}")
        if (self.template is None) != (self.kind in ("chat", "text")):
            raise DataError(f"a row format of kind {self.kind!r} has template={self.template!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the row format as JSON values; `from_dict` is the inverse."""
        content = {**asdict(self), "labels": list(self.labels)}
        return {name: value for name, value in content.items() if name != "chat_template" or value is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RowFormat":
        """Return the row format that `to_dict` wrote.

        Args:
            content: JSON values. Version 0.1.0 did not always write `pair`, and always added spaces. `chat_template`
                can be missing.

        Raises:
            DataError: a key is missing or unknown, as in a file of a later version.
        """
        known = {key.name: key.default is MISSING for key in fields(cls)} | {"labels": True}
        if not set(content) <= set(known) or any(
            is_required and key not in content for key, is_required in known.items()
        ):
            raise DataError(f"a stored row format has {quoted(sorted(content))}; expected {quoted(sorted(known))}")
        return cls(**{"add_space": True, **content, "labels": tuple(content["labels"])})

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
        return tuple(dict.fromkeys((*self._template.names, *pair)))

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """Names of the fields of a prompt that a row can lack."""
        if self.kind == "alpaca":
            return tuple(name for name in self.input_fields if name in ("input", "system", "history"))
        return tuple(name for name in self._template.names if name not in self._template.required)

    @property
    def words_field(self) -> str:
        """Name of the field with the words, for a row format of kind "tags"."""
        return self._template.fields[0]

    @property
    def answers(self) -> tuple[str, ...]:
        """Last line of an example of each label: the end of the template and the label, as in "Label: complaint"."""
        if self.kind != "label":
            return ()
        cue = self._template.tail.rpartition("\n")[2].strip()
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
        template = self._template_for(row)
        filled = self._fill(row, template, location)
        prompt = filled.without_spaces_at_end()
        has_added_space = False
        if self.kind == "label":
            label = label_field(row, self.target, location)
            self._check_label(label, location)
            pair = None if self.pair is None else text_field(row, self.pair, location)
            completion = self._completions.get(label) or self.completion(label)
        else:
            written = completion_field(row, self.target, location)
            ends_with_template = template.literals[-1].strip() != ""
            has_added_space = needs_space(filled.text, written, self.add_space, ends_with_template=ends_with_template)
            completion = f" {written}" if has_added_space else move_space(filled.text, written)[1]
        return Example(
            prompt.text,
            completion,
            label,
            spans=prompt.spans,
            virtual_token_offsets=prompt.virtual_token_offsets,
            pair=pair,
            has_added_space=has_added_space,
        )

    def format_prompt(
        self, row: Mapping[str, Any] | str, pair: str | None = None, *, location: str = "the text"
    ) -> Example:
        """Return the prompt of a row at inference, formatted as in training. The target can be missing.

        `generate` and `classify` take the returned example, with the offsets of the virtual tokens that the template
        marks.

        Args:
            row: fields of the template, or a bare text if the template has one field or the kind is "alpaca". A bare
                text for kind "tags" is split into words at blanks.
            pair: second text, if the row format has one and `row` is a bare text.
            location: location of the row, for error messages.

        Raises:
            DataError: a field is missing, a second text is missing or superfluous, or the kind is "chat".
        """
        if self.kind == "chat":
            raise DataError("a conversation is not a single text; give its messages, as prompt_ids does")
        fields = self._fields_of(row)
        if self.kind == "tags":
            words, _ = words_and_tags(fields, self.words_field, None, location)
            return Example(" ".join(words), words=words)
        if pair is not None and self.pair is not None:
            fields = {**fields, self.pair: pair}
        if pair is not None and self.pair is None:
            raise DataError("a second text is given, and this model was trained on one text at a time; leave it out")
        if self.pair is not None and self.pair not in fields:
            raise DataError(f"this model reads two texts; give the second, {self.pair!r}, too (--pair)")
        prompt = self._fill(fields, self._template_for(fields), location).without_spaces_at_end()
        second = None if self.pair is None else text_field(fields, self.pair, location)
        return Example(prompt.text, spans=prompt.spans, virtual_token_offsets=prompt.virtual_token_offsets, pair=second)

    def completion(self, label: str) -> str:
        """Return the completion of a label, which is the same text for every row.

        Whether a space comes first depends on the template only: if the template ends with a field, `_fill` removes
        blanks at the end of the field's value. An optional part at the end counts as a field.
        """
        tail = self._template.tail
        if tail.strip():
            space = " " if needs_space(tail, label, self.add_space, ends_with_template=True) else ""
            return space + move_space(tail, label)[1]
        space = " " if needs_space(f"x{tail}", label, self.add_space is not False) else ""
        return space + move_space(f"x{tail}", label)[1]

    @cached_property
    def _template(self) -> Template:
        return Template(self.template or "")

    @cached_property
    def _templates_without(self) -> dict[tuple[str, ...], Template]:
        return {}

    def _without_lines(self, fields: tuple[str, ...]) -> Template:
        """Return the template without the lines of these fields."""
        if fields not in self._templates_without:
            lines = self._template.text.splitlines(keepends=True)
            text = "".join(line for line in lines if not any(f"{{{name}}}" in line for name in fields))
            self._templates_without[fields] = Template(text)
        return self._templates_without[fields]

    @cached_property
    def _completions(self) -> dict[str, str]:
        return {label: self.completion(label) for label in self.labels}

    def _check_label(self, label: str, location: str) -> None:
        if self.labels and label not in self._completions:
            kind = "tag" if self.kind == "tags" else "label"
            raise DataError(
                f"{location}: {kind} {label!r} is in none of the training rows; they have {quoted(self.labels)}; "
                "rows without a known label are for peftly predict"
            )

    def _template_for(self, row: Mapping[str, Any]) -> Template:
        """Return the template without the optional parts or lines whose fields have no text in a row."""
        template = self._template
        if self.kind != "alpaca" and not template.optional:
            return template
        names = _OPTIONAL if self.kind == "alpaca" else template.optional
        missing = tuple(name for name in names if is_missing(row.get(name)) or row[name] == [])
        return self._without_lines(missing) if self.kind == "alpaca" else template.without(missing)

    def _fill(self, row: Mapping[str, Any], template: Template, location: str) -> RenderedPrompt:
        if self.kind == "text":
            return RenderedPrompt(text_field(row, self.target, location), ())
        earlier_spans: list[tuple[int, int]] = []
        if self.kind == "alpaca" and "history" in template.fields:
            earlier, earlier_spans = self._earlier_turns(history_field(row, "history", location))
            row = {**row, "history": earlier}
        values = {name: text_field(row, name, location) for name in template.fields}
        if self.kind == "label" and template.fields and not template.literals[-1].strip():
            values[template.fields[-1]] = values[template.fields[-1]].rstrip()
        rendered = template.render(values)
        if earlier_spans:
            index = template.fields.index("history")
            offset = rendered.spans[index][0]
            spans = [(offset + start, offset + end) for start, end in earlier_spans]
            return rendered._replace(spans=(*rendered.spans[:index], *spans, *rendered.spans[index + 1 :]))
        return rendered._replace(spans=()) if self._template.is_one_field else rendered

    def _earlier_turns(self, history: list[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Return earlier instructions with their answers as text, and start and end of each of their texts."""
        template, text, spans = self._without_lines(_OPTIONAL), "", []
        for instruction, answer in history:
            turn = template.render({"instruction": instruction})
            start = len(text) + (1 if text else 0)
            prompt = text + ("\n" if text else "") + turn.text
            space = " " if needs_space(prompt, answer, self.add_space is not False) else ""
            text = prompt + space + answer
            spans += [(start + turn.spans[0][0], start + turn.spans[0][1]), (len(text) - len(answer), len(text))]
        return text, spans

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
        fields = self._template.required or self._template.names
        if len(fields) != 1:
            raise DataError(f"one bare text cannot fill the fields {quoted(fields)}; give each of them by name")
        return {fields[0]: row}
