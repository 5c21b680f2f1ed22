"""GGUF files of merged models: read back by transformers they have the same shape, tokens and logits."""

import re
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from references import assert_close
from tiny import perturb
from tiny_gguf import SIZES, TEMPLATE, TEXTS, make_model, make_tokenizer, read_back

from peftly import DoRA, LoRA, attach, export, load_base, merge, save_adapter, trainable_parameters
from peftly.errors import AdapterError, BaseModelError
from peftly.exporting.gguf import write_model


def logits(model, tokenizer):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(TEXTS[0]).input_ids])).logits


CASES = {
    "llama": ("llama", {}, "smollm"),
    "llama tied": ("llama", {"tie_word_embeddings": True}, "gpt-2"),
    "llama, as many keys as queries": ("llama", {"num_key_value_heads": 4}, "llama-bpe"),
    "qwen2": ("qwen2", {}, "qwen2"),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}, "qwen2"),
    "qwen3": ("qwen3", {}, "qwen2"),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}, "qwen2"),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_the_same_model(case, tmp_path):
    architecture, changes, split = CASES[case]
    model, tokenizer = make_model(architecture, **changes), make_tokenizer(split)
    write_model(tmp_path / "m.gguf", model, tokenizer, "f32", name="m")
    again, its_tokenizer = read_back(tmp_path / "m.gguf")
    for key in SIZES.keys() - {"bos_token_id", "rope_parameters", "rms_norm_eps"}:
        assert getattr(again.config, key) == getattr(model.config, key), key
    assert again.config.model_type == model.config.model_type
    assert again.config.rope_parameters["rope_theta"] == 5e4
    assert again.config.rms_norm_eps == pytest.approx(3e-5)
    assert again.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))
    if split != "smollm":  # transformers does not read that rule: `peftly.models.gguf` adds it
        assert [its_tokenizer(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert its_tokenizer.chat_template == TEMPLATE
    names = {tensor.name for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert ("output.weight" in names) != model.config.tie_word_embeddings


def test_peftly_reads_it_with_its_digits_apart(tmp_path):
    model, tokenizer = make_model("llama"), make_tokenizer("smollm")
    write_model(tmp_path / "m.gguf", model, tokenizer, "f32", name="m")
    again, its_tokenizer = load_base(str(tmp_path / "m.gguf"), dtype="float32")
    assert [its_tokenizer(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert torch.equal(logits(again, its_tokenizer), logits(model, tokenizer))


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 3e-2)])
def test_other_dtypes_round(dtype, bound, tmp_path):
    model, tokenizer = make_model("qwen2", intermediate_size=80), make_tokenizer()
    write_model(tmp_path / "m.gguf", model, tokenizer, dtype, name="m")
    again, _ = read_back(tmp_path / "m.gguf")
    expected = logits(model, tokenizer)
    assert 0 < (logits(again, tokenizer) - expected).norm() / expected.norm() < bound
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.file_type"].contents() == {"f16": 1, "q8_0": 7, "bf16": 32}[dtype]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["blk.0.attn_q.bias"] == kinds["output_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == (
        "F16" if dtype == "q8_0" else dtype.upper()
    )  # 80 is no multiple of the block size


def test_numbers_that_f16_cannot_hold(tmp_path):
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(BaseModelError, match=r"blk.0.ffn_up.weight has .* f16 cannot hold: choose dtype bf16"):
        write_model(tmp_path / "m.gguf", model, make_tokenizer(), "f16", name="m")
    assert not (tmp_path / "m.gguf").exists()


def test_quantised_numbers_are_not_taken_for_numbers(tmp_path):
    model = make_model("llama")
    packed = torch.zeros(8, dtype=torch.uint8)
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(BaseModelError, match=r"layers\.1\.mlp\.up_proj\.weight is quantised"):
        write_model(tmp_path / "m.gguf", model, make_tokenizer(), "f32", name="m")


@pytest.mark.parametrize("config", [LoRA(rank=3), DoRA(rank=3)], ids=["lora", "dora"])
def test_adapters_are_merged(config, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "base")
    make_tokenizer("smollm").save_pretrained(tmp_path / "base")
    model, tokenizer = load_base(str(tmp_path / "base"), dtype="float32")
    plain = logits(model, tokenizer)
    attach(model, config)
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model, tokenizer)
    exported = export(tmp_path / "adapter", "gguf", tmp_path / "out", dtype="f32")
    assert sorted(path.name for path in exported.folder.iterdir()) == [".peftly.json", "out-f32.gguf"]
    export(tmp_path / "adapter", "gguf", tmp_path / "out", dtype="q8_0", overwrite=True)
    exported = export(tmp_path / "adapter", "gguf", tmp_path / "out", dtype="f32", overwrite=True)
    assert sorted(path.name for path in exported.folder.iterdir()) == [".peftly.json", "out-f32.gguf"]
    again, _ = read_back(tmp_path / "out" / "out-f32.gguf")
    assert_close(logits(again, tokenizer), expected)
    assert (expected - plain).norm() / plain.norm() > 0.1
    assert torch.equal(logits(again, tokenizer), logits(merge(model), tokenizer))


@pytest.fixture(name="tied")
def _tied(tmp_path):
    """An adapter that changes the head of a model whose head is its embedding."""
    make_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    make_tokenizer("smollm").save_pretrained(tmp_path / "base")
    model, _ = load_base(str(tmp_path / "base"), dtype="float32")
    attach(model, LoRA(rank=3, target_modules=("lm_head",)))
    perturb(trainable_parameters(model).values())
    return save_adapter(model, tmp_path / "adapter")


def test_what_merging_unties_is_said(tied, tmp_path):
    exported = export(tied, "gguf", tmp_path / "out", dtype="f32")
    untied = r"^untied, as merging makes them different: model\.embed_tokens\.weight and lm_head\.weight"
    assert [bool(re.match(untied, note)) for note in exported.notes] == [True, False]


def test_an_adapter_is_not_taken_for_its_base(tied, tmp_path):
    """Trainers put the base's config beside an adapter; transformers would put one on that lies beside a model."""
    shutil.copy(tmp_path / "base" / "config.json", tied)
    exported = export(tied, "gguf", tmp_path / "out", dtype="f32")
    assert "untied" in exported.notes[0]
    shutil.copy(tmp_path / "base" / "model.safetensors", tied)
    with pytest.raises(AdapterError, match="adapter holds a model and an adapter: move one of them"):
        export(tied, "gguf", tmp_path / "new" / "out")
    with pytest.raises(BaseModelError, match=r"adapter holds an adapter beside a model: move adapter_config\.json"):
        load_base(str(tied))
    assert not (tmp_path / "new").exists()


def test_a_base_of_the_hub_is_no_adapter(tied, tmp_path, monkeypatch):
    monkeypatch.setattr("peftly.adapters.adapter_set.snapshot_download", lambda *_, **__: tmp_path / "base")
    with pytest.raises(AdapterError, match=r"^someone/base .* on the Hub it is no adapter: it has no adapter_config"):
        export("someone/base", "gguf", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


class TestRope:
    def written(self, folder, architecture="llama", **rope):
        parameters = {"rope_theta": 5e4, **rope}
        model = make_model(architecture, rope_parameters=parameters)
        write_model(folder / "m.gguf", model, make_tokenizer(), "f32", name="m")
        return model, GGUFReader(folder / "m.gguf")

    def test_frequencies_of_llama3(self, tmp_path):
        """`rope_freqs` divides the plain frequencies, as llama.cpp has it."""
        model, reader = self.written(tmp_path, rope_type="llama3", **LLAMA3)
        (tensor,) = (tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
        plain = 1 / 5e4 ** (np.arange(0, 16, 2) / 16)
        np.testing.assert_allclose(plain / tensor.data, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)
        assert {1.0, 8.0} < set(tensor.data.round(4).tolist())

    @pytest.mark.parametrize("kind", ["linear", "yarn"])
    def test_scaling(self, kind, tmp_path):
        more = {"original_max_position_embeddings": 32, "beta_fast": 16.0} if kind == "yarn" else {}
        _, reader = self.written(tmp_path, "qwen2", rope_type=kind, factor=3.0, **more)
        values = {key: field.contents() for key, field in reader.fields.items() if ".rope." in key}
        expected = {"dimension_count": 16, "freq_base": 5e4, "scaling.type": kind, "scaling.factor": 3.0}
        if kind == "yarn":
            expected |= {"scaling.original_context_length": 32}
            expected |= {"scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 1.0}
        assert values == {f"qwen2.rope.{key}": value for key, value in expected.items()}

    @pytest.mark.parametrize(
        ("architecture", "rope", "message"),
        [
            ("llama", {"rope_type": "dynamic", "factor": 2.0}, "rope type 'dynamic' with factor"),
            ("qwen3", {"rope_type": "llama3", **LLAMA3}, "rope type 'llama3' with factor, .*"),
            (
                "llama",
                {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "mscale": 0.7},
                "rope type 'yarn' with mscale",
            ),
        ],
    )
    def test_rope_that_gguf_cannot_represent(self, architecture, rope, message, tmp_path):
        with pytest.raises(BaseModelError, match=f"{message} cannot be written to GGUF"):
            self.written(tmp_path, architecture, **rope)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias: True of a llama model"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: gelu"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, "sliding_window: 8"),
    ],
)
def test_settings_that_gguf_cannot_represent(architecture, changes, message, tmp_path):
    with pytest.raises(BaseModelError, match=message):
        write_model(tmp_path / "m.gguf", make_model(architecture, **changes), make_tokenizer(), "f32", name="m")
    assert not (tmp_path / "m.gguf").exists()
