"""Texts that another program has spoiled: characters in the wrong encoding, and a word for a missing value."""

import re
from collections.abc import Iterator

from peftly.data.types import Example

__all__ = ["MISSING_WORDS", "spoiled_texts"]

MISSING_WORDS = frozenset({"nan", "NaN", "NaT", "<NA>", "#N/A", "\\N"})
"""Words that pandas, Excel and databases write for a missing value."""

_SIGNS = ("\ufffd", "Ã", "Â", "Ð", "Ñ", "â€")
_WRONG_ENCODING = re.compile("\ufffd|[ÃÂÐÑ][\u0080-\u00bf]|â€[\u0080-\u00bf\u0152-\u2122]")
"""A character that was lost, or UTF-8 that was read as Latin-1 or as Windows' code page: "Ã©" for "é"."""


def spoiled_texts(example: Example) -> list[tuple[str, str]]:
    """Return the findings of an example with spoiled texts.

    Args:
        example: an example of `RowFormat.example`.
    """
    found = []
    broken = next(filter(None, map(_broken_part, _texts(example))), None)
    if broken is not None:
        found.append(("wrong_encoding", repr(broken)))
    missing = next((text for text in _values(example) if text in MISSING_WORDS), None)
    if missing is not None:
        found.append(("missing_text", repr(missing)))
    return found


def _texts(example: Example) -> Iterator[str]:
    yield from filter(None, (example.prompt, example.completion, example.pair))
    for message in example.messages:
        yield message["content"] or ""


def _values(example: Example) -> Iterator[str]:
    """Yield the texts of an example that come from one field each, without a label."""
    yield from (example.prompt[start:end].strip() for start, end in example.spans)
    yield from (example.prompt.strip(), (example.pair or "").strip())
    if example.label is None:
        yield example.completion.strip()


def _broken_part(text: str) -> str | None:
    """Return the first word with characters in the wrong encoding."""
    if not any(sign in text for sign in _SIGNS):
        return None
    match = _WRONG_ENCODING.search(text)
    return None if match is None else text[max(0, match.start() - 10) : match.end() + 10]
