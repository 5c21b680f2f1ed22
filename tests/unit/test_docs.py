"""The docs say what was measured: tables and pictures are those that the committed JSON gives."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    """`benchmarks/quickstart_seeds.py`, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("quickstart_seeds", ROOT / "benchmarks" / "quickstart_seeds.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(tables):
    return json.loads(tables.RESULTS.read_text(encoding="utf-8"))


def test_the_page_has_the_table_of_the_results(tables, results):
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.with_table(page, results) == page


def test_both_methods_beat_the_base_with_every_seed(tables, results):
    assert len(results["runs"]) == 3
    for run in results["runs"]:
        base, *methods = run["rows"]
        assert (base["name"], len(methods)) == (tables.BASE, 2)
        for row in methods:
            assert row["accuracy"] - base["accuracy"] >= 0.08, (run["seed"], row["name"])
            assert row["p"] < 0.01, (run["seed"], row["name"])


def test_the_readme_shows_the_picture_of_the_results(tables, results):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.PICTURE.relative_to(ROOT).as_posix() in readme
    picture = tables.PICTURE.read_text(encoding="utf-8")
    assert picture.lstrip().startswith("<svg")
    for row in results["runs"][0]["rows"]:
        for value in (f"{row['accuracy']:.1%}", f"{row['macro_f1']:.1%}"):
            assert value in picture, (row["name"], value)


def test_mcnemar_counts_rows_that_changed_sides(tables):
    found = tables.mcnemar(list("aaaab"), list("abbba"), list("baaab"))
    assert (found["mended"], found["spoiled"]) == (4, 1)
    assert found["p"] == pytest.approx(12 / 32)
