"""Prompts of adapters, as PEFT's methods return them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from peftly.adapters import attached
from peftly.errors import MethodError

__all__ = ["prompt_of"]


def prompt_of(model: Any, name: str) -> Tensor:
    """Return the prompt of an adapter as its file holds it.

    Raises:
        MethodError: the adapter has none.
    """
    adapter = attached(model)[name]
    prompt = adapter.file_tensors().get("prompt_embeddings")
    if prompt is None:
        raise MethodError(
            f"{name!r} is {adapter.config.name}, which has no prompt; see get_peft_model_state_dict(model)"
        )
    return prompt
