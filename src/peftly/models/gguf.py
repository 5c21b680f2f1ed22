"""GGUF files opened as ordinary transformers models, with nothing left in them that says they came from one."""

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from peftly.errors import BaseModelError
from peftly.utils import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["convert_gguf", "open_gguf"]

# What llama.cpp calls the tokenizers that take every digit for itself before GPT-2's splitting. Transformers reads
# their vocabulary but not this rule, so that "123" would be merged in ways the model has never seen.
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})
_STRING = 8  # GGUF's number for a value of that kind


def open_gguf(file: Path, dtype: "torch.dtype") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model in `file` with its weights unpacked to `dtype`, and its tokenizer."""
    import transformers

    with file.open("rb") as start:
        magic = start.read(4)
    if magic != b"GGUF":
        raise BaseModelError(f"{file} is not a GGUF file: it starts with {magic!r}")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
    # Packed weights, the default, would fetch compute kernels from the Hub, and refuse to be saved or trained.
    unpacked = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, quantization_config=unpacked)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    for name in ("bos_token", "eos_token", "pad_token"):
        number = getattr(model.config, f"{name}_id", None)
        if isinstance(number, int):  # transformers 5.17 takes the first special token for all three
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))
    if _pre_tokenizer(file) in _SINGLE_DIGITS:
        _split_digits(tokenizer)
    return model, tokenizer


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer in `file` to `folder`, in bf16, as safetensors: that opens ten times faster."""
    import torch

    with quiet():
        model, tokenizer = open_gguf(file, torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _split_digits(tokenizer: "PreTrainedTokenizerBase") -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _pre_tokenizer(file: Path) -> str | None:
    """Return the file's name for how it splits text; parsing the whole header for it would take seconds."""
    key = b"tokenizer.ggml.pre"
    entry = struct.pack("<Q", len(key)) + key + struct.pack("<I", _STRING)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(entry, 0, 1 << 26)
        if at < 0:
            return None
        at += len(entry)
        (length,) = struct.unpack_from("<Q", content, at)
        return content[at + 8 : at + 8 + length].decode("utf-8", errors="replace")
