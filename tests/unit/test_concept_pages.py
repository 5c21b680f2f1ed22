"""Pages about the methods: their tables come from the committed results, their counts and drawings from code."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from peftly import METHODS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "scripts"))
counts, pages, drawings = (
    importlib.import_module(n) for n in ("parameter_counts", "concept_pages", "concept_drawings")
)
del sys.path[:2]
RESULTS = counts.read()["results"]
LIGHT_GROUND, DARK_GROUND = "#ffffff", "#1e2129"


@pytest.mark.parametrize("name", ["index", *pages.METHODS_OF])
def test_a_page_has_the_tables_of_the_results(name):
    page = pages.page(name).read_text(encoding="utf-8")
    assert pages.with_tables(name, page) == page
    tables = re.findall(r"<!-- table: (\w+) -->", page)
    assert tables
    assert ("speed" in tables) == (name in pages.JOBS)


def test_every_method_has_a_page_and_a_picture():
    assert {method for methods in pages.METHODS_OF.values() for method in methods} == METHODS.keys()
    for name in pages.METHODS_OF:
        for suffix in ("", ".zh"):
            text = pages.page(f"{name}{suffix}").read_text(encoding="utf-8")
            assert f"(../img/method_{name}{suffix}.svg)" in text


def test_all_pages_have_one_form():
    forms = set()
    for name in pages.METHODS_OF:
        text = pages.page(name).read_text(encoding="utf-8")
        forms.add(tuple(re.findall(r"^## .* \{#(\w+)\}$", text, re.MULTILINE)))
    assert forms == {("idea", "formula", "parameters", "measured", "limits", "when", "api")}


def test_calculations_give_the_trained_numbers():
    computed = [result for result in RESULTS if "formula" in result]
    assert len(computed) == 74
    for result in computed:
        formula = result["formula"].replace(",", "").replace("·", "*")
        assert re.fullmatch(r"[\d+* ()]+", formula)
        assert eval(formula) == result["trained"], result
    assert {result["method"] for result in RESULTS if "reason" in result} == {"bitfit"}


def test_the_counts_of_a_model_are_those_of_attached_adapters():
    assert list(counts.counts("BERT-base")) == [result for result in RESULTS if result["model"] == "BERT-base"]


def test_a_formula_that_gives_another_number_is_an_error(monkeypatch):
    monkeypatch.setitem(counts.FORMULAS, "prompt_tuning", lambda model, config: counts.product(3, model.width))
    with pytest.raises(ValueError, match=r"prompt_tuning on BERT-base: 3 · 768 .* 16,898 are trained"):
        list(counts.counts("BERT-base"))


def test_the_counts_are_those_that_peft_prints_in_tutorials():
    found = {(result["model"], result["method"], result["settings"]): result for result in RESULTS}
    lora = found["Llama-2-7B", "lora", "rank 16, all linear layers"]
    assert (lora["trained"], lora["total"]) == (39_976_960, 6_778_392_576)
    assert found["mt0-large", "lora", "rank 8, layers of query and value"]["trained"] == 2_359_296


def test_pictures_are_those_of_the_script():
    for file, content in drawings.pictures().items():
        assert file.read_text(encoding="utf-8") == content, file


def contrast(one: str, other: str) -> float:
    """Return the ratio of contrast of two colours, as in the guidelines for accessible web pages."""

    def luminance(colour: str) -> float:
        parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_pictures_are_readable_on_light_and_dark_ground():
    for ground in (LIGHT_GROUND, DARK_GROUND):
        for colour in (drawings.TRAINED, drawings.FROZEN, drawings.LINE):
            assert contrast(colour, ground) >= 3, (colour, ground)
    for fill in (drawings.TRAINED, drawings.FROZEN):
        assert contrast(drawings.LIGHT, fill) >= 4.5
    used = {colour for content in drawings.pictures().values() for colour in re.findall(r"#[0-9a-f]{6}", content)}
    assert used == {drawings.TRAINED, drawings.FROZEN, drawings.LINE, drawings.LIGHT}
