"""A real base as a GGUF file: its sizes, its tokenizer and its weights, read by the gguf package and as a base."""

import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from references import assert_close

from peftly import export, load_base

TEXT = "The train was 12345 minutes late, again:\n  it's not funny!"


@pytest.mark.soak
def test_smollm2(tmp_path):
    exported = export("smollm2-135m", "gguf", tmp_path / "smol", dtype="q8_0")
    reader = GGUFReader(exported.folder / "smol-q8_0.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    shape = {"block_count": 30, "context_length": 8192, "embedding_length": 576, "feed_forward_length": 1536}
    shape |= {"attention.head_count": 9, "attention.head_count_kv": 3, "rope.freq_base": 1e5, "vocab_size": 49152}
    assert {key: values[f"llama.{key}"] for key in shape} == shape
    assert (values["tokenizer.ggml.pre"], values["tokenizer.ggml.bos_token_id"]) == ("smollm", 1)
    assert len(values["tokenizer.ggml.merges"]) == 48900
    model, tokenizer = load_base("smollm2-135m", dtype="float32")
    packed = next(tensor for tensor in reader.tensors if tensor.name == "blk.29.ffn_down.weight")
    weight = model.model.layers[29].mlp.down_proj.weight.detach()
    assert_close(torch.from_numpy(dequantize(packed.data, packed.tensor_type)), weight, bound=1e-2)
    loaded, loaded_tokenizer = load_base(str(exported.folder / "smol-q8_0.gguf"), dtype="float32")
    assert loaded_tokenizer(TEXT).input_ids == tokenizer(TEXT).input_ids
    ids = torch.tensor([tokenizer(TEXT).input_ids])
    with torch.no_grad():
        assert_close(loaded(ids).logits, model(ids).logits, bound=3e-2)
