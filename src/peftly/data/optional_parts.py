r"""Optional parts of a template: `[\n{input?}]` is left out where the field has no text."""

import re
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["OptionalPart", "optional_parts", "resolved"]


class OptionalPart(NamedTuple):
    """A part of a template in brackets, with at least one mark `{field?}` or `{?field}`.

    Attributes:
        start, end: the part in the template, in characters, with its brackets.
        marks: start and end of each mark, the name of its field, and the text that replaces the mark where the part is
            shown: `{field}`, or nothing for `{?field}`.
    """

    start: int
    end: int
    marks: tuple[tuple[int, int, str, str], ...]

    @property
    def fields(self) -> set[str]:
        """Names of the fields that the part depends on."""
        return {name for _, _, name, _ in self.marks}


def optional_parts(template: str) -> list[OptionalPart]:
    """Return the optional parts of a template, in the order of their ends.

    The innermost brackets around a mark are those of its part. Other brackets, as in "[INST]", are text.

    Args:
        template: text of the template.
    """
    parts: list[OptionalPart] = []
    opened: list[tuple[int, list[tuple[int, int, str, str]]]] = []
    for match in re.finditer(r"\{\{|\}\}|\{[^{}]+\}|[\[\]]", template):
        piece, start, end = match[0], match.start(), match.end()
        if piece == "[":
            opened.append((start, []))
        elif piece == "]" and opened:
            first, marks = opened.pop()
            if marks:
                parts.append(OptionalPart(first, end, tuple(marks)))
        elif opened and len(piece) > 3 and piece.endswith("?}"):
            opened[-1][1].append((start, end, piece[1:-2], f"{{{piece[1:-2]}}}"))
        elif opened and len(piece) > 3 and piece.startswith("{?"):
            opened[-1][1].append((start, end, piece[2:-1], ""))
    return parts


def resolved(template: str, parts: Collection[OptionalPart], missing: Collection[str]) -> str:
    """Return a template without optional parts: each of them is shown, or left out.

    Args:
        template: text of the template.
        parts: its optional parts.
        missing: names of the fields without a text; the parts that depend on one of them are left out.
    """
    edits: list[tuple[int, int, str]] = []
    for part in parts:
        if part.fields.isdisjoint(missing):
            edits += [(part.start, part.start + 1, ""), (part.end - 1, part.end, "")]
            edits += [(start, end, text) for start, end, _, text in part.marks]
        else:
            edits.append((part.start, part.end, ""))
    text, copied_until = "", 0
    for start, end, replacement in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if start >= copied_until:  # not inside a part that is left out
            text += template[copied_until:start] + replacement
            copied_until = end
    return text + template[copied_until:]
