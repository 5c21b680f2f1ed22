"""Exported folders in Hugging Face PEFT: the same logits as here, for every adapter that an export accepts."""

import json
import re

import peft
import pytest
import torch
import transformers
from references import assert_close
from safetensors import safe_open
from tiny import perturb, random_token_ids, tiny_model

from peftly import (
    IA3,
    DoRA,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    attach,
    export,
    load_adapter,
    save_adapter,
    trainable_parameters,
)

IDS = torch.tensor(random_token_ids([9]))
NOTES = {"labels": ["bad", "good", "so-so"]}
FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
PATTERNS = {"rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 7}, "alpha_pattern": {"v_proj": 3, "0.*": 40}}
LORAS = {
    "plain": LoRA(rank=4),
    "rslora": LoRA(rank=4, rslora=True),
    "an expression": LoRA(rank=3, target_modules=r".*\.(q_proj|down_proj)"),
    "ranks and alphas": LoRA(rank=4, **PATTERNS),
    "ranks and alphas of rslora": LoRA(rank=4, rslora=True, **PATTERNS),
    "alphas": LoRA(rank=4, alpha_pattern={"v_proj": 3}),
    "pissa": LoRA(rank=3, init="pissa", target_modules=("q_proj", "up_proj")),
    "pissa, ranks": LoRA(rank=3, init="pissa", target_modules=("q_proj", "up_proj"), rank_pattern={"up_proj": 2}),
    "an embedding": LoRA(rank=3, target_modules=("embed_tokens", "q_proj"), rank_pattern={"q_proj": 5}),
}
OTHERS = {
    "prompt_tuning": PromptTuning(num_virtual_tokens=4, init="random"),
    "prompt_tuning, saved modules": PromptTuning(num_virtual_tokens=3, init="random", modules_to_save=("lm_head",)),
    "p_tuning": PTuning(num_virtual_tokens=4, encoder="lstm"),
    "prefix_tuning": PrefixTuning(num_virtual_tokens=4, init="random"),
    "dora": DoRA(rank=3),
    "ia3": IA3(),
    "saved modules": LoRA(rank=3, modules_to_save=("lm_head",), target_modules=("q_proj",)),
}


@pytest.fixture
def base(tmp_path):
    """Return a function that saves a model as the base of an adapter, and opens it."""

    def saved(architecture="llama", task="causal_lm"):
        tiny_model(architecture, torch.float32, task=task).save_pretrained(tmp_path / "base")
        return opened(tmp_path / "base", task)

    return saved


def opened(folder, task):
    kind = transformers.AutoModelForCausalLM if task == "causal_lm" else transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    model.name_or_path = model.config.name_or_path = str(folder)
    return model


def adapted(model, config, folder):
    attach(model, config)
    perturb(trainable_parameters(model).values())
    save_adapter(model, folder, notes=NOTES)
    return model


def in_peft(model, folder):
    return peft.PeftModel.from_pretrained(model, folder)(IDS).logits.detach()


@pytest.mark.parametrize("case", [*LORAS, *OTHERS])
def test_peft(case, base, tmp_path):
    model = base()
    adapted(model, {**LORAS, **OTHERS}[case], tmp_path / "adapter")
    written = export(tmp_path / "adapter", "peft", tmp_path / "out")
    assert sorted(path.name for path in written.folder.iterdir()) == [".peftly.json", *FILES]
    logits = in_peft(opened(tmp_path / "base", "causal_lm"), tmp_path / "out")
    assert_close(model(IDS).logits, logits[:, -IDS.shape[1] :])
    assert_close(load_adapter(opened(tmp_path / "base", "causal_lm"), tmp_path / "out")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("architecture", "task", "config"),
    [
        ("llama", "causal_lm", LoRA(rank=3)),
        ("bert", "sequence_classification", LoRA(rank=3)),
        ("bert", "sequence_classification", PTuningV2(num_virtual_tokens=3, init="random")),
    ],
)
def test_the_card_of_peft_opens_it(architecture, task, config, base, tmp_path, monkeypatch):
    model = base(architecture, task)
    adapted(model, config, tmp_path / "adapter")
    export(tmp_path / "adapter", "peft", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names = {}
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(block, "README.md", "exec"), names)
    assert_close(names["model"].eval()(IDS).logits, model(IDS).logits)
    if task != "causal_lm":
        assert list(names["base"].config.id2label.values()) == NOTES["labels"]


def checked_by_vllm(folder, max_rank, layers):
    """Check a folder as vLLM does (`PEFTHelper`, `LoRAModel`, `LoRAConfig`); return the scaling and the factors."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert max_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
    assert 0 < config["r"] <= max_rank
    assert {"r", "lora_alpha", "target_modules"} <= config.keys()
    assert isinstance(config["target_modules"], list)
    assert config["bias"] == "none"
    for key in ("modules_to_save", "use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication"):
        assert not config.get(key), key
    assert config["init_lora_weights"] in (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    factors = {}
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            parts = name.removeprefix("base_model.model.").split(".")
            if parts[-1] == "weight":
                assert parts[-2] in ("lora_A", "lora_B"), name
                path, letter = ".".join(parts[:-2]), parts[-2][-1]
            else:
                assert parts[-1] in ("lora_embedding_A", "lora_embedding_B"), name
                path, letter = ".".join(parts[:-1]), parts[-1][-1]
            assert path.rpartition(".")[2] in layers, path
            factors.setdefault(path, {})[letter] = file.get_tensor(name)
    for path, pair in factors.items():
        assert pair["A"].shape[0] == pair["B"].shape[1] == config["r"], path
    return scaling, factors


@pytest.mark.parametrize("case", LORAS)
def test_vllm(case, base, tmp_path):
    """Check by the rules of vLLM and in PEFT, and compute logits with one rank and scaling, as vLLM does."""
    model = base()
    adapted(model, LORAS[case], tmp_path / "adapter")
    written = export(tmp_path / "adapter", "vllm", tmp_path / "out")
    assert sorted(path.name for path in written.folder.iterdir()) == [".peftly.json", *FILES]
    (command,) = (note for note in written.notes if "vllm serve" in note)
    max_rank = int(re.search(r"--max-lora-rank (\d+)", command)[1])
    layers = {path.rpartition(".")[2] for path, _ in model.named_modules() if path.endswith(("_proj", "embed_tokens"))}
    assert any("vLLM supports LoRA there for some" in note for note in written.notes) == (case == "an embedding")
    scaling, factors = checked_by_vllm(tmp_path / "out", max_rank, layers)
    assert_close(in_peft(opened(tmp_path / "base", "causal_lm"), tmp_path / "out"), model(IDS).logits)
    plain = opened(tmp_path / "base", "causal_lm")
    plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.clone())
    with torch.no_grad():
        for path, pair in factors.items():
            delta = scaling * pair["B"] @ pair["A"]
            plain.get_submodule(path).weight += delta.T if path.endswith("embed_tokens") else delta
    assert_close(plain(IDS).logits, model(IDS).logits)


def test_vllm_gets_names_instead_of_a_regular_expression(base, tmp_path):
    base()
    config = peft.LoraConfig(r=3, target_modules=r".*\.0\..*\.(q_proj|down_proj)")
    theirs = peft.get_peft_model(opened(tmp_path / "base", "causal_lm"), config)
    perturb([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", "vllm", tmp_path / "out")
    _, factors = checked_by_vllm(tmp_path / "out", 8, {"q_proj", "down_proj"})
    assert sorted(factors) == ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]
    assert_close(in_peft(opened(tmp_path / "base", "causal_lm"), tmp_path / "out"), theirs(IDS).logits)


def test_vllm_leaves_their_copy_of_the_embeddings_out(base, tmp_path):
    base()
    config = peft.LoraConfig(r=3, target_modules=["embed_tokens", "q_proj"])
    theirs = peft.get_peft_model(opened(tmp_path / "base", "causal_lm"), config)
    perturb([p for p in theirs.parameters() if p.requires_grad])
    theirs.save_pretrained(tmp_path / "adapter")
    written = export(tmp_path / "adapter", "vllm", tmp_path / "out")
    assert any("left out" in note for note in written.notes)
    checked_by_vllm(tmp_path / "out", 8, {"embed_tokens", "q_proj"})
    assert_close(in_peft(opened(tmp_path / "base", "causal_lm"), tmp_path / "out"), theirs(IDS).logits)
