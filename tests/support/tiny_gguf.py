"""Tiny models and tokenizers of the kinds that are written to GGUF, and GGUF files read back by transformers."""

import gguf
import pytest
import torch
import transformers as tf
from data_tokenizers import CORPUS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from peftly.exporting.gguf import write_model

ROWS = 320  # number of embeddings: more than the tokenizer has tokens
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
    """Return the pre-tokenizer that llama.cpp calls `name`."""
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
    """A random model, with random norms and biases. For any qwen3, transformers reads heads of 128 dimensions."""
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


def make_sentencepiece(*, prefix):
    """A tokenizer as Llama 2's: BPE over characters, with bytes for the others, and spaces marked in the text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    marks = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), marks]) if prefix else marks
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_sentencepiece(file, tokenizer, prefix):
    """Write a tiny llama with a tokenizer of `make_sentencepiece`; a prefix of None is not stated in the file."""
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    kinds = [gguf.TokenType.UNKNOWN, *2 * [gguf.TokenType.CONTROL], *256 * [gguf.TokenType.BYTE]]

    def add_tokenizer(writer, *_, **__):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(max(0, number - 258)) for number in range(len(tokens))])
        writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (len(tokens) - len(kinds))])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)
        if prefix is not None:
            writer.add_add_space_prefix(prefix)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftly.exporting.gguf.add_tokenizer", add_tokenizer)
        write_model(file, make_model("llama", vocab_size=len(tokens)), None, "f32", name="m")
