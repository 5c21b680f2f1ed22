"""A byte-level BPE tokenizer as GGUF has it: tokens and their kinds, merges, how text is split, special ids."""

import json
from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["add_tokenizer", "pre_tokenizer_name"]

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_WORDS.replace("DIGITS", r"\p{N}"), "bytes"): "qwen2",
    (_WORDS.replace("DIGITS", r"\p{N}{1,3}"), "bytes"): "llama-bpe",
}
"""What llama.cpp calls the ways to split a text before merging; it holds the expressions themselves.

"words": GPT-2's expression, "bytes": none, "digits": every digit for itself."""

_WHOLE_WORDS_FIRST = ("llama-bpe",)
"""Those with which llama.cpp takes a piece that is a token as it is, however it would be merged."""


def add_tokenizer(writer: Any, tokenizer: "PreTrainedTokenizerBase", rows: int, bos: int | None = None) -> list[str]:
    """Add a tokenizer to a GGUF file.

    Args:
        writer: a `GGUFWriter`.
        tokenizer: of byte-level BPE.
        rows: of the model's embedding; ids that have no token are filled up.
        bos: the id of the first token, where the tokenizer names none.

    Returns:
        What the file cannot say of it.

    Raises:
        BaseModelError: llama.cpp has no such tokenizer, or it has more tokens than the model.
    """
    from gguf import TokenType

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BaseModelError(f"{type(tokenizer).__name__} is no tokenizer of the tokenizers library")
    parts = json.loads(backend.to_str())
    name = pre_tokenizer_name(parts)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if max(vocabulary.values()) >= rows:
        raise BaseModelError(f"the tokenizer has ids up to {max(vocabulary.values())}, and the model {rows} rows")
    tokens = [f"[PAD{place}]" for place in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    for token, place in vocabulary.items():
        tokens[place], kinds[place] = token, TokenType.NORMAL
    for added in parts["added_tokens"]:
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = parts["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _add_special_ids(writer, tokenizer, bos)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": key, "template": value} for key, value in template.items()]
    if template:
        writer.add_chat_template(template)
    is_as_read = parts["normalizer"] is None
    return [] if is_as_read else ["llama.cpp reads text as it is: bring it into Unicode's NFC form first"]


def pre_tokenizer_name(parts: dict[str, Any]) -> str:
    """Return what llama.cpp calls the tokenizer whose `tokenizer.json` is `parts`.

    Raises:
        BaseModelError: it has no name for it.
    """
    model, normalizer = parts["model"], parts["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        kind = "sentencepiece's BPE" if model["type"] == "BPE" else model["type"]
        raise BaseModelError(f"a tokenizer of {kind} cannot be written to GGUF: byte-level BPE only")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise BaseModelError(f"the tokenizer normalises text ({normalizer['type']}), which llama.cpp does not do")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise BaseModelError("the tokenizer marks the parts of words, which llama.cpp's byte-level BPE does not do")
    steps = _steps(parts["pre_tokenizer"])
    name = _SPLITS.get(steps)
    if name is None or bool(model.get("ignore_merges")) != (name in _WHOLE_WORDS_FIRST):
        raise BaseModelError(f"llama.cpp has no name for how the tokenizer splits text ({', '.join(steps)})")
    return name


def _steps(pre_tokenizer: dict[str, Any] | None) -> tuple[str, ...]:
    """Return how a text is split, step by step, in the words of `_SPLITS` or in ones that it does not know."""
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
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    if ids["bos"] is None:
        ids["bos"] = bos
    for name, number in ids.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    around = tokenizer("a").input_ids
    writer.add_add_bos_token(len(around) > 1 and around[0] == ids["bos"])
    writer.add_add_eos_token(len(around) > 1 and around[-1] == ids["eos"])
    writer.add_add_space_prefix(False)
