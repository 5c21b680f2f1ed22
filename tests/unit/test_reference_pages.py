"""The pages that are written from the code are up to date in both languages. After a change: make reference."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import typer

from peftly.cli import app
from peftly.methods import METHODS
from peftly.runs import config_schema

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    """Import a script; it may import other scripts of its folder."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


PAGES = ("settings_page", "command_line_page")


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
    rows = re.findall(r"^\| `(\w+)`", page.partition("{#other-names}")[0], re.MULTILINE)
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
