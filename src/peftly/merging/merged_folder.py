"""The folder of a merged model: checks before writing, writing, and reading back."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data import chat_ends
from peftly.errors import ConfigError
from peftly.models import Base
from peftly.utils import bytes_text, check_output_folder, nearest_existing_parent, quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["KIND", "check_out", "check_room", "read_back", "write"]

KIND = "a merged model"
"""Kind of the output folder, in its mark."""


def check_out(out: Path, max_shard_size: str, *, overwrite: bool) -> None:
    """Check that a merged model may be written to a folder. Nothing is changed.

    Args:
        out: output folder.
        max_shard_size: maximum size of a weights file.
        overwrite: whether a merged model in the folder may be replaced.

    Raises:
        ConfigError: `out` is a file or holds other files, or `max_shard_size` is not a size.
    """
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})? ?[KMGT]I?B", max_shard_size, re.IGNORECASE):
        raise ConfigError(f"max_shard_size={max_shard_size!r} is not a size such as 5GB or 500MB")
    check_output_folder(out, kind=KIND, overwrite=overwrite)


def check_room(out: Path, model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    """Check that the merged model fits on the disk of `out`, and that `out` is not the folder of its base.

    Args:
        out: output folder.
        model: adapted model.
        dtype: dtype of the written weights.

    Raises:
        ConfigError: the disk is too small, or `out` is the folder of the base.
    """
    base = Path(model.name_or_path)
    if base.exists() and base.resolve() == out.resolve():
        raise ConfigError(f"out: {out} is the base of this adapter, which would be lost; choose another folder")
    # Tied parameters count every time, because merging may untie them.
    size = dtype.itemsize * sum(parameter.numel() for _, parameter in model.named_parameters(remove_duplicate=False))
    parent = nearest_existing_parent(out)
    free = shutil.disk_usage(parent).free
    if free < size:
        raise ConfigError(
            f"out: the merged model takes up to {bytes_text(size)}, and {parent} has {bytes_text(free)} left"
        )


def write(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dtype: "torch.dtype",
    folder: Path,
    max_shard_size: str,
) -> None:
    """Write a model without adapters and its tokenizer.

    Args:
        model: model, which is converted to `dtype`.
        tokenizer: tokenizer of the model.
        dtype: dtype of the written weights.
        folder: output folder.
        max_shard_size: maximum size of a weights file.
    """
    if model.can_generate():
        _stop_at_turns(model, tokenizer)
    with quiet():
        model.to(dtype)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)


def _stop_at_turns(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let the generation of transformers and vLLM stop at the end token, and where the chat template ends a turn."""
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [known] if known is not None else []
    ends = dict.fromkeys(filter(lambda end: end is not None, (*chat_ends(tokenizer).ids, tokenizer.eos_token_id)))
    if new := [end for end in ends if end not in known]:
        model.generation_config.eos_token_id = [*known, *new]


def read_back(folder: Path, model_class: Any) -> Base:
    """Open a model and its tokenizer with transformers alone, or with the class of a pooled head.

    Args:
        folder: folder of the model.
        model_class: class of the model, which `config.architectures` in the folder names.
    """
    import transformers

    with quiet():
        model = model_class.from_pretrained(folder, local_files_only=True)
        return Base(model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True))
