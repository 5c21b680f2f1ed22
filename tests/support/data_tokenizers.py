"""Tiny tokenizers of the usual families, trained on a few lines without a network."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Tweet text : @shop my order never arrived and nobody answers Label : complaint",
    "Tweet text : thanks for the quick help, great service today Label : no complaint",
    "The train was late again and the app crashed twice.\nLabel: complaint",
    "What time do you open on Sunday? I love the new store!\nLabel: no complaint",
    "Instruction: say it in one word\nInput: hello\nAnswer: yes",
    "user assistant system prompt completion question answer",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _template(tokenizer: Tokenizer, single: str) -> None:
    special = [(name, tokenizer.token_to_id(name)) for name in single.split() if name != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def _byte_level(start: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if start:
        _template(tokenizer, "<s> $A")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _unigram(scheme: str, single: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=180, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _template(tokenizer, single)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _whole_text(prefix: bool) -> PreTrainedTokenizerFast:
    """BPE merges across words with a fallback to bytes, as in Llama 2 (with `prefix`) and Gemma."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    every_byte = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=SPECIAL + every_byte, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    _template(tokenizer, "<s> $A")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _template(tokenizer, "[CLS] $A [SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


_FAMILIES = {
    "byte_level": lambda: _byte_level(start=False),
    "byte_level_start": lambda: _byte_level(start=True),
    "unigram_prefix": lambda: _unigram("always", "<s> $A"),
    "unigram_bare": lambda: _unigram("never", "<s> $A"),
    "unigram_end": lambda: _unigram("always", "$A </s>"),
    "whole_text_prefix": lambda: _whole_text(prefix=True),
    "whole_text": lambda: _whole_text(prefix=False),
    "wordpiece": _wordpiece,
}
FAMILIES = tuple(_FAMILIES)
LOSSLESS = ("byte_level", "byte_level_start", "whole_text_prefix", "whole_text")


@cache
def family(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a family. The tokenizer is shared: copy it before a change."""
    return _FAMILIES[name]()
