"""The pages that are written from the code are up to date in both languages. After a change: make reference."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import typer

import peftly
from peftly.cli import app
from peftly.methods import METHODS
from peftly.runs import JobsConfig, RunConfig, config_schema, setting_texts
from peftly.runs.config import EnsembleConfig

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    """Import a script; it may import other scripts of its folder."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


PAGES = ("api_page", "settings_page", "command_line_page")


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_written_from_the_code(name):
    for file, text in script(name).current().items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name}: make reference"


def test_every_chinese_text_is_used_and_differs_from_the_english_one():
    reference = script("reference")
    used = set()
    for name in PAGES:
        translate = reference.Translator()
        for _ in script(name).lines(translate):
            pass
        used |= translate.used.keys()
    texts = reference.catalogue()
    assert texts.keys() - used == set()
    same = {english for english, chinese in texts.items() if not re.search(r"[\u4e00-\u9fff]", chinese)}
    assert same <= {"{}", "; ", "tensorboard", "user/name:configuration[split]"}


def test_a_text_without_a_translation_is_an_error(monkeypatch):
    reference = script("reference")
    texts = reference.catalogue()
    texts.pop("Rank of the update.")
    monkeypatch.setattr(reference, "catalogue", lambda: texts)
    with pytest.raises(SystemExit, match=r"Rank of the update\."):
        script("settings_page").current()


def test_every_setting_and_every_method_is_on_the_page_of_the_settings():
    page = (SCRIPTS.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    schema = config_schema()
    assert set(re.findall(r"^### `(\w+)`", page, re.MULTILINE)) == METHODS.keys()
    rows = re.findall(r"^\| `(\w+)`", page.partition("## Names in other tools")[0], re.MULTILINE)
    names = [name for part in schema["definitions"].values() for name in part["properties"]]
    assert set(names) | schema["properties"].keys() - {"$schema", "jobs"} == set(rows)


def test_every_option_is_on_the_page_of_the_command_line():
    page = (SCRIPTS.parent / "docs" / "command_line.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## `peftly ([\w-]+)`.*?\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = typer.main.get_command(app).commands
    assert parts.keys() == commands.keys()
    for name, part in parts.items():
        known = {option for parameter in commands[name].params for option in parameter.opts if option.startswith("--")}
        assert known
        assert set(re.findall(r"^\| `(--[\w-]+)", part, re.MULTILINE)) == known, name


def test_every_public_name_has_an_entry_that_says_something():
    for name in ("api.md", "api.zh.md"):
        page = (SCRIPTS.parent / "docs" / name).read_text(encoding="utf-8")
        entries = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
        assert set(entries) == set(peftly.__all__) - {"__version__"}
        for entry, text in entries.items():
            assert len(text.split()) > 8, entry


def test_the_docstrings_become_lists_and_blocks():
    """No line of reStructuredText, and no indented code, which MkDocs would show without colours."""
    page = (SCRIPTS.parent / "docs" / "api.md").read_text(encoding="utf-8")
    outside = re.sub(r"^```.*?^```|<!--.*?-->", "", page, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"::$|^    |^(Args|Attributes|Returns|Raises|Yields|Example):$", outside, re.MULTILINE)
    assert not re.search(r"<[a-zA-Z/]", re.sub(r"`[^`\n]*`", "", outside))


def test_every_setting_is_described():
    for model in (RunConfig, JobsConfig, EnsembleConfig, peftly.TrainConfig, peftly.DataConfig, peftly.Quantization):
        assert setting_texts(model).keys() == model.model_fields.keys()
