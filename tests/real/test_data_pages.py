"""The pages on data show the tokens that the real bases train: each output is that of the command, byte for byte."""

import json
import re

import pytest
from commands import peftly_here
from page_blocks import DOCS, ROOT, blocks

SAMPLE = ROOT / "src" / "peftly" / "sample_data" / "complaints"
MASKS = (DOCS / "data.md").read_text(encoding="utf-8").split("## Which tokens are trained\n")[1].split("\n## Files")[0]
SHOWN = [
    (json.loads(row.code), tokens.code)
    for row, tokens in zip(blocks(MASKS), blocks(MASKS)[1:], strict=False)
    if (row.language, tokens.language) == ("json", "text")
]
"""Rows of the section on the loss mask, each with the tokens under it."""
ENCODERS = ("sentence1", "tokens")
"""Fields of rows that are shown with an encoder."""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tweets.jsonl").write_text((SAMPLE / "train.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def inspected(*arguments: str) -> str:
    outcome = peftly_here("inspect", *arguments)
    assert outcome.code == 0, outcome.err
    return "\n".join(line.rstrip() for line in outcome.out.splitlines())


def test_every_format_of_the_page_has_its_tokens():
    assert len(SHOWN) == 6


@pytest.mark.parametrize(("row", "tokens"), SHOWN, ids=[next(iter(row)) for row, _ in SHOWN])
def test_the_loss_mask_of_a_format(row, tokens, tmp_path):
    rows = [row, row | {"label": "another"}] if "label" in row else [row]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    base = "minilm-l6" if any(field in row for field in ENCODERS) else "smollm2-135m"
    assert tokens in inspected("rows.jsonl", "--base", base, "--validation", "none", "--examples", "1")


def test_the_first_output_of_the_page():
    first, output = blocks((DOCS / "data.md").read_text(encoding="utf-8"))[:2]
    assert inspected(*first.code.split()[2:]) == output.code.rstrip("\n")


def test_the_findings_of_the_page():
    page = (DOCS / "inspect.md").read_text(encoding="utf-8")
    (setup,) = (block for block in blocks(page) if block.language == "setup")
    exec(compile(setup.code, "inspect.md", "exec"), {})
    (command,) = re.findall(r"^peftly inspect (faulty.*--examples 1)$", page, re.MULTILINE)
    assert f"```text\n{inspected(*command.split())}\n```" in page


def test_the_marks_of_a_template(tmp_path):
    page = (DOCS / "templates.md").read_text(encoding="utf-8")
    settings, _, output = blocks(page)[:3]
    (tmp_path / "marked.yaml").write_text(settings.code, encoding="utf-8")
    assert output.code in inspected("marked.yaml", "--examples", "1")
