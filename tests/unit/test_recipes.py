"""The pages of the recipes: tables and pictures of the committed results, which are inside of their bounds."""

import importlib
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
recipes = importlib.import_module("recipes")


def test_every_recipe_has_results_a_page_in_both_languages_and_a_fast_test():
    assert {file.stem for file in recipes.RESULTS.glob("*.json")} == set(recipes.RECIPES)
    for name in recipes.RECIPES:
        assert recipes.page_of(name).is_file()
        assert recipes.page_of(name).with_suffix(".zh.md").is_file()
        assert (recipes.ROOT / "tests" / "recipes" / f"test_{recipes.page_of(name).stem}.py").is_file()


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_page_and_the_pictures_are_those_of_the_results(name):
    module, content = recipes.recipe(name), recipes.read(name)
    assert content["recipe"] == name
    assert content["base"] == module.BASE
    assert module.BOUNDS
    assert recipes.outside(content["result"], module.BOUNDS) == []
    for path, text in recipes.files_of(name).items():
        assert path.read_text(encoding="utf-8") == text


def test_other_seeds_stand_beside_the_result(monkeypatch):
    class Module:
        BOUNDS, HEADLINES = {"loss": (None, 1)}, {"held-out loss": ("loss", ".2f")}

        @staticmethod
        def measure(_folder, seed):
            return {"loss": seed / 10}

    monkeypatch.setattr(recipes, "recipe", lambda _name: Module)
    content = {"result": {"loss": 0.123}, "other_seeds": {str(seed): recipes.headlines("any", seed) for seed in (1, 2)}}
    lines = ["| | seed 0 | seed 1 | seed 2 |", "|---|---|---|---|", "| held-out loss | 0.12 | 0.10 | 0.20 |"]
    assert recipes.seeds_table(Module, content).splitlines() == lines
    with pytest.raises(SystemExit, match=r"any, seed 11: loss is 1\.1, outside None to 1"):
        recipes.headlines("any", 11)


def test_a_result_outside_its_bounds_is_named():
    result = {"lora": {"accuracy": 0.5}, "epochs": [{"loss": 2.0}]}
    assert recipes.outside(result, {"lora.accuracy": (0.5, None), "epochs.0.loss": (1, 2)}) == []
    assert recipes.outside(result, {"lora.accuracy": (0.6, None)}) == ["lora.accuracy is 0.5, outside 0.6 to None"]
    assert recipes.outside(result, {"epochs.0.loss": (None, 1)}) == ["epochs.0.loss is 2, outside None to 1"]
    assert recipes.outside({"loss": float("nan")}, {"loss": (None, 1)})


def test_a_table_stands_between_its_marks_and_a_page_without_them_is_refused():
    page = "a\n<!-- table: one -->\nold\n<!-- end of table -->\nb\n"
    new = recipes.with_tables(page, {"one": "| x |\n|---|\n"})
    assert new == "a\n<!-- table: one -->\n\n| x |\n|---|\n\n<!-- end of table -->\nb\n"
    assert recipes.with_tables(new, {"one": "| x |\n|---|\n"}) == new
    with pytest.raises(ValueError, match="table: two"):
        recipes.with_tables(page, {"two": ""})


def test_a_measurement_outside_of_its_bounds_is_an_error(monkeypatch):
    class Module:
        BASE, BOUNDS = "a base", {"loss": (None, 1)}

        @staticmethod
        def measure(folder):
            (folder / "file").write_text("written")
            return {"loss": 0.5 + len(list(folder.iterdir())) * Module.extra}

    monkeypatch.setattr(recipes, "recipe", lambda _name: Module)
    Module.extra = 0
    content = recipes.measure("any")
    assert content["result"] == {"loss": 0.5}
    assert content["peak_memory_bytes"] > 1e6
    assert "a base" in recipes.machine(content)
    Module.extra = 1
    with pytest.raises(SystemExit, match=r"any: loss is 1.5, outside None to 1"):
        recipes.measure("any")


def test_a_chart_has_round_ticks_around_its_values_and_escapes_its_words():
    charts = importlib.import_module("charts")
    bars = charts.bar_chart("a < b", "share", [("one", 58), ("two\nlines", 60)], reference=("mean", 59))
    assert "a &lt; b" in bars
    assert re.findall(r'text-anchor="end"[^>]*>([\d.]+)<', bars) == ["0", "20", "40", "60"]
    lines = charts.line_chart("t", "x", "y", [charts.Line("train", [(1, 132.3), (2, 1.2)])])
    assert re.findall(r'text-anchor="end"[^>]*>([\d.]+)<', lines) == ["1", "2", "5", "10", "20", "50", "100", "200"]
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', lines)]
    assert heights == sorted(heights)
