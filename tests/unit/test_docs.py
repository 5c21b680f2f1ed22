"""The docs say what was measured: tables and pictures are those that the committed JSON gives."""

import importlib.util
import json
import re
import sys
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


def script(name):
    """A script of `benchmarks/`, which finds those that it imports beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_the_page_of_qlora_has_the_tables_of_the_results():
    module = script("qlora")
    results = json.loads(module.RESULTS.read_text(encoding="utf-8"))
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_tables(page, results) == page


def test_what_4_bits_and_merging_cost():
    results = json.loads(script("qlora").RESULTS.read_text(encoding="utf-8"))
    accuracies = {kind: [run["accuracy"] for run in results["runs"] if run["kind"] == kind] for kind in ("none", "nf4")}
    whole, packed = (sum(found) / len(found) for found in accuracies.values())
    assert whole - packed <= 2 * (whole * (1 - whole) / 100) ** 0.5, "the noise of 100 rows"
    unmerged = next(run["loss"] for run in results["runs"] if run["kind"] == "nf4")
    trained, original = (row["loss"] for row in results["merged"])
    assert abs(trained - unmerged) < 0.005
    assert original > trained


def test_the_page_of_the_methods_has_the_table_of_the_results():
    module = script("methods")
    lines = module.read()
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, lines) == page
    for line in lines:
        place = (line["base"], line["data"], module.UNTOUCHED)
        base = next(other for other in lines if (other["base"], other["data"], other["method"]) == place)
        if line["method"] != module.UNTOUCHED and module.is_default(line):
            assert line["accuracy"] > base["accuracy"], line


def test_the_page_of_the_speed_has_the_table_and_the_picture_of_the_results():
    module = script("speed_page")
    lines = module.read()
    assert lines
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, lines) == page
    assert f"({module.PICTURE.name})" in page
    assert module.picture(lines) == module.PICTURE.read_text(encoding="utf-8")


def test_wins_and_losses_of_the_speed_are_told_apart():
    module = script("speed_page")
    line = {"ratios": {module.CLASSIC: {"median": 1.9}, module.BEST: {"median": 1.5}}}
    line["aims"] = {module.CLASSIC: 2, module.BEST: 1.5}
    assert not module.reached(line, module.CLASSIC)
    assert module.reached(line, module.BEST)


def test_the_speed_is_measured_on_rows_of_the_stated_lengths(tmp_path):
    rows, found = script("speed_rows"), {}
    for kind in rows.KINDS:
        rows.write_rows(kind, tmp_path / kind)
        found[kind] = [json.loads(line) for line in (tmp_path / kind).read_text(encoding="utf-8").splitlines()]
        assert len(found[kind]) > 500
    answers = [len(row["output"].split()) for row in found["instructions"]]
    assert max(answers) <= rows.LONGEST_ANSWER
    assert 0.2 < sum(bool(row["input"]) for row in found["instructions"]) / len(answers) < 0.5
    assert {row["messages"][0]["content"] for row in found["chats"]} == {rows.SYSTEM_MESSAGE}
    assert len({row["label"] for row in found["sentences"]}) == 2


def test_the_page_about_several_adapters_runs(tiny_llama_folder, tmp_path, monkeypatch):
    """Its three blocks one after the other, with rows for what it calls tweets, tickets and test."""
    from peftly import attached, load_base
    from peftly.data import DataConfig, load_data

    page = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    file = tmp_path / "tweets.jsonl"
    rows = [{"text": f"{word} late again", "label": label} for word in ("train", "app") for label in ("yes", "no")]
    file.write_text("\n".join(json.dumps(row) for row in rows * 3))
    tokenizer = load_base(str(tiny_llama_folder)).tokenizer
    data = load_data(DataConfig(train=str(file), validation=str(file), test=str(file)), tokenizer)
    names = {"tweets": data, "tickets": data, "test": data.test, "row_format": data.row_format}
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block.replace("smollm2-135m", str(tiny_llama_folder)), "composition.md", "exec"), names)
    assert len(names["answers"]) == 4
    assert list(attached(names["again"])) == ["prompt", "lora", "prefix"]
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == ["lora", "prefix", "prompt"]
    assert (tmp_path / "runs" / "both" / "lora" / "adapter" / "adapter_config.json").is_file()
    assert names["found"].together.accuracy is not None
