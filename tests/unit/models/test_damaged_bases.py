"""Damaged and hostile files of a base: one line of our own, at once."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from damaged_gguf import DamagedGguf, refusal, tiny_gguf
from safetensors.torch import load_file, save_file

from peftly import load_base
from peftly.errors import BaseModelError
from peftly.models.gguf_header import read_gguf_header

ELEMENT = "model.layers.0.mlp.up_proj.weight"


def refused(base: Path, *words: str) -> None:
    with pytest.raises(BaseModelError) as caught:
        load_base(str(base), dtype="float32")
    message = str(caught.value)
    assert "\n" not in message
    for word in (base.name, *words):
        assert word in message, message


@pytest.fixture
def base(tiny_llama_folder, tmp_path):
    return shutil.copytree(tiny_llama_folder, tmp_path / "base")


BYTES = {
    "nothing": b"",
    "NUL": b"\0" * 100,
    "half": b'{"model_type": "llama", "hidden',
    "no object": b"[1]",
    "null": b"null",
    "no UTF-8": b'{"model_type": "\xff"}',
    "brackets": b"[" * 200_000,
    "braces": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "digits": b'{"model_type": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("damage", BYTES)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_no_json_object(name, damage, base):
    (base / name).write_bytes(BYTES[damage])
    refused(base, "its config.json is damaged" if name == "config.json" else "the tokenizer of")


CONFIGS = {
    "hidden_size": ("abc", [1], -1, 0, 2**60),
    "num_hidden_layers": (10**9, -3),
    "num_labels": (10**9,),
    "vocab_size": (2**40,),
    "architectures": ([3], "Llama", {"a": 1}),
    "model_type": (["x"], "\0", "nope"),
    "rope_parameters": (3, {"rope_type": "x"}),
    "hidden_act": ("nope", []),
    "id2label": ([],),
    "quantization_config": (3, {"quant_method": "gptq"}),
    "dtype": ("float99", []),
    "pad_token_id": (10**9,),
    "transformers_weights": ("../../x.safetensors",),
    "layer_types": (["a"],),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CONFIGS.items() for value in values])
def test_impossible_values_in_the_config(name, value, base):
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    refused(base)


TOKENIZERS = {
    "an id of 2^40": lambda content: content["model"]["vocab"].update(a=2**40),
    "a merge of unknown tokens": lambda content: content["model"].update(merges=[["a", "ሴ"]]),
    "merges of the wrong type": lambda content: content["model"].update(merges=5),
    "no model": lambda content: content.pop("model"),
}


@pytest.mark.parametrize("damage", TOKENIZERS)
def test_impossible_tokenizers(damage, base):
    content = json.loads((base / "tokenizer.json").read_text())
    TOKENIZERS[damage](content)
    (base / "tokenizer.json").write_text(json.dumps(content))
    refused(base, "the tokenizer of")


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8 + b"{}", 100, 50_000])
def test_cut_off_weights(content, base):
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:content] if isinstance(content, int) else content)
    refused(base)


class TestIndex:
    @pytest.fixture
    def index(self, base):
        """The index of weights in two files."""
        tensors = load_file(base / "model.safetensors")
        (base / "model.safetensors").unlink()
        parts = {"model-1.safetensors": {ELEMENT: tensors.pop(ELEMENT)}, "model-2.safetensors": tensors}
        for name, part in parts.items():
            save_file(part, base / name, {"format": "pt"})
        weight_map = {tensor: name for name, part in parts.items() for tensor in part}
        index = base / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return index

    def rename(self, index, name):
        index.write_text(index.read_text().replace("model-1.safetensors", name))

    def test_a_sound_index(self, index, base):
        load_base(str(base))

    def test_a_missing_shard(self, index, base):
        (base / "model-1.safetensors").unlink()
        refused(base, "its model.safetensors.index.json names 'model-1.safetensors', which is missing")

    @pytest.mark.parametrize(
        "name", ["../model-1.safetensors", "{root}/model-1.safetensors", "a/../../model-1.safetensors"]
    )
    def test_a_shard_outside_the_folder(self, name, index, base, tmp_path):
        shutil.move(base / "model-1.safetensors", tmp_path)
        (base / "a").mkdir()
        self.rename(index, name.format(root=tmp_path))
        refused(base, "which is outside its folder")

    @pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {}}'])
    def test_a_damaged_index(self, content, index, base):
        index.write_text(content)
        refused(base, "damaged")


class TestGguf:
    @pytest.fixture(scope="class")
    def sound(self, tmp_path_factory):
        return DamagedGguf(tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf"))

    @pytest.fixture
    def changed(self, sound, tmp_path):
        def change(start: bytes, offset: int, code: str, value: int) -> Path:
            """Write a file with another number `offset` bytes behind `start`."""
            content = bytearray(sound.content)
            struct.pack_into(f"<{code}", content, sound.content.index(start) + len(start) + offset, value)
            file = tmp_path / "changed.gguf"
            file.write_bytes(content)
            return file

        return change

    def test_a_sound_file(self, sound, tmp_path):
        (tmp_path / "sound.gguf").write_bytes(sound.content)
        header = read_gguf_header(tmp_path / "sound.gguf")
        assert header.metadata["tokenizer.ggml.pre"] == "gpt-2"
        assert header.metadata["llama.block_count"] == 2
        assert header.shapes["token_embd.weight"] == (64, 320)
        assert len(header.shapes) == 21
        load_base(str(tmp_path / "sound.gguf"))

    def test_a_header_that_is_cut_off_anywhere(self, sound, tmp_path):
        file = tmp_path / "cut.gguf"
        for length in [*range(64), *range(64, sound.end, 61), sound.end - 1]:
            file.write_bytes(sound.content[:length])
            with pytest.raises(
                BaseModelError, match=r"cut.gguf (is damaged: it ends in the|is not a GGUF file|cannot be)"
            ):
                read_gguf_header(file)

    def test_a_cut_off_tensor(self, sound, tmp_path):
        (tmp_path / "cut.gguf").write_bytes(sound.content[:-1])
        refused(tmp_path / "cut.gguf", "ends behind the end of the file")

    @pytest.mark.parametrize(
        ("start", "offset", "code", "value", "message"),
        [
            (b"GGUF", 0, "I", 9, "its version is 9"),
            (b"GGUF", 4, "Q", 2**60, "its header announces 1152921504606846976 tensors"),
            (b"GGUF", 12, "Q", 2**60, "its header announces 1152921504606846976 entries"),
            (b"GGUF", 20, "Q", 2**62, "a string in its header has 4611686018427387904 bytes"),
            (b"llama.block_count", 0, "I", 77, "'llama.block_count' is of the unknown type 77"),
            (b"llama.block_count", 4, "I", 2**31, "llama.block_count is 2147483648"),
            (b"llama.block_count", 4, "I", 1, "llama.block_count is 1, and the last tensor is of block 1"),
            (b"llama.embedding_length", 4, "I", 2**31, "llama.embedding_length is 2147483648"),
            (b"llama.rope.dimension_count", 4, "I", 2**32 - 1, "llama.rope.dimension_count is 4294967295"),
            (b"tokenizer.ggml.tokens", 8, "Q", 2**60, "'tokenizer.ggml.tokens' announces 1152921504606846976 elements"),
            (b"tokenizer.ggml.tokens", 4, "I", 9, "'tokenizer.ggml.tokens' is an array of the type 9"),
            (b"tokenizer.ggml.tokens", 16, "Q", 2**17, "a string in its header has 131072 bytes"),
            (b"blk.0.attn_q.weight", 0, "I", 2**31, "tensor 'blk.0.attn_q.weight' has 2147483648 dimensions"),
            (b"blk.0.attn_q.weight", 4, "Q", 2**60, "ends behind the end of the file"),
            (b"blk.0.attn_q.weight", 4, "Q", 0, "has the shape (0, 64)"),
            (b"blk.0.attn_q.weight", 20, "I", 99, "is of the unknown type 99"),
            (b"blk.0.attn_q.weight", 20, "I", 12, "has rows of 64 numbers in blocks of 256"),
            (b"blk.0.attn_q.weight", 24, "Q", 2**60, "ends behind the end of the file"),
            (b"blk.0.attn_q.weight", 24, "Q", 33, "is not aligned to 32 bytes"),
            (b"blk.0.attn_q.weigh", 0, "B", 255, "a text in its header is not UTF-8"),
            (b"blk.0.attn_", 0, "B", ord("k"), "it has two tensors 'blk.0.attn_k.weight'"),
            (b"blk.0.attn_q.weigh", 0, "B", ord("x"), "it has no weights for model.layers.0.self_attn.q_proj.weight"),
        ],
    )
    def test_hostile_numbers(self, start, offset, code, value, message, changed):
        refused(changed(start, offset, code, value), message)

    @pytest.mark.parametrize("alignment", [0, 3, 2**31, "a text"])
    def test_alignments(self, alignment, sound, tmp_path):
        entry = struct.pack("<Q", 17) + b"general.alignment"
        text = str(alignment).encode()
        is_number = isinstance(alignment, int)
        entry += struct.pack("<II", 4, alignment) if is_number else struct.pack("<IQ", 8, len(text)) + text
        content = bytearray(sound.content[:24] + entry + sound.content[24:])
        struct.pack_into("<Q", content, 16, len(sound.entries[0]) + 1)
        (tmp_path / "odd.gguf").write_bytes(content)
        refused(tmp_path / "odd.gguf", "behind the end" if alignment == 2**31 else "its alignment is")

    def test_arrays_inside_arrays(self, sound, tmp_path):
        value = struct.pack("<II", 9, 9) + struct.pack("<QI", 1, 9) * 50_000 + struct.pack("<QI", 1, 4)
        entry = struct.pack("<Q", 4) + b"deep" + value
        content = bytearray(sound.content[:24] + entry + sound.content[24:])
        struct.pack_into("<Q", content, 16, len(sound.entries[0]) + 1)
        (tmp_path / "deep.gguf").write_bytes(content)
        refused(tmp_path / "deep.gguf", "'deep' is an array of the type 9")

    def test_random_damage(self, sound, tmp_path):
        """A small sample of the soak test."""
        file, messages = tmp_path / "damaged.gguf", []
        for seed in range(60):
            file.write_bytes(sound.of(seed))
            messages.append(refusal(file))
        assert not any("\n" in message for message in messages if message)
        assert 0 < messages.count(None) < 30


def test_a_base_is_read_through_links(base, tmp_path):
    """Large files often lie on another disk."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in base.iterdir():
        (linked / file.name).symlink_to(file)
    expected = load_base(str(base)).model.state_dict()
    assert torch.equal(load_base(str(linked)).model.state_dict()[ELEMENT], expected[ELEMENT])
