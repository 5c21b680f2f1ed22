"""Hooks of the site's build (mkdocs.yml): what GitHub shows by itself and MkDocs does not.

- README.md and README.zh.md are the first page, in place of the text of docs/index.md and docs/index.zh.md.
- Links to files outside of docs/ lead to copies of these files in the site.
- Formulas in LaTeX become MathML, which browsers show without any script.
- The line under a title that links to the other language is left out: the site has a menu for it.
- Columns of tables with long texts are marked for the style sheet.
- Lines of Chinese texts are joined without a space.
- A heading of a Chinese page has the anchor of the same heading in the English page.
"""

import html
import posixpath
import re
from itertools import zip_longest
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority, get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

log = get_plugin_logger("docs_hooks")

ROOT = Path(__file__).resolve().parents[1]
HOME = {"index.md": "README.md", "index.zh.md": "README.zh.md"}
COPIES = "files"
"""Folder of the site with copies of the linked files that are outside of docs/."""

SLUG = slugify(case="lower")
LANGUAGE_LINK = re.compile(r"\A((?:#[^\n]*\n)?\n*)\[(?:中文|English)\]\([^)]*\)\n", re.MULTILINE)
LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s\"]+)")
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)
TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.DOTALL)
LONG = 30
"""Width of a text from which its column in a table is wide, in Latin letters."""

CHINESE_BREAK = re.compile(
    "(?<=[\u4e00-\u9fff])\n(?=[\u4e00-\u9fff])|(?<=[\u3001-\u303f\uff00-\uffef])\n(?=[\u4e00-\u9fff]|\\w|<(?:code|a|strong|em)\\b)"
)

HEADING = re.compile(r"^(#{1,6}) +(.+?)(?: +\{#([^}]+)\})? *$")


@event_priority(100)  # before the plugin for languages looks for pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add copies of files outside of docs/ that pages link."""
    for file in list(files.documentation_pages()):
        for target in _outside(_text(file.src_uri, file.content_string), file.src_uri):
            copy = _copy(target)
            if files.get_file_from_path(copy) is None and (ROOT / target).is_file():
                files.append(File.generated(config, copy, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Prepare the text of a page."""
    uri = page.file.src_uri
    if uri in HOME:
        page.meta["hide"] = ["navigation"]  # it has nothing but this page
    markdown = LANGUAGE_LINK.sub(r"\1", _text(uri, markdown), count=1)
    here = posixpath.dirname(uri)

    def link(match: re.Match[str]) -> str:
        before, target = match.groups()
        path = _root_path(target, uri)
        if path is None:
            return match.group()
        if not (ROOT / path).is_file():
            log.warning("%s links %s, which is not a file", uri, target)
        return before + posixpath.relpath(_copy(path), here or ".")

    markdown = LINK.sub(link, markdown)
    english = uri.replace(".zh.md", ".md")
    if uri != english:
        source = (ROOT / config.docs_dir / english).read_text(encoding="utf-8")
        markdown = _with_anchors(markdown, anchors(_text(english, source)))
    return markdown


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the formulas of a page into MathML, and mark the columns of tables that have long texts."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match["kind"] == "[" else "inline"
        return convert(html.unescape(match["latex"]).strip(), display=display)

    content = TABLE.sub(_with_long_columns, FORMULA.sub(mathml, content))
    return _joined_lines(content) if page.file.src_uri.endswith(".zh.md") else content


def _joined_lines(content: str) -> str:
    """Join the lines of Chinese texts, between which a browser would show a space; code blocks stay."""
    parts = re.split(r"(<pre\b.*?</pre>)", content, flags=re.DOTALL)
    return "".join(part if part.startswith("<pre") else CHINESE_BREAK.sub("", part) for part in parts)


def _with_long_columns(table: re.Match[str]) -> str:
    """Give the class "long" to the headings of columns with long texts: the style sheet keeps these wide."""
    rows = [[_width(cell) for cell in CELL.findall(row)] for row in table.group().split("</tr>")]
    widths = iter([max(column) for column in zip_longest(*rows, fillvalue=0)])
    return re.sub(
        r"<th\b", lambda head: head.group() + (' class="long"' if next(widths, 0) > LONG else ""), table.group()
    )


def _width(cell: str) -> int:
    """Return the width of the text of a cell in Latin letters; a Chinese one is as wide as two."""
    return sum(2 if letter > "\u2e80" else 1 for letter in html.unescape(re.sub(r"<[^>]+>", "", cell)))


def headings(markdown: str) -> list[re.Match[str]]:
    """Return the headings of a page outside of code blocks and comments: level, text and explicit anchor."""
    found, fence = [], ""
    markdown = re.sub(r"<!--.*?-->", lambda comment: "\n" * comment.group().count("\n"), markdown, flags=re.DOTALL)
    for line in markdown.split("\n"):
        mark = re.match(r" *(```+|~~~+)", line)
        if mark:
            fence = "" if fence and line.strip().startswith(fence) else fence or mark.group(1)
        elif not fence and (match := HEADING.match(line)):
            found.append(match)
    return found


def anchors(markdown: str) -> list[str]:
    """Return the anchors of the headings of a page, as the site gives them."""
    found: list[str] = []
    for match in headings(markdown):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[2]).replace("`", "").replace("*", "")
        slug = match[3] or SLUG(text, "-")
        number, unique = 0, slug
        while unique in found:
            number += 1
            unique = f"{slug}_{number}"
        found.append(unique)
    return found


def _with_anchors(markdown: str, names: list[str]) -> str:
    """Give the headings of a page explicit anchors. A page with other headings than the English one keeps its own."""
    found = headings(markdown)
    if len(found) != len(names):
        return markdown
    lines = markdown.split("\n")
    position = 0
    for match, name in zip(found, names, strict=True):
        position = lines.index(match.group(), position)
        lines[position] = f"{match[1]} {match[2]} {{#{name}}}"
        position += 1
    return "\n".join(lines)


def _text(uri: str, text: str) -> str:
    """Return the text of a page; that of a first page is a README with the links of a page in docs/."""
    if uri not in HOME:
        return text
    readme = (ROOT / HOME[uri]).read_text(encoding="utf-8")

    def link(match: re.Match[str]) -> str:
        before, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group()
        if target in ("README.md", "README.zh.md"):
            return before + target.replace("README", "index")
        return before + (target.removeprefix("docs/") if target.startswith("docs/") else f"../{target}")

    return LINK.sub(link, readme)


def _root_path(target: str, uri: str) -> str | None:
    """Return the path of a linked file from the root of the repository; None: it is a page, or on another server."""
    if re.match(r"[a-z]+:|#|/", target):
        return None
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(uri), target.partition("#")[0]))
    return None if path.startswith(("docs/", "..")) else path


def _copy(path: str) -> str:
    """Return the path in the site of the copy of a file. A copied page is a text: it is no page of the site."""
    return f"{COPIES}/{path}" + (".txt" if path.endswith(".md") else "")


def _outside(markdown: str, uri: str) -> list[str]:
    """Return the paths of the files outside of docs/ that a page links."""
    paths = (_root_path(target, uri) for _, target in LINK.findall(markdown))
    return [path for path in paths if path is not None]
