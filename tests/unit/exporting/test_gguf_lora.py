"""GGUF files of LoRA adapters: their tensors and alpha give the updates that the merged model has."""

import copy
import json
import re

import pytest
import torch
import transformers as tf
from gguf import GGUFReader
from references import assert_close
from tiny import perturb
from tiny_gguf import SIZES, make_model, make_tokenizer

from peftly import (
    IA3,
    BitFit,
    DoRA,
    LoRA,
    PromptTuning,
    attach,
    export,
    load_base,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import AdapterError
from peftly.exporting.gguf import write_model
from peftly.exporting.gguf_lora import LORA_DTYPES

CONFIGS = {
    "llama": tf.LlamaConfig,
    "mistral": tf.MistralConfig,
    "smollm3": tf.SmolLM3Config,
    "granite": tf.GraniteConfig,
    "gemma": tf.GemmaConfig,
    "gemma2": tf.Gemma2Config,
    "gemma3": tf.Gemma3TextConfig,
    "phi3": tf.Phi3Config,
    "olmo2": tf.Olmo2Config,
    "qwen2": tf.Qwen2Config,
    "qwen3": tf.Qwen3Config,
}
ARCHITECTURES = {kind: kind for kind in CONFIGS} | {"mistral": "llama"}
INTERLEAVED = ("llama", "mistral", "smollm3", "granite")
NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "qkv_proj": "attn_qkv"}
NAMES |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "gate_up_proj": "ffn_up"}
PATTERNS = LoRA(
    rank=4,
    alpha=7,
    rslora=True,
    rank_pattern={"q_proj": 2, "1.mlp.up_proj": 6},
    alpha_pattern={"k_proj": 3, "o_proj": 33},
)
VOCABULARY = LoRA(rank=4, target_modules=("embed_tokens", "lm_head", "q_proj"), rank_pattern={"embed_tokens": 2})


@pytest.fixture
def saved(tmp_path):
    """Save an adapter on a base in a folder, and give the adapted model and the folder of the adapter."""

    def save(config, model, **notes):
        model.save_pretrained(tmp_path / "base")
        make_tokenizer().save_pretrained(tmp_path / "base")
        model = attach(load_base(str(tmp_path / "base"), dtype="float32").model, config)
        perturb(trainable_parameters(model).values())
        return model, save_adapter(model, tmp_path / "adapter", **notes)

    return save


def read(file):
    reader = GGUFReader(file)
    return {key: field.contents() for key, field in reader.fields.items()}, {
        tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors
    }


