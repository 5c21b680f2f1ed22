"""Figures in the docs: each table and picture is made from the committed JSON, and the code that measures is tested."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import crash_totals
import llama_cpp_figures
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tables():
    """Module `benchmarks/quickstart_seeds.py`, which is outside of the package."""
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


def test_the_table_of_the_quickstart_compares_each_method_with_the_base_of_its_seed(tables):
    """The table shows gains as means over the seeds, ranges in brackets, and the largest p-value."""
    runs = []
    for seed, adapted in enumerate(("aabb", "abbb")):
        scores = [(tables.BASE, "bbbb", 0.5), ("LoRA", adapted, 1 - 0.25 * seed)]
        rows = [
            {"name": name, "predictions": list(predictions), "accuracy": accuracy, "macro_f1": accuracy}
            | {"parameters": 1000, "bytes": 4000, "seconds": None if name == tables.BASE else 3 + seed}
            for name, predictions, accuracy in scores
        ]
        runs.append(tables.summary(seed, {"gold": list("aabb"), "rows": rows}, seconds=10.0))
    assert [(run["rows"][1]["gained"], run["rows"][1]["lost"]) for run in runs] == [(2, 0), (1, 0)]
    machine = {"cpu_cores": 2, "cpu": "any", "cpu_bf16": []}
    lines = tables.table({"runs": runs, "dtype": "float32", "environment": machine}).splitlines()
    assert lines[2] == f"| {tables.BASE} | 50.0 | 50.0 |  |  | 1,000 | 4,000 |  |"
    assert lines[3] == "| LoRA | 87.5 (75.0 to 100.0) | 87.5 (75.0 to 100.0) | +37.5 points | 1 | 1,000 | 4,000 | 4 |"


def test_the_readme_shows_the_picture_of_the_results(tables, results):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.PICTURE.relative_to(ROOT).as_posix() in readme
    picture = tables.PICTURE.read_text(encoding="utf-8")
    assert picture.lstrip().startswith("<svg")
    for row in results["messages"]["runs"][0]["rows"]:
        for value in (f"{row['accuracy']:.1%}", f"{row['macro_f1']:.1%}"):
            assert value in picture, (row["name"], value)


def test_a_small_prompt_takes_the_quickstart_from_near_chance_to_the_accuracy_of_lora(results):
    """The aims of the task for newcomers, as measured: means over the seeds."""
    runs = results["messages"]["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2]
    rows = {row["name"]: [] for row in runs[0]["rows"]}
    for run in runs:
        for row in run["rows"]:
            rows[row["name"]].append(row)
    mean = {name: sum(row["accuracy"] for row in found) / len(found) for name, found in rows.items()}
    assert mean["untouched base"] < 0.4  # one of four labels is right by chance
    assert mean["prompt tuning"] >= 0.9
    assert mean["LoRA"] - mean["prompt tuning"] <= 0.02
    assert max(row["bytes"] for row in rows["prompt tuning"]) < 30_000
    assert rows["untouched base"][0]["bytes"] > 250_000_000


def test_the_quickstart_takes_the_minutes_that_the_pages_say(results):
    """Two to four minutes, in bf16 and in float32."""
    measured = results["messages"]
    seconds = [run["seconds"] for run in measured["runs"]] + [measured["float32"]["seconds"]]
    assert all(60 < value < 4 * 60 for value in seconds)
    assert "2 to 4 minutes on two cores" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_mcnemar_counts_examples_that_only_one_model_predicts_correctly(tables):
    test = tables.mcnemar(list("aaaab"), list("abbba"), list("baaab"))
    assert (test["gained"], test["lost"]) == (4, 1)
    assert test["p"] == pytest.approx(12 / 32)


def script(name, folder="benchmarks"):
    """Import a script; it may import other scripts of its folder."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def test_the_page_of_qlora_has_the_tables_of_the_results():
    module = script("qlora")
    results = json.loads(module.RESULTS.read_text(encoding="utf-8"))
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_tables(page, results) == page


def test_the_page_of_the_memory_has_the_tables_of_the_results():
    module = script("memory")
    content = json.loads(module.RESULTS.read_text(encoding="utf-8"))
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_tables(page, content) == page
    assert all(abs(error) <= module.LIMIT for error in module.errors(content["results"]))


