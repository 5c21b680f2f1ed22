"""Settings and tokenizers of other people's GGUF files: applied as llama.cpp does, or refused in one line."""

import pytest
import torch
import transformers as tf
from gguf import GGUFWriter
from tiny_gguf import TEXTS, make_model, make_sentencepiece, make_tokenizer, write_sentencepiece

from peftly import LoRA, attach, export, load_base, save_adapter
from peftly.errors import BaseModelError
from peftly.exporting.gguf import write_model
from peftly.models.gguf_header import GgufHeader
from peftly.models.gguf_settings import apply_settings, check_is_model, check_tensors

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"factor": 3.0, "original_max_position_embeddings": 32, "beta_fast": 16.0}
CASES = {
    "llama3": ("llama", "llama-bpe", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4, **LLAMA3}}),
    "linear": ("llama", "gpt-2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e4, "factor": 3.0}}),
    "yarn": ("qwen2", "qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, **YARN}}),
    "yarn of qwen3": ("qwen3", "qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, **YARN}}),
    "narrow heads": ("qwen3", "qwen2", {"head_dim": 64}),
    "wide heads": ("llama", "smollm", {"head_dim": 32, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_file_has_the_logits_and_tokens_of_its_model(case, bos, tmp_path):
    architecture, split, changes = CASES[case]
    model, tokenizer = make_model(architecture, **changes), make_tokenizer(split, bos=bos)
    write_model(tmp_path / "m.gguf", model, tokenizer, "f32", name="m")
    opened = load_base(str(tmp_path / "m.gguf"), dtype="float32")
    ids = torch.tensor([tokenizer(" ".join(TEXTS)).input_ids[:90]])
    with torch.no_grad():
        assert torch.equal(opened.model(ids).logits, model(ids).logits)
    for text in (*TEXTS, "cafe\u0301"):  # Qwen's tokenizer composes characters first
        assert opened.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert opened.tokenizer.backend_tokenizer.model.ignore_merges == (split == "llama-bpe")


def written(file, edit):
    """A GGUF file whose writer `edit` is given before the file is written."""

    class Writer(GGUFWriter):
        def write_header_to_file(self, *arguments, **settings):
            edit(self)
            super().write_header_to_file(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gguf.GGUFWriter", Writer)
        write_model(file, make_model("llama"), make_tokenizer(), "f32", name="m")
    return str(file)


def set_value(key, value):
    def edit(writer):
        for shard in writer.kv_data:
            shard.pop(key, None)
        writer.add_key_value(key, value, _kind(value))

    return edit


def _kind(value):
    from gguf import GGUFValueType

    kinds = {str: GGUFValueType.STRING, bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32}
    return kinds.get(type(value), GGUFValueType.FLOAT32)


REFUSED = {
    "mixture of experts": (set_value("llama.expert_count", 8), "not supported: llama.expert_count is 8"),
    "unknown setting": (set_value("llama.logit_scale", 2.0), "not supported: llama.logit_scale is 2.0"),
    "window": (set_value("llama.attention.sliding_window", 8), "does not have: attention.sliding_window"),
    "encoder": (set_value("llama.attention.causal", False), "holds an encoder"),
    "part of a head": (set_value("llama.rope.dimension_count", 8), "rotates 8 of 16 dimensions of a head"),
    "values": (set_value("llama.attention.value_length", 8), "keys and values of different widths"),
    "rope": (set_value("llama.rope.scaling.type", "longrope"), "scales its rotary frequencies as 'longrope'"),
    "image encoder": (set_value("general.type", "mmproj"), "a part of a model .mmproj.: give the file of the language"),
    "shard": (set_value("split.count", 3), "one of 3 shards: join them with llama-gguf-split --merge"),
    "splitting": (set_value("tokenizer.ggml.pre", "viking"), "splits text as 'viking', which is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_transformers_would_pass_over_is_refused(case, tmp_path):
    edit, message = REFUSED[case]
    with pytest.raises(BaseModelError, match=message) as error:
        load_base(written(tmp_path / "m.gguf", edit), dtype="float32")
    assert "\n" not in str(error.value)


def test_a_tensor_that_transformers_would_leave_out_is_refused(tmp_path):
    def add_bias(writer):
        writer.add_tensor("blk.0.attn_q.bias", torch.zeros(64).numpy())

    with pytest.raises(BaseModelError, match=r"tensors that transformers' llama does not have: blk\.0\.attn_q\.bias$"):
        load_base(written(tmp_path / "m.gguf", add_bias), dtype="float32")


def test_settings_without_meaning_are_passed_over(tmp_path):
    file = written(tmp_path / "m.gguf", set_value("llama.expert_count", 0))
    load_base(file, dtype="float32")


def test_a_tokenizer_without_a_way_of_splitting_is_warned_of(tmp_path):
    file = written(tmp_path / "m.gguf", set_value("tokenizer.ggml.pre", "default"))
    with pytest.warns(UserWarning, match="does not say how its tokenizer splits text"):
        load_base(file, dtype="float32")


@pytest.mark.parametrize("prefix", [None, True, False])
def test_a_sentencepiece_tokenizer_marks_spaces_as_its_file_says(prefix, tmp_path):
    expected = make_sentencepiece(prefix=prefix is not False)
    write_sentencepiece(tmp_path / "m.gguf", expected, prefix)
    tokenizer = load_base(str(tmp_path / "m.gguf"), dtype="float32").tokenizer
    for text in (*TEXTS, "hello", "  two", "a  b\n\nc", "\u00e9\u65e5 1"):
        assert tokenizer(text).input_ids == [1, *expected.encode(text).ids], text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_a_lora_file_is_no_base(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    model = load_base(str(tmp_path / "base"), dtype="float32").model
    save_adapter(attach(model, LoRA(rank=2)), tmp_path / "adapter")
    export(tmp_path / "adapter", "gguf-lora", tmp_path / "lora")
    with pytest.raises(
        BaseModelError, match=r"holds a LoRA adapter for llama\.cpp, and no model: give the file of its"
    ):
        load_base(str(tmp_path / "lora" / "lora-f32.gguf"))


COMMON = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 320}
APPLIED = {
    "phi3": (
        tf.Phi3Config(**COMMON),
        {"rope.dimension_count": 8, "attention.sliding_window": 7, "attention.layer_norm_rms_epsilon": 3e-5},
        {"sliding_window": 7, "rms_norm_eps": 3e-5, "rope_parameters.partial_rotary_factor": 0.5},
    ),
    "gemma2": (
        tf.Gemma2Config(**COMMON, head_dim=32),
        {"attention.key_length": 32, "attention.value_length": 32, "final_logit_softcapping": 9.0},
        {"query_pre_attn_scalar": 32, "final_logit_softcapping": 9.0, "attn_logit_softcapping": 50.0},
    ),
    "gemma2 27b": (
        tf.Gemma2Config(**COMMON | {"num_hidden_layers": 46}, head_dim=32),
        {"attention.key_length": 32},
        {"query_pre_attn_scalar": 16, "head_dim": 32},
    ),
    "gemma3": (
        tf.Gemma3TextConfig(**COMMON, head_dim=32),
        {"attention.key_length": 32, "rope.freq_base_swa": 9e3, "rope.scaling.type": "linear"}
        | {"rope.scaling.factor": 8.0},
        {
            "rope_parameters.sliding_attention": {"rope_type": "default", "rope_theta": 9e3},
            "rope_parameters.full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    ),
    "starcoder2": (
        tf.Starcoder2Config(**COMMON),
        {"rope.freq_base": 5e4, "attention.layer_norm_epsilon": 3e-5},
        {"rope_parameters.rope_theta": 5e4, "norm_epsilon": 3e-5},
    ),
    "nemotron": (
        tf.NemotronConfig(**COMMON),
        {"attention.layer_norm_epsilon": 3e-5, "rope.dimension_count": 8},
        {"norm_eps": 3e-5, "rope_parameters.partial_rotary_factor": 0.5},
    ),
}


@pytest.mark.parametrize("case", APPLIED)
def test_settings_that_transformers_does_not_read_are_applied(case, tmp_path):
    """The expected values are those of the configs whose models llama.cpp's converter wrote with these settings."""
    config, settings, expected = APPLIED[case]
    architecture = case.split()[0]
    metadata = {"general.architecture": architecture, f"{architecture}.block_count": config.num_hidden_layers}
    metadata |= {f"{architecture}.{key}": value for key, value in settings.items()}
    apply_settings(tmp_path / "m.gguf", GgufHeader(metadata, {"token_embd.weight": (64, 305)}), config)
    found = config.to_dict()
    for key, value in expected.items():
        name, _, inner = key.partition(".")
        assert (found[name][inner] if inner else found[name]) == pytest.approx(value), key
    assert config.vocab_size == 305


def test_architectures_that_are_not_checked_stay_as_they_are(tmp_path):
    header = GgufHeader({"general.architecture": "bloom", "bloom.anything": 1}, {"anything": (1,)})
    config = tf.BloomConfig()
    before = config.to_dict()
    apply_settings(tmp_path / "m.gguf", header, config)
    check_tensors(tmp_path / "m.gguf", header, set())
    check_is_model(tmp_path / "m.gguf", header)
    assert config.to_dict() == before
