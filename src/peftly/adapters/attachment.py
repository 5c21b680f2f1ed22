"""Put adapters on a model, choose among them, take them off: plain functions over a transformers model.

A model may carry several adapters, of one method or of several. Those that are on work together on every row of a call,
in the order in which they were attached; `set_adapters` and `use_adapters` choose others, for all rows or row by row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peftly.adapters.saving import save_adapter
from peftly.adapters.state import ATTRIBUTE, AttachedAdapters, attached, checked_names, state_of, use_adapters
from peftly.models import open_original

if TYPE_CHECKING:
    pass

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.injection import (
    ActiveAdapters,
    Checkpointing,
    ModelHooks,
    adapted_layers,
    add_copies,
    base_modules,
    is_below,
    override_method,
    own_parts,
    patch_quantized_layers,
    remove_layer_adapters,
    restore_method,
    restore_quantized_layers,
)
from peftly.methods import METHODS, Adapter, MethodConfig, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["attach", "detach", "install"]


def attach(
    model: PreTrainedModel,
    config: MethodConfig,
    *,
    name: str = "default",
    tokenizer: PreTrainedTokenizerBase | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
    rows: Sequence[EncodedExample] = (),
) -> PreTrainedModel:
    """Freeze `model` and put a fresh adapter on it, in place. The adapter is on, beside those that were on before.

    Args:
        model: any transformers model that the method can work on. Its tensors never change.
        config: the method's settings, for example `LoRA(rank=16)`.
        name: what to call the adapter in the model.
        tokenizer: needed by methods that start from words.
        labels: the answers of a labelled task, for methods that start from them; see `RowFormat.answers`.
        seed: of the random numbers drawn here; the global generators are left alone.
        rows: such as will be trained on, for methods that start from what layers are given (`data.train.encoded`).

    Returns:
        The same model. Its `save_pretrained` now writes its adapters.

    Raises:
        MethodError: the model has an adapter of this name, or cannot carry this one; it is then unchanged.
    """
    setup = Setup(tokenizer, tuple(labels), seed, rows, partial(open_original, model))
    kind = METHODS[config.name].adapter
    adapter = install(model, config, name, lambda: kind.attach(model, config, name, setup))
    try:
        with use_adapters(model, name):
            adapter.initialize_from_data(setup)
    except BaseException:
        detach(model, name)
        raise
    return model


def install(model: PreTrainedModel, config: MethodConfig, name: str, make: Callable[[], Adapter]) -> Adapter:
    """Freeze `model` and let `make` put an adapter called `name` on it; see `attach`."""
    if name in attached(model):
        raise MethodError(f"this model has an adapter {name!r} already; detach it first, or give this one another name")
    if not name or "." in name:
        raise MethodError(f"an adapter's name is a word without dots, got {name!r}")
    if hasattr(nn.ModuleDict(), name):
        raise MethodError(f"an adapter cannot be called {name!r}, as every torch module has something of this name")
    misfit = METHODS[config.name].adapter.misfit(model)
    if misfit is not None:
        raise MethodError(misfit)
    is_first = not attached(model)
    if is_first:
        _prepare(model)
    state: AttachedAdapters = getattr(model, ATTRIBUTE)
    adapter = None
    try:
        adapter = make()
        _save_modules(model, name, config.modules_to_save)
    except BaseException:
        if adapter is not None:
            adapter.remove()
        remove_layer_adapters(model, name)
        if is_first:
            _restore(model)
        raise
    state.adapters[name] = adapter
    state.selection.default = ActiveAdapters([state.selection.default.sets[0] | {name}])
    return adapter


def detach(model: PreTrainedModel, name: str | None = None) -> PreTrainedModel:
    """Take an adapter off `model`, or all of them; without any it is the very model that it was before `attach`.

    Raises:
        MethodError: there is none, or none of this name.
    """
    state = state_of(model)
    for one in list(state.adapters) if name is None else [*checked_names(state, [name])]:
        state.adapters.pop(one).remove()
        state.selection.default = ActiveAdapters([state.selection.default.sets[0] - {one}])
    if not state.adapters:
        _restore(model)
    return model


def _prepare(model: Any) -> None:
    """Freeze a model that has no adapter yet and make it ready for one."""
    taken_over = patch_quantized_layers(model)
    # By all their names: merging may untie what had several.
    named = model.named_parameters(remove_duplicate=False)
    state = AttachedAdapters([name for name, parameter in named if parameter.requires_grad], taken_over)
    model.requires_grad_(False)
    setattr(model, ATTRIBUTE, state)
    if isinstance(model, PreTrainedModel):
        state.bodies = ModelHooks(model)
        override_method(model, "save_pretrained", _SavesAdapters(model))
        state.checkpointing = Checkpointing(model)
        if getattr(model, "is_quantized", False):
            # transformers' Trainer trains a quantised model only if this says that there is an adapter on it.
            model._hf_peft_config_loaded = True


def _restore(model: Any) -> None:
    """Undo `_prepare`."""
    state = state_of(model)
    for part in (state.bodies, state.checkpointing):
        if part is not None:
            part.remove()
    restore_quantized_layers(state.taken_over)
    for path in state.unfrozen:
        model.get_parameter(path).requires_grad_(True)
    if isinstance(model, PreTrainedModel):
        restore_method(model, "save_pretrained")
        vars(model).pop("_hf_peft_config_loaded", None)
    delattr(model, ATTRIBUTE)


def _save_modules(model: nn.Module, name: str, wanted: Sequence[str] | None) -> None:
    """Let adapter `name` train copies of the modules that it saves; by itself, of the classifier if there is one."""
    if wanted is None:
        taken = [path for path, _, _ in adapted_layers(model, name)]
        found = [path for path in own_parts(model) if not any(is_below(one, [path]) for one in taken)]
    else:
        # By the bare end of a path, as PEFT does: `classifier` is DistilBERT's `pre_classifier` too.
        named = [path for path, _ in base_modules(model) if path.endswith(tuple(wanted))]
        found = [path for path in named if not is_below(path, [other for other in named if other != path])]
        if wanted and not found:
            raise MethodError(f"modules_to_save={list(wanted)} match no module of this {type(model).__name__}")
    add_copies(model, name, map(model.get_submodule, found))


class _SavesAdapters:
    """`save_pretrained` of an adapted model: the adapters, not the base, so that checkpoints are small."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        save_adapter(self.model, save_directory)
