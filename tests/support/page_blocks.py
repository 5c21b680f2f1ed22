"""Code blocks of the pages of the documentation."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"(?:<!-- (?:not run: (?P<reason>[^\n]+?)|(?P<fails>fails)) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^ *```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block, or the hidden preparation of the following blocks (`language` is "setup").

    Attributes:
        language: language after the fence.
        code: text of the block.
        reason: reason why the block is not run; None: it is run.
        fails: whether its command is refused, with the next block as the message.
    """

    language: str
    code: str
    reason: str | None = None
    fails: bool = False


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in order."""
    found = []
    for match in _BLOCK.finditer(page):
        if match["setup"] is not None:
            found.append(Block("setup", match["setup"]))
            continue
        indent = len(match["indent"])
        code = "".join(line[indent:] if line.strip() else line for line in match["code"].splitlines(keepends=True))
        found.append(Block(match["language"], code, match["reason"], bool(match["fails"])))
    return found


def command_lines(code: str) -> list[str]:
    """Return the commands of a block, without comments; a backslash continues a line."""
    lines = code.replace("\\\n", " ").split("\n")
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def english_pages() -> list[Path]:
    """Return the English pages, README first."""
    pages = [file for file in sorted(DOCS.rglob("*.md")) if not file.stem.endswith(".zh")]
    return [ROOT / "README.md", *pages]
