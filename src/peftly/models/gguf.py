"""GGUF files opened as ordinary transformers models."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.errors import BaseModelError
from peftly.models.gguf_header import read_gguf_header
from peftly.models.gguf_settings import apply_settings, check_is_model, check_tensors
from peftly.models.gguf_splits import set_up_splitting
from peftly.utils import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["convert_gguf", "gguf_config", "gguf_tokenizer", "open_gguf"]


def open_gguf(file: Path, dtype: "torch.dtype") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Return the model in a GGUF file, its weights dequantized to `dtype`, and its tokenizer.

    Raises:
        BaseModelError: the file is not in GGUF's format, damaged, not complete, or its model has settings or tensors
            that transformers does not have.
    """
    import transformers

    config = gguf_config(file)
    # Quantized weights, the default, would fetch compute kernels from the Hub, and could not be saved or trained.
    dequantized = transformers.GgufConfig(dequantize=True)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        **_location(file), config=config, dtype=dtype, quantization_config=dequantized, output_loading_info=True
    )
    if report["missing_keys"]:
        raise BaseModelError(f"{file} is not complete: it has no weights for {min(report['missing_keys'])}")
    check_tensors(file, read_gguf_header(file), set(model.state_dict()))
    return model, gguf_tokenizer(file, model.config)


def gguf_config(file: Path) -> "PreTrainedConfig":
    """Return the config of the model in a GGUF file; no weights are read.

    Raises:
        BaseModelError: the file is not in GGUF's format, damaged, holds no whole model, or its model has a setting that
            transformers does not have.
    """
    import transformers

    header = read_gguf_header(file)
    check_is_model(file, header)
    config = transformers.AutoConfig.from_pretrained(**_location(file))
    apply_settings(file, header, config)
    return config


def gguf_tokenizer(file: Path, config: "PreTrainedConfig") -> "PreTrainedTokenizerBase":
    """Return the tokenizer in a GGUF file; no weights are read.

    Args:
        file: the GGUF file.
        config: config of its model, which has the ids of special tokens and the longest input.

    Raises:
        BaseModelError: the file is not in GGUF's format, damaged, or its tokenizer splits text in an unknown way.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(**_location(file))
    tokenizer.model_max_length = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    for name in ("bos_token", "eos_token", "pad_token"):
        token_id = getattr(config, f"{name}_id", None)
        if isinstance(token_id, int):  # transformers 5.17 takes the first special token for all three
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token_id))
    set_up_splitting(file, read_gguf_header(file), tokenizer)
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
