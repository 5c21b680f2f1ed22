"""Adapters of other tools: their files, read without running code, and the configuration that PEFT has for them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from peftly.errors import AdapterError

__all__ = ["Foreign", "Reader", "lora_config", "read_config", "read_pickle", "read_safetensors"]


class Foreign(NamedTuple):
    """An adapter of another tool, in PEFT's notation.

    Attributes:
        config: content of `adapter_config.json`.
        tensors: tensors by their names in a file of PEFT.
        notes: lines for the user: what was left out.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


class Reader(NamedTuple):
    """Reader of one format.

    Attributes:
        read: function of a folder and the name of the base, if the user has given it.
        files: name of a file by which a folder of the format is known, as a pattern.
    """

    read: Callable[[Path, str | None], Foreign]
    files: str


def lora_config(
    tensors: Iterable[str], rank: int, scaling: float, *, base: str | None, dropout: float = 0.0, dora: bool = False
) -> dict[str, Any]:
    """Return the configuration of a LoRA or DoRA adapter, whose target layers are those that have tensors.

    Args:
        tensors: names of the tensors, as PEFT has them.
        rank: rank of all factors.
        scaling: factor of the update.
        base: name of the base.
        dropout: dropout of the training.
        dora: whether the adapter has magnitudes.
    """
    paths = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in tensors}
    return {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "lora_alpha": scaling * rank,
        "lora_dropout": dropout,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(paths),
        "task_type": "CAUSAL_LM",
        "use_dora": dora,
    }


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in a JSON or YAML file.

    Raises:
        AdapterError: the file is missing, damaged, or holds no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise AdapterError(f"{path} cannot be read: {reason}") from None
    if not isinstance(content, Mapping):
        raise AdapterError(f"{path} should hold an object, and holds a {type(content).__name__}")
    return dict(content)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a pickle, by name. Code in the file is never run.

    Raises:
        AdapterError: the file holds anything else than tensors by name, or is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise AdapterError(
            f"{path} holds other objects than tensors, whose code would run on opening, so it is refused; save it "
            "again with the tool that wrote it, as safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise AdapterError(f"{path} is damaged: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    while isinstance(content, Mapping) and len(content) == 1 and isinstance(next(iter(content.values())), Mapping):
        content = next(iter(content.values()))  # {"model": {...}}
    return _checked(path, content)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file, by name.

    Raises:
        AdapterError: the file is damaged.
    """
    try:
        return _checked(path, load_file(path))
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def _checked(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise AdapterError(f"{path} should hold tensors by name, and holds {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise AdapterError(f"{path} should hold tensors by name, and {name!r} is a {type(tensor).__name__}")
    return dict(content)
