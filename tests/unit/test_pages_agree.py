"""Each page of the documentation is there in English and Chinese, with the same headings, code, tables and figures."""

import importlib.util
import re
import tokenize
from collections import Counter
from io import StringIO
from pathlib import Path

import pytest
from page_blocks import DOCS, ROOT, blocks, english_pages

ENGLISH_ONLY = {DOCS / "log.md"}
"""The log of experiments is written for people who change the code, in the language of the code."""

HOME = DOCS / "index.md"
"""README.md takes its place in the site."""

PAGES = [page for page in english_pages() if page not in {*ENGLISH_ONLY, HOME}]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(page: Path) -> tuple[str, str]:
    return tuple(file.read_text(encoding="utf-8") for file in (page, page.with_suffix(".zh.md")))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


pytestmark = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_headings(page):
    hooks = script("docs_hooks")
    english, chinese = ([len(match[1]) for match in hooks.headings(text)] for text in texts(page))
    assert english == chinese


def without_comments(language: str, code: str) -> list[str]:
    """Return the lines of a block without comments, which may be in the language of the page."""
    if language == "python":
        lines = code.split("\n")
        for token in tokenize.generate_tokens(StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    else:
        marks = {"bash": "#", "yaml": "#"}
        mark = marks.get(language)
        lines = [re.sub(rf"(^|\s){mark}.*", "", line) if mark else line for line in code.split("\n")]
    return [line.rstrip() for line in lines if line.strip()]


def test_code_blocks(page):
    english, chinese = ([block for block in blocks(text) if block.language != "setup"] for text in texts(page))
    assert [block.language for block in english] == [block.language for block in chinese]
    for ours, theirs in zip(english, chinese, strict=True):
        assert without_comments(ours.language, ours.code) == without_comments(theirs.language, theirs.code)


def figures(text: str) -> Counter[str]:
    """Return the numbers of two or more digits in a text, without code, links, comments and anchors."""
    text = re.sub(r"<!--.*?-->|^ *```.*?^ *```", " ", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)|\{#[^}]*\}|https?://\S+", " ", text)
    return Counter(re.findall(r"\d[\d,.]*\d", text))


def tables(text: str) -> list[list[str]]:
    """Return the lines of the tables of a page, without those in code blocks."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [match.split("\n") for match in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)]


def test_tables_and_figures(page):
    english, chinese = texts(page)
    ours, theirs = tables(english), tables(chinese)
    assert [(len(table), table[0].count("|")) for table in ours] == [
        (len(table), table[0].count("|")) for table in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        assert figures("\n".join(one)) == figures("\n".join(other))
    assert figures(english).keys() == figures(chinese).keys()


def test_links_stay_in_the_language(page):
    _, chinese = texts(page)
    chinese = re.sub(r"^ *```.*?^ *```", "", chinese, flags=re.DOTALL | re.MULTILINE)
    english_name = "README.md" if page.name == "README.md" else page.name
    links = re.findall(r"\]\((?!https?:)([^)#]+\.md)", chinese)
    others = {"log.md", "CONTRIBUTING.md", "CHANGELOG.md", english_name}
    assert [link for link in links if not link.endswith(".zh.md") and Path(link).name not in others] == []
    assert re.search(rf"^\[English\]\({english_name}\)$", chinese, re.MULTILINE)


def test_tables_of_results_are_those_of_the_english_page(page):
    module = script("zh_tables")
    english, chinese = texts(page)
    assert module.with_tables(chinese, english) == chinese
    assert len(module.TABLE.findall(english)) == len(module.TABLE.findall(chinese))
