"""Texts that another program has spoiled: characters in the wrong encoding, and a word for a missing value."""

import re

from peftly.data.types import Example

__all__ = ["MISSING_WORDS", "spoiled_texts"]

MISSING_WORDS = frozenset({"nan", "NaN", "NaT", "<NA>", "#N/A", "\\N"})
"""Words that pandas, Excel and databases write for a missing value."""

_LONGEST = max(map(len, MISSING_WORDS)) + 2
_SIGNS = ("\ufffd", "Ã", "Â", "Ð", "Ñ", "â€")
_WRONG_ENCODING = re.compile("\ufffd|[ÃÂÐÑ][\u0080-\u00bf]|â€[\u0080-\u00bf\u0152-\u2122]")
"""A character that was lost, or UTF-8 that was read as Latin-1 or as Windows' code page: "Ã©" for "é"."""


def spoiled_texts(example: Example) -> list[tuple[str, str]]:
    """Return the findings of an example with spoiled texts.

    Args:
        example: an example of `RowFormat.example`.
    """
    found = []
    contents = [message["content"] for message in example.messages]
    for text in (example.prompt, example.completion, example.pair, *contents):
        if text and not text.isascii() and (part := _broken_part(text)) is not None:
            found.append(("wrong_encoding", repr(part)))
            break
    values = [example.prompt, example.pair or "", "" if example.label is not None else example.completion]
    values += [example.prompt[start:end] for start, end in example.spans if end - start <= _LONGEST]
    missing = next((text.strip() for text in values if len(text) <= _LONGEST and text.strip() in MISSING_WORDS), None)
    if missing is not None:
        found.append(("missing_text", repr(missing)))
    return found


def _broken_part(text: str) -> str | None:
    """Return the first characters in the wrong encoding, with those around them."""
    if not any(sign in text for sign in _SIGNS):
        return None
    match = _WRONG_ENCODING.search(text)
    return None if match is None else text[max(0, match.start() - 10) : match.end() + 10]