def updates(file):
    """The updates of the weights in the order of GGUF, as llama.cpp scales them."""
    values, tensors = read(file)
    names = {name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")}
    assert len(tensors) == 2 * len(names)
    found = {}
    for name in names:
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        # Of the embedding, llama.cpp reads rows of A, (vocabulary, rank), and multiplies them by B.
        update = a @ b.T if name == "token_embd.weight" else b @ a
        found[name] = values["adapter.lora.alpha"] / b.shape[1] * update
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "config",
    [LoRA(rank=3), LoRA(rank=3, init="pissa"), PATTERNS, VOCABULARY],
    ids=["plain", "pissa", "patterns", "all"],
)
def test_base_and_updates_are_the_merged_model(architecture, config, saved, tmp_path):
    model, folder = saved(config, make_model(architecture))
    tokenizer = make_tokenizer()
    write_model(tmp_path / "base.gguf", make_model(architecture), tokenizer, "f32", name="m")
    export(folder, "gguf-lora", tmp_path / "out")
    write_model(tmp_path / "merged.gguf", merge(model), tokenizer, "f32", name="m")
    found, (_, base), (_, merged) = (
        updates(tmp_path / "out" / "out-f32.gguf"),
        read(tmp_path / "base.gguf"),
        read(tmp_path / "merged.gguf"),
    )
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == found.keys()
    for name, update in found.items():
        assert_close(base[name] + update, merged[name], bound=1e-6)
        assert_close(update, merged[name] - base[name], bound=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_and_rows_of_every_architecture(kind, saved, tmp_path):
    config = CONFIGS[kind](**copy.deepcopy(SIZES), head_dim=16)  # gemma3 changes the settings of rope in place
    model, folder = saved(LoRA(rank=3), tf.AutoModelForCausalLM.from_config(config))
    export(folder, "gguf-lora", tmp_path / "out")
    values, _ = read(tmp_path / "out" / "out-f32.gguf")
    assert (values["general.architecture"], values["general.type"]) == (ARCHITECTURES[kind], "adapter")
    assert (values["adapter.type"], values["adapter.lora.alpha"]) == ("lora", 16.0)
    found = updates(tmp_path / "out" / "out-f32.gguf")
    layers = {path: layer for path, layer in model.named_modules() if hasattr(layer, "peftly")}
    assert len(layers) == len(found) > 0
    for path, layer in layers.items():
        number, name = re.match(r"model\.layers\.(\d+)\.\w+\.(\w+)$", path).groups()
        factors = layer.peftly["default"]
        expected = factors.scaling * factors.lora_b @ factors.lora_a
        if kind in INTERLEAVED and name in ("q_proj", "k_proj"):
            heads = {"q_proj": 4, "k_proj": 2}[name]
            rows = torch.arange(len(expected)).view(heads, 2, -1).mT.flatten()
            expected = expected[rows]
        assert_close(found[f"blk.{number}.{NAMES[name]}.weight"], expected, bound=1e-6)


@pytest.mark.parametrize("dtype", LORA_DTYPES)
def test_dtypes(dtype, saved, tmp_path):
    _, folder = saved(LoRA(rank=3), make_model("llama"))
    export(folder, "gguf-lora", tmp_path / "out", dtype=dtype)
    reader = GGUFReader(tmp_path / "out" / f"out-{dtype}.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {dtype.upper()}


def test_the_commands_and_the_chat_template(saved, tmp_path):
    row_format = {"kind": "chat", "chat_template": "{{ messages }}"}
    _, folder = saved(LoRA(rank=3), make_model("llama"), notes={"row_format": row_format})
    exported = export(folder, "gguf-lora", tmp_path / "out")
    assert {path.name for path in exported.folder.iterdir()} == {"out-f32.gguf", "chat_template.jinja", ".peftly.json"}
    assert exported.notes[-2].endswith(f"peftly export {tmp_path / 'base'} --to gguf --out BASE")
    out = tmp_path / "out"
    command = f"llama-cli -m BASE.gguf --lora {out}/out-f32.gguf --jinja --chat-template-file {out}/chat_template.jinja"
    assert exported.notes[-1] == f"try it: {command}"


TIED = {"tie_word_embeddings": True}
REFUSED = {
    "dora": (DoRA(rank=3), {}, "it is a DoRA adapter, which llama.cpp does not support; merge it .* --to gguf$"),
    "ia3": (IA3(), {}, "it is ia3, and llama.cpp takes LoRA only; merge it into the base instead: .* --to gguf$"),
    "soft prompt": (PromptTuning(num_virtual_tokens=3, init="random"), {}, "prompt_tuning, and llama.cpp takes LoRA"),
    "copies": (LoRA(rank=3, modules_to_save=("lm_head",)), {}, "modules_to_save: lm_head.*LoRA factors only; merge it"),
    "biases": (LoRA(rank=3, bias="all"), {"architecture": "qwen2"}, "trained biases .bias: all.*; merge it"),
    "only biases": (BitFit(), {"architecture": "qwen2"}, "it is bitfit, and llama.cpp takes LoRA only; merge it"),
    "tied embedding": (LoRA(rank=3, target_modules=("embed_tokens",)), TIED, "the base ties .* model.embed_tokens"),
    "tied head": (
        LoRA(rank=3, target_modules=("lm_head", "q_proj")),
        TIED,
        "the base ties .* adapt lm_head alone; merg",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_cannot_apply_is_refused(case, saved, tmp_path):
    config, changes, message = REFUSED[case]
    changes = {"architecture": "llama"} | changes
    _, folder = saved(config, make_model(**changes))
    with pytest.raises(AdapterError, match=message) as error:
        export(folder, "gguf-lora", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bases_that_have_no_name_in_llama_cpp_are_refused(saved, tmp_path):
    _, folder = saved(LoRA(rank=3), make_model("llama"))
    base = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(base | {"model_type": "gpt2"}))
    with pytest.raises(AdapterError, match="its base is a gpt2, and a LoRA file is written for gemma, gemma2"):
        export(folder, "gguf-lora", tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(AdapterError, match="names no base, whose config is needed: write its path or Hub id as base_"):
        export(folder, "gguf-lora", tmp_path / "out")


def test_the_config_of_a_base_in_a_gguf_file(saved, tmp_path):
    _, folder = saved(LoRA(rank=3), make_model("llama"))
    export(folder, "gguf-lora", tmp_path / "out")
    export(str(tmp_path / "base"), "gguf", tmp_path / "file", dtype="f32")
    config = json.loads((folder / "adapter_config.json").read_text())
    base = str(tmp_path / "file" / "file-f32.gguf")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    export(folder, "gguf-lora", tmp_path / "again")
    assert updates(tmp_path / "again" / "again-f32.gguf").keys() == updates(tmp_path / "out" / "out-f32.gguf").keys()
