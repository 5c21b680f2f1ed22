"""Fields of rows that look like texts for the model to read, and the options that name them on the command line."""

import re
import shlex
from itertools import islice

from peftly.data.rows import Rows

__all__ = ["input_fields", "is_identifier", "read_escapes", "template_option"]

_IDENTIFIERS = ("id", "idx", "index", "uid", "uuid", "guid", "row_id", "__index_level_0__", "unnamed: 0")
_SAMPLE_ROWS = 50
_ESCAPES = {"\n": r"\n", "\t": r"\t", "\\": r"\\"}


def is_identifier(field: str) -> bool:
    """Return whether a field is the number of a row by its name, such as "idx" or "pair_id"."""
    name = field.lower()
    return name in _IDENTIFIERS or name.endswith(("_id", "-id", " id"))


def input_fields(rows: Rows, target: str | None = None) -> list[str]:
    """Return the fields of the first rows that look like texts to read: various texts of more than one word.

    Args:
        rows: the rows.
        target: field to learn. A field that contains its text, such as the whole prompt with its answer, is left out.
    """
    sample = list(islice(rows.rows, _SAMPLE_ROWS))
    names = [name for name in rows.fields if name != target and not is_identifier(name)]
    answers = [str(row.get(target) or "") if target else "" for row in sample]
    chosen = []
    for name in names:
        values = [row.get(name) or "" for row in sample]
        texts = [value for value in values if isinstance(value, str) and value.strip()]
        if len(texts) < sum(map(bool, values)) or 2 * sum(" " in text.strip() for text in texts) < max(1, len(texts)):
            continue
        repeats = len(answers[0].split()) > 1 and all(
            answer in value for answer, value in zip(answers, values, strict=True)
        )
        if 2 * len(set(texts)) > len(texts) and not repeats:
            chosen.append(name)
    return chosen


def template_option(template: str, target: str | None = None) -> str:
    """Return options of the command line as they must be typed: with two characters for a line break."""
    escaped = re.sub(r"[\\\n\t]", lambda match: _ESCAPES[match[0]], template)
    return f"--template {shlex.quote(escaped)}" + (f" --target {shlex.quote(target)}" if target else "")


def read_escapes(template: str) -> str:
    """Return a template as typed in a shell or in YAML, with its escapes replaced: line break, tab and backslash."""
    characters = {escape: character for character, escape in _ESCAPES.items()}
    return re.sub(r"\\[nt\\]", lambda match: characters[match[0]], template)
