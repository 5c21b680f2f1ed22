"""Outputs of commands in the guides: they are those of the committed results."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
guide_outputs = importlib.import_module("guide_outputs")
del sys.path[0]
OUTPUTS = guide_outputs.read()


@pytest.mark.parametrize("page", guide_outputs.pages(), ids=lambda page: page.stem)
def test_a_page_shows_the_committed_outputs(page):
    text = page.read_text(encoding="utf-8")
    assert guide_outputs.with_outputs(text, OUTPUTS) == text


def test_every_output_is_shown_once_in_each_language():
    for suffix in ("", ".zh"):
        shown = []
        for name in {found["page"] for found in OUTPUTS.values()}:
            text = (ROOT / "docs" / f"{name}{suffix}.md").read_text(encoding="utf-8")
            shown += [match[2] for match in guide_outputs.MARKED.finditer(text)]
        assert sorted(shown) == sorted(OUTPUTS)


def test_the_commands_of_the_outputs_stand_in_their_pages():
    for name, found in OUTPUTS.items():
        page = (ROOT / "docs" / f"{found['page']}.md").read_text(encoding="utf-8")
        commands = re.findall(r"peftly [a-z-]+", found["command"])
        assert all(command in page for command in commands), name
        assert found["page"] != "python" or found["command"] in page, name


def test_parts_of_an_output_are_joined_by_an_ellipsis():
    output = "a 1\nb 2\nc 3\nd 4\n"
    assert guide_outputs.selected(output, [("a", "a"), ("b", "b"), ("d", "d")]) == "a 1\nb 2\n…\nd 4\n"
    assert guide_outputs.selected(output, []) == output
    with pytest.raises(ValueError, match="no lines from 'x' to 'a'"):
        guide_outputs.selected(output, [("x", "a")])
