"""GGUF files opened as ordinary transformers models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError
from peftly.models.gguf_header import read_gguf_header
from peftly.utils import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["convert_gguf", "gguf_config", "gguf_tokenizer", "open_gguf"]

# llama.cpp's names of the tokenizers that split digits before GPT-2's expression is applied. Transformers reads their
# vocabulary but not this rule: without the rule "123" would be merged in ways that the model has never seen.
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})


def open_gguf(file: Path, dtype: "torch.dtype") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model in a GGUF file, its weights dequantized to `dtype`, and its tokenizer.

    Raises:
        BaseModelError: the file is not in GGUF's format, damaged, or not complete.
    """
    import transformers

    read_gguf_header(file)
    # Quantized weights, the default, would fetch compute kernels from the Hub, and could not be saved or trained.
    dequantized = transformers.GgufConfig(dequantize=True)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        **_location(file), dtype=dtype, quantization_config=dequantized, output_loading_info=True
    )
    if report["missing_keys"]:
        raise BaseModelError(f"{file} is not complete: it has no weights for {min(report['missing_keys'])}")
    return model, gguf_tokenizer(file, model.config)


def gguf_config(file: Path) -> "PreTrainedConfig":
    """Return the config of the model in a GGUF file; no weights are read.

    Raises:
        BaseModelError: the file is not in GGUF's format, or damaged.
    """
    import transformers

    read_gguf_header(file)
    return transformers.AutoConfig.from_pretrained(**_location(file))


def gguf_tokenizer(file: Path, config: "PreTrainedConfig") -> "PreTrainedTokenizerBase":
    """Return the tokenizer in a GGUF file; no weights are read.

    Args:
        file: the GGUF file.
        config: config of its model, which has the ids of special tokens and the longest input.

    Raises:
        BaseModelError: the file is not in GGUF's format, or damaged.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(**_location(file))
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = getattr(config, f"{name}_id", None)
        if isinstance(token_id, int):  # transformers 5.17 takes the first special token for all three
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))
    if read_gguf_header(file).metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        _split_digits(tokenizer)
    return tokenizer


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model and tokenizer in `file` to `folder`, in bf16, as safetensors: they open ten times faster."""
    import torch

    with quiet():
        model, tokenizer = open_gguf(file, torch.bfloat16)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _location(file: Path) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that name a GGUF file."""
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}


def _split_digits(tokenizer: "PreTrainedTokenizerBase") -> None:
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
