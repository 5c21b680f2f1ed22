"""GGUF files of merged models: read back by transformers they have the same shape, tokens and logits."""

import json

import numpy as np
import pytest
import torch
import transformers as tf
from data_tokenizers import CORPUS
from gguf import GGUFReader
from references import assert_close
from tiny import perturb
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from peftly import DoRA, LoRA, attach, export, load_base, merge, save_adapter, trainable_parameters
from peftly.errors import BaseModelError
from peftly.exporting._gguf_tokenizer import pre_tokenizer_name
from peftly.exporting.gguf import write_model

ROWS = 320  # of the embedding: more than the tokenizer has tokens
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 3e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "llama": tf.LlamaConfig,
    "qwen2": tf.Qwen2Config,
    "qwen3": tf.Qwen3Config,
}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = ["The train was late, again: it's 12345 minutes!", "<think>a</think>  Ünïcode\n\n  ok<|end|>", " x"]
TEMPLATE = "{% for message in messages %}<|start|>{{ message['content'] }}<|end|>{% endfor %}"


def splitting(name):
    """The ways to split a text, as tokenizers of the architectures have them."""
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), splitting("gpt-2")])
    expression = QWEN if name == "qwen2" else QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def make_tokenizer(split="gpt-2", *, bos=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=split == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitting(split), decoders.ByteLevel()
    if split == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["<think>", "</think>"])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", 1)]
        )
    names = {"bos_token": "<|start|>"} if bos else {}
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>", **names)
    fast.chat_template = TEMPLATE
    return fast


def make_model(architecture, **changes):
    """A random model, its norms and biases too. transformers reads 128 numbers a head into any qwen3."""
    settings = SIZES | ({"head_dim": 128} if architecture == "qwen3" else {}) | changes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.AutoModelForCausalLM.from_config(KINDS[architecture](**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def read_back(file, dtype=torch.float32):
    unpacked = tf.GgufConfig(dequantize=True)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = tf.AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, quantization_config=unpacked)
    return model.eval(), tf.AutoTokenizer.from_pretrained(**where)


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
    if split != "smollm":  # transformers does not read that rule: `peftly.gguf` adds it
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
    assert kinds["blk.0.ffn_down.weight"] == ("F16" if dtype == "q8_0" else dtype.upper())  # rows of 80 are no blocks


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
    assert [path.name for path in exported.folder.iterdir()] == ["out-f32.gguf"]
    again, _ = read_back(tmp_path / "out" / "out-f32.gguf")
    assert_close(logits(again, tokenizer), expected)
    assert (expected - plain).norm() / plain.norm() > 0.1
    assert torch.equal(logits(again, tokenizer), logits(merge(model), tokenizer))


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
        ("architecture", "rope", "words"),
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
    def test_what_the_file_cannot_say(self, architecture, rope, words, tmp_path):
        with pytest.raises(BaseModelError, match=f"{words} cannot be written to GGUF"):
            self.written(tmp_path, architecture, **rope)


@pytest.mark.parametrize(
    ("architecture", "changes", "words"),
    [
        ("llama", {"attention_bias": True}, "attention_bias: True of a llama model"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: gelu"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, "sliding_window: 8"),
    ],
)
def test_shapes_that_the_file_cannot_say(architecture, changes, words, tmp_path):
    with pytest.raises(BaseModelError, match=words):
        write_model(tmp_path / "m.gguf", make_model(architecture, **changes), make_tokenizer(), "f32", name="m")
    assert not (tmp_path / "m.gguf").exists()


class TestTokenizer:
    def fields(self, folder, tokenizer, **changes):
        write_model(folder / "m.gguf", make_model("qwen2", **changes), tokenizer, "f32", name="m")
        reader = GGUFReader(folder / "m.gguf")
        start = "tokenizer.ggml."
        return {key.removeprefix(start): field.contents() for key, field in reader.fields.items() if start in key}

    def test_kinds_and_ids(self, tmp_path):
        tokenizer = make_tokenizer("qwen2", bos=True)
        found = self.fields(tmp_path, tokenizer)
        size = len(tokenizer)
        assert len(found["tokens"]) == len(found["token_type"]) == ROWS
        assert found["tokens"][:size] == [
            token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda t: t[1])
        ]
        assert found["tokens"][size] == f"[PAD{size}]"
        assert found["token_type"][:4] == [3, 3, 3, 1]
        assert found["token_type"][size - 2 :] == [4, 4, *[5] * (ROWS - size)]
        ids = {key: found.get(f"{key}_token_id") for key in ("bos", "eos", "padding", "unknown")}
        assert ids == {"bos": 1, "eos": 2, "padding": 0, "unknown": None}
        assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (True, False, False)
        assert (found["model"], found["pre"]) == ("gpt2", "qwen2")

    def test_the_config_names_the_first_token_where_the_tokenizer_does_not(self, tmp_path):
        found = self.fields(tmp_path, make_tokenizer(), bos_token_id=1)
        assert (found["bos_token_id"], found["add_bos_token"]) == (1, False)

    def test_several_chat_templates(self, tmp_path):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "other"}
        write_model(tmp_path / "m.gguf", make_model("qwen2"), tokenizer, "f32", name="m")
        fields = GGUFReader(tmp_path / "m.gguf").fields
        assert fields["tokenizer.chat_template"].contents() == TEMPLATE
        assert fields["tokenizer.chat_template.tool_use"].contents() == "other"

    def test_forms_of_unicode_are_mentioned(self, tmp_path):
        for split, count in (("gpt-2", 0), ("qwen2", 1)):
            notes = write_model(tmp_path / "m.gguf", make_model("qwen2"), make_tokenizer(split), "f32", name="m")
            assert sum("NFC" in note for note in notes) == count

    def test_more_tokens_than_rows(self, tmp_path):
        with pytest.raises(BaseModelError, match="ids up to 301, and the model 200 rows"):
            self.fields(tmp_path, make_tokenizer(), vocab_size=200)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"model": {"byte_fallback": True}}, "sentencepiece's BPE"),
            ({"model": {"type": "Unigram"}}, "a tokenizer of Unigram cannot be written"),
            ({"normalizer": {"type": "Lowercase"}}, r"normalises text \(Lowercase\)"),
            ({"model": {"end_of_word_suffix": "</w>"}}, "marks the parts of words"),
            ({"model": {"ignore_merges": True}}, r"no name for how the tokenizer splits text \(words\)"),
            ({"pre_tokenizer": {"type": "Whitespace"}}, "no name for how the tokenizer splits text"),
            ({"pre_tokenizer": None}, r"\(not at all\)"),
        ],
    )
    def test_what_llama_cpp_does_not_do(self, change, words):
        parts = json.loads(make_tokenizer().backend_tokenizer.to_str())
        for key, value in change.items():
            parts[key] = {**parts[key], **value} if key == "model" else value
        with pytest.raises(BaseModelError, match=words):
            pre_tokenizer_name(parts)
