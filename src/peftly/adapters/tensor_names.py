"""Names of tensors in files that a training loop or another tool wrote, instead of PEFT's `save_pretrained`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from peftly.errors import AdapterError

__all__ = ["plain_name", "with_known_names", "with_plain_names"]

Value = TypeVar("Value")

_PREFIX = "base_model.model."
_WRAPPER = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Modules around a model, or around parts of it: data parallelism, compilation, sharding, checkpointing."""

_ADAPTER_NAME = re.compile(
    r"(\.lora_[AB])\.[^.]+(\.(?:weight|bias))|(\.lora_embedding_[AB]|\.ia3_l)\.[^.]+"
    r"|(\.lora_magnitude_vector)(?:\.[^.]+)?\.weight|(\.lora_magnitude_vector)\.[^.]+"
)
"""End of a name with the name of the adapter in it, as a state dict has it and a file of PEFT does not."""

_COPY = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")


def plain_name(name: str) -> str:
    """Return the name of a tensor as PEFT's `save_pretrained` writes it.

    Args:
        name: name of a tensor of an adapter in a state dict: with the name of the adapter (`lora_A.default.weight`),
            with wrappers of the model (`module.`, `_orig_mod.`), with the prefix of PEFT twice, or without it.
    """
    name = _WRAPPER.sub("", name)
    while name.startswith(_PREFIX):
        name = name.removeprefix(_PREFIX)
    name = _COPY.sub("", name)
    match = re.search(rf"(?:{_ADAPTER_NAME.pattern})\Z", name)
    if match is not None:
        name = name[: match.start()] + "".join(filter(None, match.groups()))
    return name if name.startswith("base_model.") or "." not in name else _PREFIX + name


def with_plain_names(tensors: Mapping[str, Value], path: object) -> dict[str, Value]:
    """Return the tensors of a file by their plain names, and without the parts of a wrapper that hold no adapter.

    Args:
        tensors: tensors by their names in the file.
        path: path of the file, for messages.

    Raises:
        AdapterError: two names in the file differ in notation only, as those of two adapters do.
    """
    names = {name: plain_name(name) for name in tensors if ".original_module." not in name}
    known = {plain: tensors[name] for name, plain in names.items()}
    for name, plain in names.items():
        if known[plain] is not tensors[name]:
            raise AdapterError(f"{path} has {plain} more than once, as {name} too; give the file of one adapter")
    return known


def with_known_names(tensors: Mapping[str, Value], expected: Collection[str], path: object) -> dict[str, Value]:
    """Return the tensors of a file by the names that an adapter on its model has, where only the notation differs.

    Args:
        tensors: tensors by their names in the file.
        expected: names of the tensors of the adapter.
        path: path of the file, for messages.

    Raises:
        AdapterError: two names in the file differ in notation only, as those of two adapters do.
    """
    known: dict[str, Value] = {}
    for name, value in tensors.items():
        plain = name if name in expected else plain_name(name)
        # Before its version 0.7, PEFT called a trained bias as the base does.
        candidates = (plain, f"{plain.removesuffix('.bias')}.base_layer.bias")
        found = next((candidate for candidate in candidates if candidate in expected), plain)
        if found != name and found in tensors:
            found = name
        if found in known:
            raise AdapterError(f"{path} has {found} more than once, as {name} too; give the file of one adapter")
        known[found] = value
    return known
