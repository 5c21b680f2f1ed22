"""Every example runs unchanged, with the results that it states."""

import importlib.util
import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from page_blocks import blocks, command_lines

import peftly
from peftly import dequantize, generate, load, load_base, merge, trainable_parameters
from peftly.kernels.quantized import is_quantized

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(name, **settings):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    try:
        return module.main(**settings)
    finally:
        torch.set_num_threads(threads)


def test_every_example_is_named_by_a_test():
    tests = [Path(__file__), *(ROOT / "tests" / "recipes").glob("*.py")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in tests)
    examples = [file for file in EXAMPLES.iterdir() if file.is_file() and file.name != "slurm.sh"]  # it needs a cluster
    assert len(examples) > 18
    assert [file.name for file in examples if not re.search(rf"\b{file.stem}\b", text)] == []


def test_digits(capsys):
    found = run("digits_lora")
    assert found["0-4, base"] > 0.97
    assert found["5-9, base"] < 0.05
    assert found["5-9, with LoRA"] > 0.88
    assert found["0-4, LoRA switched off"] == found["0-4, base"]
    assert abs(found["5-9, merged"] - found["5-9, with LoRA"]) < 0.005
    assert found["share of parameters trained"] < 1 / 30
    assert "the base is unchanged, bit for bit" in capsys.readouterr().out


@pytest.fixture
def tiny_bases(monkeypatch, tiny_llama_folder, task_base):
    """Let `peftly.load_base` open tiny bases, so that the examples take seconds."""
    folders = {"smollm2-135m": tiny_llama_folder, "minilm-l6": task_base("bert")}
    monkeypatch.setattr(peftly, "load_base", lambda name, **settings: load_base(str(folders[name]), **settings))
    return folders


def test_qlora_from_the_data_to_a_merged_model(peftly, tiny_bases, tmp_path, monkeypatch):
    options = ["--set", "train.learning_rate=0.01"]
    check_qlora(peftly, tmp_path, monkeypatch, tiny_bases["smollm2-135m"], options, layers=2)


@pytest.mark.soak
def test_qlora_on_its_real_base(peftly, tmp_path, monkeypatch):
    check_qlora(peftly, tmp_path, monkeypatch, "smollm2-135m", ["--set", "train.learning_rate=0.001"], layers=30)


def check_qlora(peftly, tmp_path, monkeypatch, base, options, layers):
    """Run the commands and the code of the page, with a few steps and rows, and check their results."""
    for name in ("examples", "src"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "qlora.md").read_text(encoding="utf-8")
    lines = [line for block in blocks(page) if block.language == "bash" for line in command_lines(block.code)]
    beginnings = ("peftly train examples/qlora_llama.yaml --base smollm2-135m", "peftly merge runs/qlora")
    train, merging = (shlex.split(line)[1:] for line in lines if line.startswith(beginnings))
    train = [base if word == "smollm2-135m" else word for word in train]
    write = ["generate", "--base", "merged/qlora", "--prompt", "Tweet text : late again Label :"]
    rows = Path("src/peftly/sample_data/complaints/test.jsonl").read_text().splitlines()[:3]
    Path("few.jsonl").write_text("\n".join(rows))
    train += options
    for setting in ("max_steps=6", "gradient_accumulation_steps=2"):
        train += ["--set", f"train.{setting}"]
    train += ["--set", "data.validation=few.jsonl", "--set", "baselines=false"]
    for words in (train, [*merging, "--report", "report.json"], [*write, "--max-new-tokens", 4]):
        outcome = peftly(*words)
        assert outcome.code == 0, (words, outcome.err)
    records = [json.loads(line) for line in Path("runs/qlora/metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    assert losses[-1] < 0.8 * losses[0]
    found = json.loads(Path("report.json").read_text())
    assert found["complaint"] is None
    assert found["gap"] is None or found["gap"] <= 2 * found["largest"]

    model, tokenizer = load("runs/qlora", dtype="float32")
    assert sum(map(is_quantized, model.modules())) == layers * 7
    prompts = [f"Tweet text : {json.loads(row)['text']} Label :" for row in rows]
    before = generate(model, tokenizer, prompts, max_new_tokens=8)
    after = generate(merge(dequantize(model)), tokenizer, prompts, max_new_tokens=8)
    assert before == after

    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(code, "docs/qlora.md", "exec"), names)
    assert trainable_parameters(names["model"])


def check_client(name, folder, steps):
    if name == "lightning_prompt":
        assert run(name, folder=str(folder), steps=steps) < 7
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
        return
    found = run(name, folder=str(folder), steps=steps)
    if name == "trl_sft_dpo":
        assert found["dpo"][0] == pytest.approx(math.log(2), abs=1e-3)
        assert len(found["sft"]) == len(found["dpo"]) == steps
        return
    if name == "sentence_embeddings":
        before, after, opened = (found[f"{state}: similarity"] for state in ("before", "after", "opened again"))
        assert after != before
        assert opened == pytest.approx(after, abs=1e-5)
        return
    assert found["after"] < found["before"]
    assert run(name, folder=str(folder), steps=steps, resume=True) == found


CLIENTS = ["trainer_lora", "trl_sft_dpo", "lightning_prompt", "sentence_embeddings"]


@pytest.mark.parametrize("name", CLIENTS)
def test_examples_of_other_tools(name, tmp_path, tiny_bases):
    check_client(name, tmp_path, steps=4)


@pytest.mark.soak
@pytest.mark.parametrize("name", CLIENTS)
def test_examples_of_other_tools_on_their_real_bases(name, tmp_path):
    check_client(name, tmp_path, steps=4)