def test_the_readme_has_the_memory_of_known_bases():
    module = script("memory_of_bases")
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, module.read()) == page
    assert "Llama-2-7B" in page


def test_the_readme_has_the_figures_beside_peft():
    module = script("beside_peft")
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_lines(page) == page
    assert len(module.lines()) == 5


def test_the_page_for_users_of_other_tools_has_the_names_that_peftly_knows():
    """After a change of these names: make reference."""
    module = script("coming_from_page", "scripts")
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_tables(page) == page
    assert len(module.TABLE.findall(page)) == len(module.options()) == 6


def test_the_list_of_pages_for_programs_is_that_of_the_site():
    """After a change of the navigation or of a first sentence: make reference."""
    module = script("llms_page", "scripts")
    content = module.FILE.read_text(encoding="utf-8")
    assert content == module.text()
    listed = {(ROOT / "docs" / name).resolve() for name in re.findall(r"\]\(([^)]+\.md)\)", content)}
    pages = {page for page in (ROOT / "docs").rglob("*.md") if not page.stem.endswith(".zh")}
    assert listed == pages - {ROOT / "docs" / "index.md"}


def test_the_page_of_the_file_format_names_the_types_of_each_method():
    from peftly.methods import METHODS

    page = (ROOT / "docs" / "file_format.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    for name, method in METHODS.items():
        assert set(re.findall(r"`((?:PEFTLY_)?[A-Z0-9_]{3,})`", rows[name])) <= set(method.adapter.peft_types), name
        assert method.adapter.peft_types[0] in rows[name], name


def test_several_seeds_are_shown_as_their_mean_and_range():
    spread = script("qlora").spread
    assert spread([0.25, 0.5, 0.75], ".2f") == "0.50 (0.25 to 0.75)"
    assert spread([0.501, 0.502], ".2f") == "0.50"


def test_the_page_of_the_methods_has_the_table_of_the_results():
    module = script("methods")
    results = module.read()
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, results) == page


def test_the_page_of_the_heads_has_the_table_of_the_results():
    module = script("encoders")
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, module.read_results()) == page


def test_the_gain_over_the_probe_is_that_of_the_adapter_that_is_kept():
    curve = [(0, 0.9, 0.5), (1, 0.7, 0.6), (2, 0.8, 0.7), (3, 0.8, 0.9), (4, 0.6, 0.8)]
    epochs = [{"epoch": epoch, "accuracy": accuracy, "test": test} for epoch, accuracy, test in curve]
    assert script("encoders").gain({"epochs": epochs, "probe_accuracy": 0.5}) == pytest.approx(40)


def test_the_page_of_the_speed_has_the_table_and_the_picture_of_the_results():
    module = script("speed_page")
    results = module.read()
    assert results
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, results) == page
    for language, file in module.PICTURES.items():
        page = (module.PAGE if language == "en" else module.PAGE.with_suffix(".zh.md")).read_text(encoding="utf-8")
        assert f"({file.name})" in page
        assert module.picture(results, language) == file.read_text(encoding="utf-8")


def test_an_aim_of_the_speed_is_reached_from_its_value_on():
    module = script("speed_page")
    result = {"ratios": {module.CLASSIC: {"median": 1.9}, module.BEST: {"median": 1.5}}}
    result["aims"] = {module.CLASSIC: 2, module.BEST: 1.5}
    assert not module.reached(result, module.CLASSIC)
    assert module.reached(result, module.BEST)


def test_the_speed_is_measured_on_texts_of_the_stated_lengths(tmp_path):
    module, rows = script("speed_rows"), {}
    for kind in module.KINDS:
        module.write_rows(kind, tmp_path / kind)
        rows[kind] = [json.loads(line) for line in (tmp_path / kind).read_text(encoding="utf-8").splitlines()]
        assert len(rows[kind]) > 500
    answers = [len(row["output"].split()) for row in rows["instructions"]]
    assert max(answers) <= module.LONGEST_ANSWER
    assert 0.2 < sum(bool(row["input"]) for row in rows["instructions"]) / len(answers) < 0.5
    assert {row["messages"][0]["content"] for row in rows["chats"]} == {module.SYSTEM_MESSAGE}
    assert len({row["label"] for row in rows["sentences"]}) == 2


