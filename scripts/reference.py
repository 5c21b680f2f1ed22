"""Parts of pages that are written from the code, in English and Chinese: texts, tables, and their place in a page.

The Chinese texts are in docs/reference_zh.yaml, by the English ones, which stand in the code.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml

__all__ = ["CATALOGUE", "DOCS", "Translator", "catalogue", "cell", "pages", "table", "write"]

DOCS = Path(__file__).resolve().parents[1] / "docs"
CATALOGUE = DOCS / "reference_zh.yaml"

_SPACE = re.compile(r"(?<=[\u4e00-\u9fff]) (?=[\u4e00-\u9fff])")
"""A space between two Chinese characters, which have none."""

_PART = re.compile(r"(?<=<!-- reference -->\n).*?(?=<!-- end of reference -->)", re.DOTALL)


class Translator:
    """Texts of one language. A call returns the text of an English one.

    Attributes:
        texts: texts by the English ones; None: the language is English.
        used: English texts that were asked for.
    """

    def __init__(self, texts: dict[str, str] | None = None) -> None:
        self.texts = texts
        self.used: dict[str, None] = {}

    def __call__(self, english: str, *values: object) -> str:
        """Return a text, with values in place of `{}`."""
        self.used[english] = None
        text = english if self.texts is None else self.texts.get(english, english)
        return text.format(*values) if values else text

    @property
    def missing(self) -> list[str]:
        """English texts without a translation."""
        return [] if self.texts is None else [text for text in self.used if text not in self.texts]


def catalogue() -> dict[str, str]:
    """Return the Chinese texts by the English ones."""
    sections = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {entry["en"]: entry["zh"] for entries in sections.values() for entry in entries}


def cell(text: str) -> str:
    """Return a text as one cell of a table, in which `<` is no HTML outside of code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()).replace("|", "\\|"))
    return "".join(part if part.startswith("`") else re.sub(r"<(?=[a-zA-Z/!?])(?!br>)", "&lt;", part) for part in parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    first, *others = (f"| {' | '.join(map(cell, row))} |" for row in (head, *rows))
    return [first, "|" + "---|" * len(head), *others]


def pages(name: str, lines: Callable[[Translator], Iterable[str]]) -> dict[Path, str]:
    """Return the current text of both languages of a page by its file, with the written part between the marks.

    Args:
        name: name of the page, without a suffix.
        lines: function that returns the lines of the written part.

    Raises:
        SystemExit: a text has no translation.
    """
    found = {}
    for file, translate in (
        (DOCS / f"{name}.md", Translator()),
        (DOCS / f"{name}.zh.md", Translator(catalogue())),
    ):
        part = "\n".join(["", *lines(translate), "", ""])
        if translate.missing:
            missing = "\n".join(translate.missing)
            raise SystemExit(f"error: write the Chinese texts for {name}.zh.md into {CATALOGUE.name}:\n{missing}")
        part = _SPACE.sub("", part)
        page = file.read_text(encoding="utf-8")
        if len(_PART.findall(page)) != 1:
            raise SystemExit(f"error: {file} needs the marks <!-- reference --> and <!-- end of reference --> once")
        found[file] = _PART.sub(lambda _: part, page)  # noqa: B023 -- used at once
    return found


def write(found: dict[Path, str]) -> None:
    """Write pages."""
    for file, text in found.items():
        file.write_text(text, encoding="utf-8")
