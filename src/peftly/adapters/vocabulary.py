"""The vocabulary of a model: its input embedding and its output head, and their resize."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.adapters.files import escaped
from peftly.adapters.state import attached
from peftly.errors import AdapterError, MethodError
from peftly.injection import (
    LAYER_ADAPTERS,
    VirtualTokens,
    base_modules,
    copied_modules,
    invalidate_cached_tensors,
    is_within,
)
from peftly.utils import quiet

__all__ = ["ResizeVocabulary", "SetEmbedding", "resize_vocabulary", "vocabulary_layers", "vocabulary_size"]


def vocabulary_layers(model: Any) -> dict[str, Any]:
    """Return the input embedding and the output head of a transformers model, by path; empty for other models."""
    if not isinstance(model, PreTrainedModel):
        return {}
    try:
        found = [model.get_input_embeddings(), model.get_output_embeddings()]
    except (NotImplementedError, AttributeError):  # a model of images or sound
        return {}
    if not isinstance(found[0], nn.Embedding):
        return {}
    paths, shape = {id(module): path for path, module in base_modules(model)}, found[0].weight.shape[:1]
    return {
        paths[id(layer)]: layer
        for layer in found
        if id(layer) in paths
        and isinstance(weight := getattr(layer, "weight", None), Tensor)
        and weight.shape[:1] == shape
    }


def vocabulary_size(model: nn.Module) -> int | None:
    """Return the number of embeddings of a model; None for a model without an embedding of token ids."""
    embedding = next(iter(vocabulary_layers(model).values()), None)
    return None if embedding is None else len(embedding.weight)


def resize_vocabulary(model: Any, size: int, source: Path) -> None:
    """Give the base of an adapter as many embeddings as the adapter has tokens; new ones are the mean of the others.

    Args:
        model: model without adapters.
        size: number of embeddings.
        source: folder of the adapter, for messages.

    Raises:
        AdapterError: the layers cannot be resized.
    """
    before = {path: len(layer.weight) for path, layer in vocabulary_layers(model).items()}
    try:
        with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
            model.resize_token_embeddings(size, mean_resizing=False)
            for path, layer in vocabulary_layers(model).items():
                for parameter in layer.parameters(recurse=False):
                    parameter[before[path] :] = parameter[: before[path]].float().mean(0).to(parameter.dtype)
    except Exception as error:
        raise AdapterError(
            f"{source} was trained with a vocabulary of {size} tokens, to which this base cannot be resized: "
            f"{escaped(error)}; open the base without quantisation and without device_map"
        ) from error


class ResizeVocabulary:
    """`resize_token_embeddings` of an adapted model: refused where an adapter has weights for each token."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the vocabulary, as the method of the class does.

        Raises:
            MethodError: an adapter has weights for each token of the vocabulary.
        """
        if new_num_tokens not in (None, vocabulary_size(self.model)) or args or kwargs.get("pad_to_multiple_of"):
            for path, name in _adapters_with_vocabulary(self.model):
                raise MethodError(
                    f"resize_token_embeddings: the adapter {name!r} has weights for each token of the vocabulary, in "
                    f"{path}; resize before attach, or detach the adapter first"
                )
        embedding: nn.Module = type(self.model).resize_token_embeddings(self.model, new_num_tokens, *args, **kwargs)
        invalidate_cached_tensors()
        return embedding


class SetEmbedding:
    """`set_input_embeddings` or `set_output_embeddings` of an adapted model: no adapted layer is replaced."""

    def __init__(self, model: PreTrainedModel, method: str) -> None:
        self.model, self.method = model, method

    def __call__(self, value: nn.Module) -> None:
        """Replace the layer, as the method of the class does.

        Raises:
            MethodError: an adapter changes the layer, and would be lost with it.
        """
        before: Any = getattr(self.model, self.method.replace("set_", "get_"))()
        if value is not before and (adapters := getattr(before, LAYER_ADAPTERS, None)):
            raise MethodError(
                f"{self.method} would replace a layer that the adapter {next(iter(adapters))!r} changes; detach the "
                "adapter first"
            )
        getattr(type(self.model), self.method)(self.model, value)


def _adapters_with_vocabulary(model: Any) -> Iterator[tuple[str, str]]:
    """Yield the path of each layer of the vocabulary for which an adapter has weights, and the name of the adapter."""
    shared = {parameter for layer in vocabulary_layers(model).values() for parameter in layer.parameters(recurse=False)}
    copied = {name: copied_modules(model, name) for name in attached(model)}
    for path, layer in base_modules(model):
        if not shared.intersection(layer.parameters(recurse=False)):
            continue
        changes = getattr(layer, LAYER_ADAPTERS, {}).items()
        yield from ((path, name) for name, change in changes if not isinstance(change, VirtualTokens))
        yield from ((path, name) for name, paths in copied.items() if is_within(path, paths))
