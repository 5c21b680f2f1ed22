"""Prompt templates, and the space between prompt and completion."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from peftly.data.config import AddSpace
from peftly.data.optional_parts import optional_parts, resolved
from peftly.data.rows import quoted
from peftly.errors import DataError

__all__ = [
    "ALPACA",
    "RenderedPrompt",
    "Template",
    "merges_into_word",
    "move_space",
    "needs_space",
    "with_optional_lines",
]

ALPACA = "Instruction: {instruction}\nInput: {input}\nAnswer:"
"""Template of instruction data. The line of an empty input is left out."""


def with_optional_lines(template: str, fields: Iterable[str]) -> str:
    """Return a template of instruction data with a line for each optional field that the rows have.

    Args:
        template: template without these lines.
        fields: names of the rows' fields; "system" and "history" are the optional ones.
    """
    system = "System: {system}\n" if "system" in fields else ""
    history = "{history}\n" if "history" in fields else ""
    return system + history + template


class RenderedPrompt(NamedTuple):
    """A template filled with the values of a row.

    Attributes:
        text: the filled text.
        spans: start and end of each field's value in `text`, in characters.
        virtual_token_offsets: character offset in `text` of each virtual token that the template marks.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    virtual_token_offsets: tuple[int, ...] = ()

    def without_spaces_at_end(self) -> Self:
        """Return the prompt without spaces at its end: generation starts at the first one."""
        bare = self.text.rstrip(" ")
        if len(bare) == len(self.text):
            return self
        return self._replace(
            text=bare,
            spans=tuple((min(start, len(bare)), min(end, len(bare))) for start, end in self.spans),
            virtual_token_offsets=tuple(min(offset, len(bare)) for offset in self.virtual_token_offsets),
        )


class Template:
    r"""A text with `{field}` placeholders; `{{` and `}}` are literal braces.

    The whole text between two braces is the name of a field, spaces and dots included. Nothing is evaluated, and braces
    in a value have no meaning. `{prompt:3}` is a mark instead of a field: three virtual tokens of a method with
    `position: template` are inserted at the mark, and the mark adds no text.

    A part in brackets with a field `{field?}`, as in `{instruction}[\n{input?}]`, is left out for a row without a text
    in this field. `{?field}` adds no text, and the part depends on the field. Brackets without such a field are text.

    Args:
        text: the template.

    Attributes:
        literals: text before the first field, between two fields, and after the last field; one more than `fields`.
            All optional parts are shown.
        fields: names of the fields in order. A name can occur twice.
        required: names of the fields outside of optional parts.
        optional: names of the fields that optional parts depend on.
        tail: text after the last field and the last optional part, which ends the prompt of every row.
        marks: for each virtual token, the index of the literal that contains the mark, and the offset in this literal.

    Raises:
        DataError: a brace has no partner, a mark has no number of tokens, or virtual tokens are in an optional part.
    """

    def __init__(self, text: str):
        self.text = text
        self.literals, self.fields, self.marks = self._read(text)
        self.required, self.tail = list(dict.fromkeys(self.fields)), self.literals[-1]
        self.optional: tuple[str, ...] = ()
        self._parts = optional_parts(text)
        self._variants: dict[tuple[str, ...], Template] = {}
        if not self._parts:
            return
        if part := next((text[p.start : p.end] for p in self._parts if _MARK in text[p.start : p.end]), None):
            raise DataError(
                f"template {text!r} has virtual tokens in the optional part {part!r}, and every row needs all of them; "
                "write them outside of its brackets"
            )
        self.literals, self.fields, self.marks = self._read(resolved(text, self._parts, ()))
        self.optional = tuple(dict.fromkeys(name for part in self._parts for _, _, name, _ in part.marks))
        self.required = list(dict.fromkeys(self._read(resolved(text, self._parts, self.optional))[1]))
        self.tail = self._read(text[max(part.end for part in self._parts) :])[0][-1]

    def _read(self, text: str) -> tuple[list[str], list[str], list[tuple[int, int]]]:
        """Return the literals, the fields and the marks of a text without optional parts."""
        literals: list[str] = [""]
        fields: list[str] = []
        marks: list[tuple[int, int]] = []
        for match in re.finditer(r"\{\{|\}\}|\{[^{}]+\}|[{}]|[^{}]+", text):
            piece = match[0]
            if piece in ("{{", "}}"):
                literals[-1] += piece[0]
            elif piece in ("{", "}"):
                raise DataError(
                    f"template {self.text!r} has a lone {piece!r} at character {match.start() + 1}; "
                    f"write {{field}} for a field or {piece * 2!r} for a brace"
                )
            elif piece.startswith(_MARK):
                marks += [(len(fields), len(literals[-1]))] * _num_marked_tokens(piece, self.text)
            elif piece.startswith("{"):
                fields.append(piece[1:-1])
                literals.append("")
            else:
                literals[-1] += piece
        return literals, fields, marks

    def without(self, missing: Iterable[str]) -> "Template":
        """Return the template for a row without a text in some of the optional fields.

        Args:
            missing: names of these fields.
        """
        if not self._parts:
            return self
        names = tuple(missing)
        if names not in self._variants:
            self._variants[names] = Template(resolved(self.text, self._parts, names))
        return self._variants[names]

    @property
    def names(self) -> list[str]:
        """Names of all fields, each once, with the fields on which a part depends without showing them."""
        return list(dict.fromkeys((*self.fields, *self.optional)))

    @property
    def is_one_field(self) -> bool:
        """Whether the template is a single field without other text."""
        return len(self.fields) == 1 and not "".join(self.literals).strip()

    def check(self, row_fields: Iterable[str]) -> None:
        """Check the fields of the template.

        Args:
            row_fields: names of the fields that the rows have.

        Raises:
            DataError: the template has no field, or a field outside of optional parts that no row has.
        """
        if not self.fields:
            raise DataError(f"template {self.text!r} names no field, so every prompt would be the same text")
        row_fields = list(row_fields)
        for name in self.required:
            if name not in row_fields:
                is_optional = name.strip("?") in row_fields
                advice = f"; brackets make a part optional: [{{{name}}}]" if is_optional else ""
                raise DataError(
                    f"template {self.text!r} names the field {name!r}; the rows have {quoted(row_fields)}{advice}"
                )
        for name in self.optional:
            if f"{name}?" in row_fields or f"?{name}" in row_fields:
                raise DataError(
                    f"template {self.text!r} has {name!r} as an optional field, and the rows have a field with this "
                    "question mark in its name; rename it"
                )

    def render(self, values: Mapping[str, str]) -> RenderedPrompt:
        """Return the text with every field replaced by its value.

        Args:
            values: value of each field.
        """
        text, spans, literal_starts = self.literals[0], [], [0]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            start, end = len(text), len(text) + len(values[name])
            spans.append((start, end))
            literal_starts.append(end)
            text += values[name] + literal
        offsets = tuple(literal_starts[literal] + offset for literal, offset in self.marks)
        return RenderedPrompt(text, tuple(spans), offsets)


