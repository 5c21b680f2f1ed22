"""Embeddings of a base whose vocabulary was resized: the file of an adapter holds them, under the names that PEFT uses.

The embeddings of new tokens are in no file of the base, and every resize draws others. So they are saved with the
adapter, and written into the embedding and the output head of the base when the adapter is loaded. When the last
adapter is detached, the base has its own again.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peftly.adapters.files import TENSORS, escaped
from peftly.adapters.state import ATTRIBUTE, AttachedAdapters, attached
from peftly.adapters.vocabulary import vocabulary_layers, vocabulary_size
from peftly.errors import AdapterError
from peftly.injection import (
    LAYER_ADAPTERS,
    BiasCopy,
    VirtualTokens,
    copied_modules,
    invalidate_cached_tensors,
    is_within,
)
from peftly.methods import METHODS, Adapter, MethodConfig
from peftly.models import vocabulary_in_files
from peftly.utils import warn

if TYPE_CHECKING:
    from peftly.adapters.folder import AdapterFolder

__all__ = [
    "check_vocabulary",
    "embedding_tensors",
    "embeddings_in",
    "put_embeddings",
    "restore_embeddings",
    "rows_restored_on_failure",
    "vocabulary_in_adapter",
    "warn_of_tokens_without_embeddings",
    "with_tied_modules",
]

_OTHER_NAMES = ("", ".base_layer", ".modules_to_save", ".original_module")
"""Parts that PEFT adds to the path of an embedding which it also trains or adapts."""

_ROUNDING = 2.0**-7
"""Largest difference of two embeddings that are equal but for the dtype of the base, absolute and relative."""


def embedding_tensors(adapter: Adapter, always: bool | None = None) -> dict[str, Tensor]:
    """Return the embedding and the output head of a base whose vocabulary was resized, by their names in the file.

    Layers of which the adapter trains copies are left out: the file holds the copies under these names.

    Args:
        adapter: an attached adapter.
        always: whether to return them; None: if the base's files hold another number of embeddings, or if an adapter
            of the model came with embeddings.
    """
    model: Any = adapter.model
    if not (_is_resized(model) if always is None else always):
        return {}
    copied = copied_modules(model, adapter.name)
    tensors: dict[str, Tensor] = {}
    for path, layer in vocabulary_layers(model).items():
        if is_within(path, copied):
            continue
        changes = dict(getattr(layer, LAYER_ADAPTERS, {}))
        is_wrapped_by_peft = not isinstance(changes.get(adapter.name), VirtualTokens | BiasCopy | None)
        prefix = f"{adapter.copies_prefix}{path}{'.base_layer' if is_wrapped_by_peft else ''}"
        for name, parameter in layer.named_parameters(recurse=False):
            tensors[f"{prefix}.{name}"] = parameter
    return tensors


def _is_resized(model: Any) -> bool:
    state: AttachedAdapters = getattr(model, ATTRIBUTE)
    layers = vocabulary_layers(model)
    if not layers:
        return False
    size = vocabulary_size(model)
    return bool(state.embeddings) or any(
        known not in (None, size) for known in (state.vocabulary, vocabulary_in_files(model))
    )


def vocabulary_in_adapter(model: nn.Module, folder: AdapterFolder) -> int | None:
    """Return the number of tokens for which an adapter on disk has weights; None where its tensors do not say.

    Args:
        model: a model of the class of its base.
        folder: the adapter.
    """
    prefix, shapes = METHODS[folder.method.name].adapter.copies_prefix, folder.shapes()
    for path, layer in vocabulary_layers(model).items():
        width: int = layer.weight.shape[-1]
        for name in (f"{prefix}{path}{part}.weight" for part in _OTHER_NAMES):
            if len(shape := shapes.get(name, ())) == 2 and shape[1] == width:
                return shape[0]
        for name, dim in ((f"{prefix}{path}.lora_embedding_A", 1), (f"{prefix}{path}.lora_B.weight", 0)):
            if len(shape := shapes.get(name, ())) == 2:
                return shape[dim]
    return None


def check_vocabulary(model: nn.Module, folder: AdapterFolder) -> None:
    """Do nothing if an adapter on disk has weights for as many tokens as a model has embeddings.

    Raises:
        AdapterError: it has weights for more or fewer tokens.
    """
    size, rows = vocabulary_in_adapter(model, folder), vocabulary_size(model)
    if size not in (None, rows):
        raise AdapterError(
            f"{folder.path} was trained with a vocabulary of {size} tokens, and this base has {rows}; call "
            f"model.resize_token_embeddings({size}) first, or open both with peftly.load"
        )


def embeddings_in(model: nn.Module, adapter: Adapter, names: Iterable[str]) -> dict[str, str]:
    """Return which tensors of a file are embeddings of the base: their names in the file and in the base.

    Args:
        model: model with the adapter.
        adapter: the adapter.
        names: names of the tensors in the file that are not weights of the adapter.
    """
    known = {
        f"{adapter.copies_prefix}{path}{part}.{name}": f"{path}.{name}"
        for path, layer in vocabulary_layers(model).items()
        for name, _ in layer.named_parameters(recurse=False)
        for part in ("", ".base_layer")
    }
    return {name: known[name] for name in names if name in known}


def put_embeddings(model: nn.Module, folder: Path, embeddings: Mapping[str, Tensor], *, is_alone: bool) -> None:
    """Write the embeddings in the file of an adapter into the base, as PEFT does.

    Args:
        model: model with the adapter.
        folder: folder of the adapter, for messages.
        embeddings: embeddings by the names of the parameters in the base.
        is_alone: whether the model has no other adapter.

    Raises:
        AdapterError: their shapes are not those of the base, the base ties layers whose values differ in the file, or
            the model has other adapters, whose embeddings are others.
    """
    state: AttachedAdapters = getattr(model, ATTRIBUTE)
    values: dict[nn.Parameter, Tensor] = {}
    for name, tensor in embeddings.items():
        parameter = model.get_parameter(name)
        if parameter.shape != tensor.shape:
            raise AdapterError(
                f"{folder / TENSORS} does not fit this base: {name} is {tuple(tensor.shape)}, and the base has "
                f"{tuple(parameter.shape)}"
            )
        value = tensor.to(parameter.device, parameter.dtype)
        if not torch.equal(values.setdefault(parameter, value), value):
            raise AdapterError(
                f"{folder / TENSORS} has other values for {name} than for the layer to which this base ties it; open "
                "the base with tie_word_embeddings: false in its config.json"
            )
    state.embeddings.update(values)
    for parameter, value in values.items():
        rows = (parameter != value).reshape(len(value), -1).any(1).nonzero().flatten()
        if not len(rows):
            continue
        if not is_alone:
            raise AdapterError(
                f"{folder} has other embeddings of {len(rows)} tokens than this model with its other adapters; open it "
                "on a base of its own"
            )
        _warn_of_other_base(model, folder, parameter, value)
        state.replaced_rows.append((parameter, rows, parameter[rows].detach().clone()))
        with torch.no_grad():
            parameter[rows] = value[rows]
    invalidate_cached_tensors()
    size = vocabulary_in_files(model) if embeddings else None
    if size is not None:
        warn_of_tokens_without_embeddings(model, folder, size)


def warn_of_tokens_without_embeddings(model: Any, source: Path, rows: int, tokenizer: Any = None) -> None:
    """Warn if new embeddings in a layer are neither those of an adapter's file nor inside a trained copy.

    Args:
        model: model with the adapters.
        source: folder of the adapters, for messages.
        rows: number of embeddings in the files of the base.
        tokenizer: tokenizer with the new tokens, for messages.
    """
    state: AttachedAdapters = getattr(model, ATTRIBUTE)
    copied = [path for name in state.adapters for path in copied_modules(model, name)]
    layers = {path: layer for path, layer in vocabulary_layers(model).items() if not is_within(path, copied)}
    without = [path for path, layer in layers.items() if layer.weight not in state.embeddings]
    size = vocabulary_size(model)
    if not without or size is None or size <= rows:
        return
    new = [token for token, number in (tokenizer.get_vocab() if tokenizer else {}).items() if number >= rows]
    listed = f" ({escaped(', '.join(sorted(new)[:3]))})" if new else ""
    warn(
        f"{source} has {size - rows} tokens{listed} that are not in the files of its base, and no weights of them for "
        f"{' and '.join(without)}: texts with them have other answers than in training",
        stacklevel=5,
    )


def _warn_of_other_base(model: Any, folder: Path, parameter: Tensor, value: Tensor) -> None:
    """Warn if embeddings that were in the files of the base differ, not only those of new tokens."""
    size = vocabulary_in_files(model)
    if size is None:
        return
    own, of_file = parameter[:size].float(), value[:size].float()
    different = ((own - of_file).abs() > _ROUNDING * (1 + own.abs())).reshape(len(own), -1).any(1)
    if different.any():
        warn(
            f"{folder} was trained over a base with other embeddings of {int(different.sum())} tokens; those in its "
            f"{TENSORS} are used, as in PEFT",
            stacklevel=5,
        )


def restore_embeddings(model: nn.Module, count: int = 0) -> None:
    """Give the base its own embeddings again.

    Args:
        model: model with adapters.
        count: number of the first changes that stay.
    """
    state: AttachedAdapters = getattr(model, ATTRIBUTE)
    with torch.no_grad():
        while len(state.replaced_rows) > count:
            parameter, rows, values = state.replaced_rows.pop()
            if int(rows.max()) < len(parameter):  # else the vocabulary is smaller now
                parameter[rows.to(parameter.device)] = values.to(parameter)
    invalidate_cached_tensors()


@contextmanager
def rows_restored_on_failure(model: nn.Module) -> Iterator[None]:
    """Give the base its own embeddings again if the block, which loads adapters, raises anything."""
    before = len(getattr(model, ATTRIBUTE).replaced_rows) if attached(model) else 0
    try:
        yield
    except BaseException:
        if hasattr(model, ATTRIBUTE):
            restore_embeddings(model, before)
        raise


def with_tied_modules(
    model: nn.Module, folder: AdapterFolder, method: MethodConfig, names: Container[str]
) -> MethodConfig:
    """Return the settings of an adapter with the output head among its modules, if PEFT tied it to the embedding.

    With `ensure_weight_tying`, PEFT's configuration names the embedding only, and the file has tensors of both.

    Args:
        model: model that the adapter is about to be attached to.
        folder: files of the adapter.
        method: settings of the adapter.
        names: plain names of its tensors.
    """
    tied: Any = method
    if not folder.peft_config.get("ensure_weight_tying"):
        return method
    prefix = METHODS[tied.name].adapter.copies_prefix
    for path in vocabulary_layers(model):
        if f"{prefix}{path}.weight" in names and not path.endswith(tuple(tied.modules_to_save or ())):
            tied = tied.model_copy(update={"modules_to_save": (*(tied.modules_to_save or ()), path)})
        targets = getattr(tied, "target_modules", None)
        if f"{prefix}{path}.lora_B.weight" in names and not isinstance(targets, str):
            tied = tied.model_copy(update={"target_modules": tuple(dict.fromkeys((*(targets or ()), path)))})
        elif f"{prefix}{path}.lora_B.weight" in names:
            tied = tied.model_copy(update={"target_modules": f"(?:{targets})|{re.escape(path)}"})
    found: MethodConfig = tied
    return found
