"""The folder of a merged model: what it may replace, how it is written and read back."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from peftly.errors import ConfigError
from peftly.merging.merged_card import CARD, LICENCES, is_merged_model
from peftly.models import TASKS, Base
from peftly.utils import bytes_text, check_place, nearest, quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import TaskName

_MODEL = (CARD, "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
_RARER = ("chat_template*", "normalizer.json", "source.spm", "target.spm", "bpe.codes")
WRITTEN = (*_MODEL, *_TOKENIZER, *_RARER)
"""What transformers calls the files of a model and its tokenizer."""

__all__ = ["check_out", "check_room", "read_back", "write"]


def check_out(out: Path, max_shard_size: str, *, overwrite: bool) -> None:
    """Refuse a folder that a merged model cannot have; nothing is changed.

    Raises:
        ConfigError: it is a file, holds a model already, or holds something else; or a size that is none.
    """
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]I?B", max_shard_size, re.IGNORECASE):
        raise ConfigError(f"max_shard_size={max_shard_size!r} is no size such as 5GB or 500MB")
    check_place(out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_merged_model(out):
        raise ConfigError(f"out: {out} exists and holds files that are no merged model; choose a new or empty folder")
    foreign = sorted(path.name for path in out.iterdir() if not _is_written(path))
    if foreign:
        raise ConfigError(
            f"out: {out} holds {foreign[0]}, which no merge has written; move it, or choose another folder"
        )
    if not overwrite:
        raise ConfigError(f"out: {out} holds a merged model; choose another folder, or replace it with --overwrite")


def _is_written(path: Path) -> bool:
    """Whether a merge may have written a file, or a folder, of this name."""
    if path.is_dir():
        return path.name == "additional_chat_templates"
    return any(path.match(pattern) for pattern in (*WRITTEN, *LICENCES))


def check_room(out: Path, model: "PreTrainedModel", dtype: "torch.dtype") -> None:
    """Refuse a folder in which the merged model does not fit, or that is the model's own base.

    Raises:
        ConfigError: it does not.
    """
    base = Path(model.name_or_path)
    if base.exists() and base.resolve() == out.resolve():
        raise ConfigError(f"out: {out} is the base of this adapter, which would be lost; choose another folder")
    # What is tied counts as often as it is there, for merging may untie it.
    numbers = sum(parameter.numel() for _, parameter in model.named_parameters(remove_duplicate=False))
    place = nearest(out)
    free = shutil.disk_usage(place).free
    if free < numbers * dtype.itemsize:
        size = bytes_text(numbers * dtype.itemsize)
        raise ConfigError(f"out: the merged model takes up to {size}, and {place} has {bytes_text(free)} left")


def write(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    dtype: "torch.dtype",
    folder: Path,
    max_shard_size: str,
) -> None:
    """Write a model without adapters, which is in `dtype` afterwards, and its tokenizer."""
    with quiet():
        model.to(dtype)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)


def read_back(folder: Path, task: "TaskName | None") -> Base:
    """Open a folder as anybody would, with nothing of peftly."""
    import transformers

    kind = getattr(transformers, TASKS[task].auto_class if task else "AutoModel")
    with quiet():
        model = kind.from_pretrained(folder, local_files_only=True)
        return Base(model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True))
