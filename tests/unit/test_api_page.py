"""docs/api.md is up to date, and documents every public name."""

import importlib.util
import re
from pathlib import Path

import peftly
from peftly.runs import JobsConfig, RunConfig, setting_texts
from peftly.runs.config import EnsembleConfig

ROOT = Path(__file__).resolve().parents[2]


def script():
    spec = importlib.util.spec_from_file_location("api_page", ROOT / "scripts" / "api_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_the_docstrings():
    """After a change of a docstring: make reference."""
    module = script()
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


def test_every_public_name_has_an_entry_that_says_something():
    page = script().PAGE.read_text(encoding="utf-8")
    entries = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(entries) == set(peftly.__all__) - {"__version__"}
    for name, text in entries.items():
        assert len(text.split()) > 8, name


def test_every_setting_is_described():
    for model in (RunConfig, JobsConfig, EnsembleConfig, peftly.TrainConfig, peftly.DataConfig, peftly.Quantization):
        assert setting_texts(model).keys() == model.model_fields.keys() - {"section"}
