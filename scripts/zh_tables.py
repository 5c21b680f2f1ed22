"""Write the tables of results of the Chinese pages from those of the English pages, with docs/zh_words.yaml.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. Each of its lines and cells for which the
file has a phrase is translated, and other cells stay as they are. In a phrase `{}` stands for any text and `{#}` for a
number; in the Chinese phrase `{0}` and `{1}` may stand in another order.
"""

import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WORDS = DOCS / "zh_words.yaml"
TABLE = re.compile(r"<!-- table: (.+?) -->\n(.*?)<!-- end of table -->", re.DOTALL)


@cache
def phrases() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """Return the phrases without and with placeholders."""
    words: dict[str, str] = yaml.safe_load(WORDS.read_text(encoding="utf-8")) or {}
    patterns, plain = [], {}
    for english, chinese in words.items():
        escaped = re.escape(english)
        pattern = escaped.replace(r"\{\}", "(.+?)").replace(r"\{\#\}", r"([\d.,]+)")
        if pattern == escaped:
            plain[english] = str(chinese)
        else:
            patterns.append((re.compile(pattern), str(chinese).replace("{#}", "{}")))
    return plain, patterns


def in_chinese(text: str) -> str:
    """Return a line or a cell in Chinese; the text itself if there is no phrase for it."""
    plain, patterns = phrases()
    if text in plain:
        return plain[text]
    for pattern, chinese in patterns:
        if match := pattern.fullmatch(text):
            return chinese.format(*map(in_chinese, match.groups()))
    return text


def table_in_chinese(table: str) -> str:
    """Return the lines of a table in Chinese."""
    lines = []
    for line in table.split("\n"):
        if line.startswith("|") and line.endswith("|"):
            line = "|".join(
                f" {in_chinese(cell.strip())} " if cell.strip() else cell for cell in re.split(r"(?<!\\)\|", line)
            )
            lines.append(line.strip())
        elif heading := re.match(r"(#+ )(.*)", line):
            lines.append(heading[1] + in_chinese(heading[2]))
        else:
            lines.append(in_chinese(line))
    return "\n".join(lines)


def with_tables(page: str, english: str) -> str:
    """Return a Chinese page with the tables of the English page.

    Raises:
        KeyError: the English page has no table of this name.
    """
    tables = dict(TABLE.findall(english))
    return TABLE.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{table_in_chinese(tables[match[1]])}<!-- end of table -->", page
    )


def pages() -> dict[Path, Path]:
    """Return the Chinese page of each English page that has one."""
    found = {ROOT / "README.md": ROOT / "README.zh.md"}
    found |= {file: file.with_suffix(".zh.md") for file in sorted(DOCS.rglob("*.md")) if not file.stem.endswith(".zh")}
    return {english: chinese for english, chinese in found.items() if chinese.is_file()}


def main() -> None:
    """Write the tables of all pages."""
    for english, chinese in pages().items():
        page = chinese.read_text(encoding="utf-8")
        text = with_tables(page, english.read_text(encoding="utf-8"))
        if text != page:
            chinese.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