def test_the_page_about_several_adapters_runs(tiny_llama_folder, tmp_path, monkeypatch):
    """Run the four code blocks of the page in order, with small data sets for its `tweets`, `tickets` and `test`."""
    from peftly import attached, load_base
    from peftly.data import DataConfig, load_data

    page = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    file = tmp_path / "tweets.jsonl"
    rows = [{"text": f"{word} late again", "label": label} for word in ("train", "app") for label in ("yes", "no")]
    file.write_text("\n".join(json.dumps(row) for row in rows * 3))
    tokenizer = load_base(str(tiny_llama_folder)).tokenizer
    data = load_data(DataConfig(train=str(file), validation=str(file), test=str(file)), tokenizer)
    variables = {"tweets": data, "tickets": data, "test": data.test, "row_format": data.row_format}
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block.replace("smollm2-135m", str(tiny_llama_folder)), "composition.md", "exec"), variables)
    assert len(variables["answers"]) == 4
    assert variables["answer"]
    assert list(attached(variables["again"])) == ["prompt", "lora", "prefix"]
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == ["lora", "prefix", "prompt"]
    assert (tmp_path / "runs" / "both" / "lora" / "adapter" / "adapter_config.json").is_file()
    assert variables["found"].together.accuracy is not None


def test_the_page_of_the_crashes_has_the_counts_of_the_results():
    results = crash_totals.read()
    page = crash_totals.PAGE.read_text(encoding="utf-8")
    assert crash_totals.with_tables(page, results) == page
    assert results
    assert results.keys() <= crash_totals.FAMILIES.keys()
    assert all(counts["lost"] == 0 for counts in results.values())


def test_the_page_of_the_exports_has_the_differences_of_llama_cpp():
    results = llama_cpp_figures.read()
    page = llama_cpp_figures.PAGE.read_text(encoding="utf-8")
    assert llama_cpp_figures.with_table(page, results) == page
    assert results.keys() == llama_cpp_figures.FILES.keys()


def test_the_page_of_the_processes_has_the_table_of_the_results():
    module = script("processes")
    results = json.loads(module.RESULTS.read_text(encoding="utf-8"))["results"]
    page = module.PAGE.read_text(encoding="utf-8")
    assert module.with_table(page, results) == page
    assert max(value for result in results for value in result["differences"].values()) < 1e-5


def test_the_page_of_the_models_has_the_tables_of_the_results_and_no_class_has_a_fault():
    module, page = script("model_classes"), script("model_classes_page")
    results = module.read()
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_tables(text, results) == text
    assert module.faults(results) == []
    ran = [name for name, found in results["architectures"].items() if any("base" not in one for one in found.values())]
    assert len(ran) > 200


def test_the_rules_for_the_best_adapter_on_a_curve_by_hand():
    module = script("best_adapter")
    scores = [
        ("1100", [0.5, 0.5, 0.9, 0.9], 0.6),
        ("1110", [0.1, 0.1, 0.6, 2.4], 0.7),
        ("1110", [0.2, 0.2, 0.9, 2.0], 0.8),
    ]
    curve = [
        {"step": step, "correct": correct, "losses": losses, "test": {"accuracy": test}}
        for step, (correct, losses, test) in enumerate(scores, start=1)
    ]
    found = {rule: module.kept(curve, rule, None) for rule in module.RULES}
    assert found == {
        "loss": 0.6,
        "accuracy, then loss": 0.7,
        "accuracy, then the later": 0.8,
        "lowest loss within one standard error of the best accuracy": 0.7,
        "loss + error rate": 0.7,
        "last": 0.8,
    }
    assert module.kept(curve, "last", 2) == pytest.approx(0.8)


def test_the_navigation_of_the_site_has_every_page_once():
    listed = re.findall(r"^ +- ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    pages = [file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(page.as_posix() for page in pages if not page.stem.endswith(".zh"))
