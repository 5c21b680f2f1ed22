"""A base that has changed since the training of an adapter, or has moved."""

import json
import shlex
import shutil

import torch
from safetensors.torch import load_file

from peftly import LoRA, attach, load_base, save_adapter


def test_a_changed_base_is_reported(peftly, tiny_llama_folder, tmp_path):
    base = shutil.copytree(tiny_llama_folder, tmp_path / "base")
    adapter = save_adapter(attach(load_base(str(base)).model, LoRA(rank=2)), tmp_path / "adapter")
    words = ["generate", adapter, "--prompt", "the", "--max-new-tokens", "2"]
    assert peftly(*words).err == ""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-2}))
    outcome = peftly(*words)
    assert outcome.code == 0
    assert outcome.err == (
        f"warning: {adapter} was trained over another base than this one: rms_norm_eps is 0.01 and was 1e-06; its "
        "answers are not those of its training\n"
    )


def test_a_moved_base_is_given_to_every_command(peftly, tiny_llama_folder, tweets, tmp_path):
    base, run, text = shutil.copytree(tiny_llama_folder, tmp_path / "base"), tmp_path / "run", tmp_path / "text"
    text.write_text("The train was late\n")
    flags = ["--base", base, "--data", tweets, "--method", "prompt_tuning", "--out", run, "--epochs", "1"]
    assert peftly("train", *flags).code == 0
    moved = base.rename(tmp_path / "moved")
    lora = save_adapter(attach(load_base(str(moved)).model, LoRA(rank=2)), tmp_path / "lora")
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    failed = peftly("generate", lora, "--prompt", "the")
    assert failed.code == 2
    assert f"{lora} names this base: if it has moved, give it with --base" in failed.err
    for words in (
        ["generate", lora, "--prompt", "the", "--max-new-tokens", "2"],
        ["evaluate", run],
        ["explain", run],
        ["merge", lora, "--out", tmp_path / "merged", "--text", text],
        ["combine", lora, "--weights", "0.5", "--out", tmp_path / "half"],
        ["export", lora, "--to", "peft", "--out", tmp_path / "peft"],
    ):
        outcome = peftly(*words, "--base", moved)
        assert outcome.code == 0, outcome.err
    for folder in ("half", "peft"):
        assert json.loads((tmp_path / folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
            moved
        )


def test_a_pickle_is_converted_by_the_command_in_the_error(peftly, tiny_llama_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter = save_adapter(attach(load_base(str(tiny_llama_folder)).model, LoRA(rank=2)), tmp_path / "adapter")
    (adapter / "peftly.json").unlink()
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    failed = peftly("generate", "adapter", "--prompt", "the")
    assert failed.code == 2
    _, _, command = failed.err.strip().partition("convert it by ")
    outcome = peftly(*shlex.split(command)[1:])
    assert outcome.code == 0, outcome.err
    assert peftly("generate", "adapter-converted", "--prompt", "the", "--max-new-tokens", "2").code == 0
