"""Tensors inside tuples, lists, dictionaries and the outputs of transformers' modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["concatenate_elements", "map_tensors", "select_elements"]


def map_tensors(function: Callable[..., Tensor], *values: Any) -> Any:
    """Return `function` of tensors, or of the tensors inside equal tuples, lists and dictionaries of them.

    Of values of any other kind, such as None, the first is returned.
    """
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if isinstance(first, Mapping):  # and the outputs of transformers' modules
        contents = {key: map_tensors(function, *(value[key] for value in values)) for key in first}
        return type(first)(contents)  # type: ignore[call-arg]
    if isinstance(first, tuple | list):
        items = [map_tensors(function, *each) for each in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def concatenate_elements(*outputs: Tensor, sizes: list[int], order: Tensor) -> Tensor:
    """Return outputs of groups of batch elements as one batch.

    Args:
        outputs: output of each group.
        sizes: number of batch elements of each group.
        order: for each batch element, its index in the groups laid end to end, (batch,).
    """
    # A layer may return one batch element that stands for all (BART's positions).
    expanded = [
        output.expand(size, *output.shape[1:]) if output.shape[0] == 1 else output
        for output, size in zip(outputs, sizes, strict=True)
    ]
    return torch.cat(expanded).index_select(0, order)


def select_elements(value: Any, batch_size: int, indices: Tensor) -> Any:
    """Return the batch elements at `indices` of the batched tensors in `value`, and any other value as it is."""
    return map_tensors(
        lambda tensor: tensor.index_select(0, indices) if tensor.ndim and tensor.shape[0] == batch_size else tensor,
        value,
    )
