"""Parameters of adapters: their number, as PEFT counts it, and whether training changes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from peftly.adapters import attached
from peftly.injection import adapted_layers, owner

__all__ = ["number_of_parameters", "require_grad", "train_only"]


def number_of_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the number of trainable parameters, and of all, as PEFT counts them.

    A 4-bit weight counts as the numbers that it packs. A trained bias is the bias of the base in PEFT, not a copy, and
    in an encoder-decoder a soft prompt has embeddings for the decoder too, which are never used.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel() or getattr(parameter, "ds_numel", 0)  # a parameter that DeepSpeed has divided
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count * parameter.requires_grad
    for name, adapter in attached(model).items():
        for _, _, change in adapted_layers(model, name):
            total -= 0 if (bias := getattr(change, "bias", None)) is None else bias.numel()
        prompt = adapter.file_tensors().get("prompt_embeddings")
        if prompt is not None:
            unused = (len(prompt) - adapter.config.num_virtual_tokens) * prompt.shape[1]
            total += unused
            trainable += unused * any(parameter.requires_grad for parameter in adapter.parameters().values())
    return trainable, total


def require_grad(model: nn.Module, names: Collection[str], required: bool = True) -> None:
    """Set whether training changes the parameters of some adapters."""
    for path, parameter in model.named_parameters():
        if owner(path) in names and parameter.is_floating_point():
            parameter.requires_grad_(required)


def train_only(model: Any, names: Collection[str]) -> None:
    """Let training change the parameters of these adapters, and of no others."""
    require_grad(model, [name for name in attached(model) if name not in names], False)
    require_grad(model, names)