_MARK = "{prompt:"


def _num_marked_tokens(mark: str, template: str) -> int:
    """Return the number of virtual tokens at a mark, such as 3 for `{prompt:3}`."""
    count = mark[len(_MARK) : -1]
    if not re.fullmatch(r"[1-9][0-9]{0,3}", count):
        raise DataError(
            f"template {template!r} has {mark!r}; write the number of virtual tokens to insert, as in {{prompt:3}}"
        )
    return int(count)


def move_space(prompt: str, completion: str) -> tuple[str, str]:
    """Move the spaces at the end of a prompt to the start of the completion.

    Tokenizers join a word with the space before the word. A model that continues a prompt therefore generates this
    space, and a prompt that ends with a space begins generation with tokens that training never showed. A second call
    changes nothing.

    Returns:
        The prompt and the completion.
    """
    bare = prompt.rstrip(" ")
    return bare, prompt[len(bare) :] + completion


def needs_space(prompt: str, completion: str, add_space: AddSpace, *, ends_with_template: bool = False) -> bool:
    """Return whether a space is to be added between a prompt and a completion that are written without one.

    Args:
        prompt: text of the prompt, with the blanks at its end.
        completion: text of the completion.
        add_space: True: where the two merge into one word. False: never. "auto": where they merge and the last word of
            the prompt is a cue: it ends with ":", "?" or "!" ("Label:"), or is "=", "->", "=>" or "→". If the last word
            is text of the template, every such word is a cue except a part of a path, a tag or code, and an opening
            quotation mark.
        ends_with_template: whether the end of the prompt is text of the template instead of a field's value.
    """
    if add_space is False or not merges_into_word(prompt, completion):
        return False
    return add_space is True or _is_cue(prompt, ends_with_template=ends_with_template)


def merges_into_word(prompt: str, completion: str) -> bool:
    """Return whether a completion begins with a letter or a digit that has no space in front.

    In scripts that are written without spaces, and after an opening bracket, no space belongs there.
    """
    last = prompt[-1:]
    if not completion[:1].isalnum() or not last or last.isspace() or unicodedata.category(last) in ("Ps", "Pi"):
        return False
    return not unicodedata.name(completion[0], "").startswith(_SCRIPTS_WITHOUT_SPACES)


_SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_SEPARATORS = ("=", "->", "=>", "→")
_LONGEST_CUE = 64


def _is_cue(prompt: str, *, ends_with_template: bool) -> bool:
    """Return whether the last word of a prompt that does not end with a blank announces a completion."""
    word = prompt[-_LONGEST_CUE:].split()[-1].rstrip("*")  # "**Answer:**" is a cue, too
    if word in _SEPARATORS:
        return True
    if re.search(r"[/\\<>=@#&_|`$]", word):
        return False
    if ends_with_template:
        return word.strip("\"'") != ""
    return word.endswith((":", "?", "!")) and "." not in word
