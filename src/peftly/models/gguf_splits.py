"""How the tokenizer of a GGUF file prepares text before merges are applied, as llama.cpp does."""

from pathlib import Path
from typing import TYPE_CHECKING

from peftly.errors import BaseModelError
from peftly.models.gguf_header import GgufHeader
from peftly.utils import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["set_up_splitting"]

_WORDS = frozenset(
    (
        *("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code"),
        *("roberta-bpe", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais"),
        *("trillion", "granite-docling"),
    )
)
"""Names of GPT-2's expression, which transformers uses for every name that it does not know."""

_SINGLE_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
)
"""Names of the rule that splits digits before GPT-2's expression is applied; transformers does not know the rule."""

_LLAMA3 = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"}
)
_QWEN = frozenset({"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "qwen35"})
_OTHERS = frozenset({"dbrx", "smaug-bpe", "tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"})
"""Names that transformers knows."""

_IGNORES_MERGES = _LLAMA3 | {"tekken"}
"""Names of tokenizers that keep a piece whole that is a token, without a look at the merges."""

_NORMALIZES = frozenset({"qwen2", "qwen35"})
"""Names of tokenizers that convert text to Unicode's NFC form, which llama.cpp leaves out."""


def set_up_splitting(file: Path, header: GgufHeader, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a tokenizer that transformers made from a GGUF file split text as its model was trained.

    Args:
        file: the GGUF file, for messages.
        header: its header.
        tokenizer: the tokenizer, which is changed in place.

    Raises:
        BaseModelError: the file names a way of splitting that is not known here.
    """
    from tokenizers import normalizers, pre_tokenizers

    kind = header.metadata.get("tokenizer.ggml.model")
    if kind == "llama" and not str(header.metadata.get("general.architecture")).startswith("gemma"):
        _mark_spaces(tokenizer, prefix=header.metadata.get("tokenizer.ggml.add_space_prefix") is not False)
    if kind != "gpt2":
        return
    name, backend = header.metadata.get("tokenizer.ggml.pre"), tokenizer.backend_tokenizer
    if name in (None, "default"):
        warn(
            f"{file} does not say how its tokenizer splits text: GPT-2's way is taken, with which answers may be worse"
        )
        return
    if name not in _WORDS | _SINGLE_DIGITS | _LLAMA3 | _QWEN | _OTHERS:
        raise BaseModelError(f"{file} has a tokenizer that splits text as {name!r}, which is not supported")
    if name in _SINGLE_DIGITS:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if name in _NORMALIZES:
        backend.normalizer = normalizers.NFC()
    if name in _IGNORES_MERGES:
        backend.model.ignore_merges = True


def _mark_spaces(tokenizer: "PreTrainedTokenizerBase", *, prefix: bool) -> None:
    """Let a sentencepiece tokenizer write spaces as llama.cpp does; transformers ignores that a file has no prefix.

    Args:
        tokenizer: the tokenizer, which is changed in place.
        prefix: whether a space is put in front of a text, and of the text behind a special token.
    """
    from tokenizers import decoders, normalizers

    backend, space = tokenizer.backend_tokenizer, "\N{LOWER ONE EIGHTH BLOCK}"
    marks = normalizers.Replace(" ", space)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(space), marks]) if prefix else marks
    backend.pre_tokenizer = None
    steps = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
