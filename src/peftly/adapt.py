"""Put adapters on a model, take them off, merge them: plain functions over a transformers model that stays one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from peftly.errors import MethodError
from peftly.methods import METHODS, Adapter, MethodConfig, Setup
from peftly.methods._layers import override_method, restore_method
from peftly.methods._positions import TextPositions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["attach", "attached", "detach", "merge", "trainable_parameters"]

_ATTRIBUTE = "_peftly"


@dataclass
class _Attached:
    """What a model remembers of the adapter on it: enough to take everything off again."""

    adapter: Adapter
    positions: TextPositions | None
    unfrozen: list[str]


def attach(
    model: PreTrainedModel,
    config: MethodConfig,
    *,
    name: str = "default",
    tokenizer: PreTrainedTokenizerBase | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> PreTrainedModel:
    """Freeze `model` and put a fresh adapter on it, in place.

    Args:
        model: any transformers model that the method can work on. Its tensors never change.
        config: the method's settings, for example `LoRA(rank=16)`.
        name: what to call the adapter in the model.
        tokenizer: needed by methods that start from words.
        labels: the label texts of a labelled task, for methods that start from them.
        seed: of the random numbers drawn here; the global generators are left alone.

    Returns:
        The same model. Its `save_pretrained` now writes the adapter.

    Raises:
        MethodError: the model carries an adapter already, or cannot carry this one; it is then unchanged.
    """
    setup = Setup(tokenizer, tuple(labels), seed)
    install(model, name, lambda: METHODS[config.name].adapter.attach(model, config, name, setup))
    return model


def install(model: PreTrainedModel, name: str, make: Callable[[], Adapter]) -> Adapter:
    """Freeze `model` and let `make` put an adapter called `name` on it; see `attach`."""
    if attached(model) is not None:
        raise MethodError("this model carries an adapter already; detach it first")
    if not name or "." in name:
        raise MethodError(f"an adapter's name is a word without dots, got {name!r}")
    positions = TextPositions(model) if model.can_generate() and not model.config.is_encoder_decoder else None
    try:
        adapter = make()
    except BaseException:
        if positions is not None:
            positions.remove()
        raise
    own = {id(parameter) for parameter in adapter.parameters().values()}
    base = [(path, parameter) for path, parameter in model.named_parameters() if id(parameter) not in own]
    unfrozen = [path for path, parameter in base if parameter.requires_grad]
    for _, parameter in base:
        parameter.requires_grad_(False)
    setattr(model, _ATTRIBUTE, _Attached(adapter, positions, unfrozen))
    override_method(model, "save_pretrained", _SavesAdapter(model))
    return adapter


def attached(model: nn.Module) -> Adapter | None:
    """Return the adapter on `model`, or None."""
    state: _Attached | None = getattr(model, _ATTRIBUTE, None)
    return None if state is None else state.adapter


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Take the adapter off `model`, which is then the very model that it was before `attach`.

    Raises:
        MethodError: there is none.
    """
    state: _Attached | None = getattr(model, _ATTRIBUTE, None)
    if state is None:
        raise MethodError("this model carries no adapter to detach")
    state.adapter.remove()
    if state.positions is not None:
        state.positions.remove()
    for path in state.unfrozen:
        model.get_parameter(path).requires_grad_(True)
    restore_method(model, "save_pretrained")
    delattr(model, _ATTRIBUTE)
    return model


def merge(model: PreTrainedModel) -> PreTrainedModel:
    """Fold the adapter into the base's weights, in place, and detach it.

    Returns:
        The same model, with other weights and no trace of the adapter.

    Raises:
        MethodError: there is no adapter, or its method or the base's weights do not allow it; nothing has changed.
    """
    adapter = attached(model)
    if adapter is None:
        raise MethodError("this model carries no adapter to merge")
    adapter.merge()
    return detach(model)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


class _SavesAdapter:
    """`save_pretrained` of an adapted model: the adapter, not the base, so that checkpoints are small."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        from peftly.checkpoint import save_adapter

        save_adapter(self.model, save_directory)
