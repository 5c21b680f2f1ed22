"""A byte-level BPE tokenizer in GGUF: tokens and their types, merges, pre-tokenizer, special ids."""

import json
from typing import TYPE_CHECKING, Any

from peftly.data import chat_ends
from peftly.errors import BaseModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["add_tokenizer", "pre_tokenizer_name"]

_WORD_EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_WORD_EXPRESSION.replace("DIGITS", r"\p{N}"), "bytes"): "qwen2",
    (_WORD_EXPRESSION.replace("DIGITS", r"\p{N}{1,3}"), "bytes"): "llama-bpe",
}
"""Names of pre-tokenizers in llama.cpp, by the steps that split a text. llama.cpp itself has the expressions.

"words": GPT-2's expression, "bytes": no split, "digits": every digit alone."""

_IGNORE_MERGES = ("llama-bpe",)
"""Pre-tokenizers with which llama.cpp keeps a piece that is a token whole, without a look at the merges."""


def add_tokenizer(
    writer: Any, tokenizer: "PreTrainedTokenizerBase", vocabulary_size: int, bos: int | None = None
) -> list[str]:
    """Add a tokenizer to a GGUF file.

    Args:
        writer: a `GGUFWriter`.
        tokenizer: byte-level BPE tokenizer.
        vocabulary_size: number of the model's embeddings; placeholders fill the ids without a token.
        bos: id of the first token of a text, for a tokenizer that names none.

    Returns:
        Notes on properties of the tokenizer that the file cannot represent.

    Raises:
        BaseModelError: llama.cpp has no such tokenizer, or the tokenizer has more tokens than the model.
    """
    from gguf import TokenType

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BaseModelError(f"{type(tokenizer).__name__} is not from the tokenizers library")
    parts = json.loads(backend.to_str())
    name = pre_tokenizer_name(parts)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if max(vocabulary.values()) >= vocabulary_size:
        raise BaseModelError(
            f"the tokenizer has ids up to {max(vocabulary.values())}, and the model has {vocabulary_size} embeddings"
        )
    tokens = [f"[PAD{number}]" for number in range(vocabulary_size)]
    types = [TokenType.UNUSED] * vocabulary_size
    for token, number in vocabulary.items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = parts["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _add_special_ids(writer, tokenizer, bos)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": key, "template": value} for key, value in template.items()]
    if template:
        writer.add_chat_template(template)
    if parts["normalizer"] is None:
        return []
    return ["llama.cpp does not normalise text: convert it to Unicode's NFC form first"]


def pre_tokenizer_name(parts: dict[str, Any]) -> str:
    """Return the name of a tokenizer's pre-tokenizer in llama.cpp.

    Args:
        parts: content of `tokenizer.json`.

    Raises:
        BaseModelError: llama.cpp has no such tokenizer.
    """
    model, normalizer = parts["model"], parts["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "sentencepiece's BPE" if model["type"] == "BPE" else model["type"]
        raise BaseModelError(f"a tokenizer of {kind} cannot be written to GGUF: byte-level BPE only")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise BaseModelError(f"the tokenizer normalises text ({normalizer['type']}), which llama.cpp does not support")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise BaseModelError("the tokenizer marks parts of words, which llama.cpp's byte-level BPE does not support")
    steps = _steps(parts["pre_tokenizer"])
    name = _SPLITS.get(steps)
    if name is None or bool(model.get("ignore_merges")) != (name in _IGNORE_MERGES):
        raise BaseModelError(f"llama.cpp has no name for how the tokenizer splits text ({', '.join(steps)})")
    return name


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """Return the steps that split a text, by their names in `_SPLITS`; other steps as their JSON or expression."""
    if pre_tokenizer is None:
        return ("not at all",)
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return tuple(step for inner in pre_tokenizer["pretokenizers"] for step in _steps(inner))
    if kind == "ByteLevel" and not pre_tokenizer["add_prefix_space"]:
        return ("words" if pre_tokenizer["use_regex"] else "bytes",)
    if kind == "Digits" and pre_tokenizer["individual_digits"]:
        return ("digits",)
    if kind == "Split" and pre_tokenizer["behavior"] == "Isolated" and not pre_tokenizer["invert"]:
        return (str(pre_tokenizer["pattern"].get("Regex")),)
    return (json.dumps(pre_tokenizer),)


def _add_special_ids(writer: Any, tokenizer: "PreTrainedTokenizerBase", bos: int | None) -> None:
    """Add the ids of special tokens, and whether the tokenizer puts them around a text."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    if ids["bos"] is None:
        ids["bos"] = bos
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    for end in chat_ends(tokenizer).ids[:1]:  # the end of a turn, where it is not the end token of the tokenizer
        if end != ids["eos"]:
            writer.add_eot_token_id(end)
    encoded = tokenizer("a").input_ids
    writer.add_add_bos_token(len(encoded) > 1 and encoded[0] == ids["bos"])
    writer.add_add_eos_token(len(encoded) > 1 and encoded[-1] == ids["eos"])
    writer.add_add_space_prefix(False)
