"""Text that cannot change a terminal."""

import re

__all__ = ["printable"]

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tabs and line feeds, separators of lines, marks that turn the direction of the text, and
halves of characters: what a terminal may obey, or an encoding lacks."""


def printable(text: str) -> str:
    r"""Return a text with control characters as escapes such as \u001b, which are the escapes of JSON, too."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
