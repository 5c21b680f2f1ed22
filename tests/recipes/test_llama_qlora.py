"""Llama QLoRA: train over 4 bits, merge both ways, write GGUF, generate with transformers alone."""

import json
from pathlib import Path

import peftly as package


def test_the_yaml_by_its_command(peftly, tiny_llama_folder, tmp_path):
    run, merged = tmp_path / "run", tmp_path / "merged"
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(Path("src/peftly/sample_data/complaints/test.jsonl").read_text().splitlines()[:3]))
    settings = ["train.max_steps=4", "train.gradient_accumulation_steps=2", f"data.validation={few}", "baselines=false"]
    # The settings of the notebooks, as the page gives them.
    settings += ["method.rank=64", "method.alpha=16", "method.bias=none", "train.optimizer=paged_adamw"]
    settings += ["method.target_modules=[q_proj, v_proj]", "train.max_grad_norm=0.3"]
    options = [word for setting in settings for word in ("--set", setting)]
    outcome = peftly("train", "examples/qlora_llama.yaml", "--base", tiny_llama_folder, "--out", run, *options)
    assert outcome.code == 0, outcome.err
    method = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (method["r"], method["lora_alpha"], sorted(method["target_modules"])) == (64, 16, ["q_proj", "v_proj"])
    outcome = peftly("merge", run, "--out", merged)
    assert outcome.code == 0, outcome.err
    outcome = peftly(
        "merge", run, "--out", tmp_path / "original", "--into", "original", "--report", tmp_path / "r.json"
    )
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "r.json").read_text())["quantized"][0] > 0
    for arguments in (("--base", merged), (run,)):
        outcome = peftly("generate", *arguments, "--prompt", "Tweet text : late Label :", "--max-new-tokens", 2)
        assert outcome.code == 0, outcome.err


def test_the_yaml_with_rows_of_your_own(peftly, tiny_llama_folder, tmp_path):
    """The comment of the file and docs/qlora.md: other labels than those of its validation tweets."""
    rows = tmp_path / "your_rows.jsonl"
    rows.write_text("".join(f'{{"text": "text {n}", "label": "{"xy"[n % 2]}"}}\n' for n in range(20)))
    for file in ("examples/qlora_llama.yaml", "docs/qlora.md", "docs/qlora.zh.md"):
        assert "--set data.validation=null" in Path(file).read_text(encoding="utf-8")
    options = ("--base", tiny_llama_folder, "--data", rows, "--out", tmp_path / "run")
    settings = ("--set", "train.max_steps=1", "--set", "baselines=false")
    outcome = peftly("train", "examples/qlora_llama.yaml", *options, *settings, "--set", "data.validation=null")
    assert outcome.code == 0, outcome.err


def test_the_script(example, tiny_llama_folder, tmp_path):
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = Path("src/peftly/sample_data/complaints/train.jsonl").read_text().splitlines()
    for name, part in {"train": lines[:8], "validation": lines[8:14]}.items():
        (rows / f"{name}.jsonl").write_text("\n".join(part))
    out = tmp_path / "out"
    settings = {"learning_rate": 0.01, "max_steps": 4}
    found = example("llama_qlora").main(str(tiny_llama_folder), str(rows), str(out), **settings)
    assert abs(found["trained"]["loss"] - found["adapter"]["loss"]) < 0.05 * found["adapter"]["loss"]
    assert found["trained"]["quantized"] is None
    assert found["original"]["quantized"] > 0
    assert isinstance(found["answer"], str)

    (file,) = (out / "gguf").glob("*.gguf")
    opened, tokenizer = package.load_base(str(file))
    merged, _ = package.load_base(str(out / "trained"))
    ids = tokenizer("late again Label :", return_tensors="pt")
    ours, theirs = (model.float()(**ids).logits for model in (opened, merged))
    assert (ours - theirs).norm() < 0.1 * theirs.norm()
