"""Tokenizers in GGUF files, and tokenizers that llama.cpp does not support."""

import json

import pytest
from gguf import GGUFReader
from tiny_gguf import ROWS, TEMPLATE, make_model, make_tokenizer

from peftly.errors import BaseModelError
from peftly.exporting.gguf import write_model
from peftly.exporting.gguf_tokenizer import pre_tokenizer_name


def fields(folder, tokenizer, **changes):
    write_model(folder / "m.gguf", make_model("qwen2", **changes), tokenizer, "f32", name="m")
    reader = GGUFReader(folder / "m.gguf")
    start = "tokenizer.ggml."
    return {key.removeprefix(start): field.contents() for key, field in reader.fields.items() if start in key}


def test_kinds_and_ids(tmp_path):
    tokenizer = make_tokenizer("qwen2", bos=True)
    found = fields(tmp_path, tokenizer)
    size = len(tokenizer)
    assert len(found["tokens"]) == len(found["token_type"]) == ROWS
    assert found["tokens"][:size] == [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda t: t[1])]
    assert found["tokens"][size] == f"[PAD{size}]"
    assert found["token_type"][:4] == [3, 3, 3, 1]
    assert found["token_type"][size - 2 :] == [4, 4, *[5] * (ROWS - size)]
    ids = {key: found.get(f"{key}_token_id") for key in ("bos", "eos", "padding", "unknown")}
    assert ids == {"bos": 1, "eos": 2, "padding": 0, "unknown": None}
    assert (found["add_bos_token"], found["add_eos_token"], found["add_space_prefix"]) == (True, False, False)
    assert (found["model"], found["pre"]) == ("gpt2", "qwen2")


def test_the_config_names_the_first_token_where_the_tokenizer_does_not(tmp_path):
    found = fields(tmp_path, make_tokenizer(), bos_token_id=1)
    assert (found["bos_token_id"], found["add_bos_token"]) == (1, False)


def test_several_chat_templates(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": TEMPLATE, "tool_use": "other"}
    write_model(tmp_path / "m.gguf", make_model("qwen2"), tokenizer, "f32", name="m")
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["tokenizer.chat_template.tool_use"].contents() == "other"


def test_forms_of_unicode_are_mentioned(tmp_path):
    for split, count in (("gpt-2", 0), ("qwen2", 1)):
        notes = write_model(tmp_path / "m.gguf", make_model("qwen2"), make_tokenizer(split), "f32", name="m")
        assert sum("NFC" in note for note in notes) == count


def test_more_tokens_than_rows(tmp_path):
    with pytest.raises(BaseModelError, match="ids up to 301, and the model has 200 embeddings"):
        fields(tmp_path, make_tokenizer(), vocab_size=200)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"byte_fallback": True}}, "sentencepiece's BPE"),
        ({"model": {"type": "Unigram"}}, "a tokenizer of Unigram cannot be written"),
        ({"normalizer": {"type": "Lowercase"}}, r"normalises text \(Lowercase\)"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "marks parts of words"),
        ({"model": {"ignore_merges": True}}, r"no name for how the tokenizer splits text \(words\)"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "no name for how the tokenizer splits text"),
        ({"pre_tokenizer": None}, r"\(not at all\)"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_support(change, message):
    parts = json.loads(make_tokenizer().backend_tokenizer.to_str())
    for key, value in change.items():
        parts[key] = {**parts[key], **value} if key == "model" else value
    with pytest.raises(BaseModelError, match=message):
        pre_tokenizer_name(parts)
