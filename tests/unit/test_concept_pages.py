"""Pages about the methods: their tables come from the committed results, their counts and drawings from code."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from peftly import METHODS, attach, export, load_base, save_adapter
from peftly.errors import AdapterError, MethodError
from peftly.exporting import FORMATS

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "scripts"))
counts, pages, drawings = (
    importlib.import_module(n) for n in ("parameter_counts", "concept_pages", "concept_drawings")
)
del sys.path[:2]
RESULTS = counts.read()["results"]
LIGHT_GROUND, DARK_GROUND = "#ffffff", "#1e2129"


@pytest.mark.parametrize("name", ["index", pages.WHICH, pages.INSIDE, *pages.METHODS_OF])
def test_a_page_has_the_tables_of_the_results(name):
    page = pages.page(name).read_text(encoding="utf-8")
    assert pages.with_tables(name, page) == page
    tables = re.findall(r"<!-- table: (\w+) -->", page)
    assert tables
    assert ("speed" in tables) == (name in pages.JOBS)


def test_the_reasons_to_choose_a_method_are_those_of_the_results():
    """Figures in sentences of the page, as far as they are results of ours."""
    text = pages.page(pages.WHICH).read_text(encoding="utf-8")
    rows = {row[0]: row for row in pages.generators("")}
    size = {method: int(rows[f"`{method}`"][4].replace(",", "")) for method in ("lora", "ia3", "full", "prompt_tuning")}
    assert round(size["lora"] / size["ia3"]) == 40
    assert "a fortieth of LoRA's bytes" in text
    assert f"with {size['full'] / size['lora']:.0f} times LoRA's bytes" in text
    assert f"a prompt of {size['prompt_tuning'] / 1000:.0f} kB is enough" in text
    scores = {name: [float(cell.split()[0]) for cell in row[1:3]] for name, row in rows.items() if row[0] != "method"}
    easy = [name for name, (_, docstrings) in scores.items() if docstrings < scores[pages.PROBE][1] - 5]
    assert easy == ["untouched base", "`selective`"]
    inside = min(scores[f"`{name}`"][0] for name in ("lora", "dora", "ia3", "full"))
    assert inside > 5 + max(
        scores[f"`{name}`"][0] for name in ("prompt_tuning", "p_tuning", "prefix_tuning", "adapter")
    )
    gains = {row[0]: float(row[-1]) for row in list(pages.classifiers(""))[1:]}
    assert sorted(gains, key=gains.__getitem__)[-2:] == ["`lora`", "`full`"]
    plain, quantised = (next(row for row in pages.quantised_bytes("") if row[0] == "Llama-2-7B")[i] for i in (2, 3))
    assert f"{quantised} instead of {plain}" in text


def test_the_table_of_exports_is_what_export_does(tiny_llama_folder, tmp_path):
    text = pages.page(pages.WHICH).read_text(encoding="utf-8")
    section = text[text.index("## By what happens with the adapter") :]
    rows = re.findall(r"^\| `(\w+)` \| " + r" \| ".join([r"(yes|no)"] * 5) + r" \|$", section, re.MULTILINE)
    assert len(rows) == 9
    formats = ("peft", "vllm", "prompt-embeddings", "gguf-lora")
    assert formats == tuple(name for name in FORMATS if name != "gguf")
    for method, merged, *exported in rows:
        assert (merged == "yes") == METHODS[method].mergeable
        model, tokenizer = load_base(str(tiny_llama_folder))
        attach(model, METHODS[method].config(), tokenizer=tokenizer)
        folder = save_adapter(model, tmp_path / method)
        for target, expected in zip(formats, exported, strict=True):
            out = tmp_path / f"{method}-{target}"
            if expected == "yes":
                assert export(folder, target, out).folder.is_dir()
            else:
                with pytest.raises((AdapterError, MethodError)):
                    export(folder, target, out)


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
        forms.add(tuple(re.findall(r"^## (.*)$", text, re.MULTILINE)))
    form = "Idea", "Formula", "Number of trained parameters", "What we measured", "Limits", "When to choose it"
    assert forms == {(*form, "Settings and API")}


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


def test_the_part_of_the_head_in_the_work_of_a_tutorial():
    """bloomz-560m: 24 blocks with 12 width² weights each, and a head of vocabulary x width."""
    text = pages.page(pages.INSIDE).read_text(encoding="utf-8")
    width, vocabulary = 1024, 250_880
    head = vocabulary * width
    assert f"{head / (head + 24 * 12 * width**2):.0%} of the forward\nproducts" in text
    assert f"{vocabulary:,} tokens" in text


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
