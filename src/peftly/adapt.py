"""Put adapters on a model, choose among them, take them off: plain functions over a transformers model.

A model may carry several adapters, of one method or of several. Those that are on work together on every row of a call,
in the order in which they were attached; `set_adapters` and `use_adapters` choose others, for all rows or row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.methods import METHODS, Adapter, MethodConfig, Setup
from peftly.methods._body import Bodies
from peftly.methods._checkpoints import Checkpointing
from peftly.methods._copies import add_copies
from peftly.methods._layers import changed_layers, drop_changes, override_method, restore_method
from peftly.methods._quantized import give_back, take_over
from peftly.methods._selection import Names, Rows, Selection
from peftly.methods._targets import base_modules, is_below, own_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import Encoded

__all__ = [
    "RowChoice",
    "attach",
    "attached",
    "check_names",
    "detach",
    "install",
    "on_all_rows",
    "set_adapters",
    "trainable_parameters",
    "use_adapters",
    "use_places",
    "virtual_count",
]

_ATTRIBUTE = "_peftly"

RowChoice = str | Sequence[str] | None
"""What works on one row: one adapter, several together, or none."""


@dataclass
class _Attached:
    """What a model remembers of the adapters on it: enough to take everything off again."""

    unfrozen: list[str]
    taken_over: list[nn.Module]
    selection: Selection = field(default_factory=Selection)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    bodies: Bodies | None = None
    checkpointing: Checkpointing | None = None


def attach(
    model: PreTrainedModel,
    config: MethodConfig,
    *,
    name: str = "default",
    tokenizer: PreTrainedTokenizerBase | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
    rows: Sequence[Encoded] = (),
) -> PreTrainedModel:
    """Freeze `model` and put a fresh adapter on it, in place. The adapter is on, beside those that were on before.

    Args:
        model: any transformers model that the method can work on. Its tensors never change.
        config: the method's settings, for example `LoRA(rank=16)`.
        name: what to call the adapter in the model.
        tokenizer: needed by methods that start from words.
        labels: the answers of a labelled task, for methods that start from them; see `Shape.answers`.
        seed: of the random numbers drawn here; the global generators are left alone.
        rows: such as will be trained on, for methods that start from what layers are given (`data.train.encoded`).

    Returns:
        The same model. Its `save_pretrained` now writes its adapters.

    Raises:
        MethodError: the model has an adapter of this name, or cannot carry this one; it is then unchanged.
    """
    from peftly.base import open_original

    setup = Setup(tokenizer, tuple(labels), seed, rows, partial(open_original, model))
    kind = METHODS[config.name].adapter
    adapter = install(model, config, name, lambda: kind.attach(model, config, name, setup))
    try:
        with use_adapters(model, name):
            adapter.fit(setup)
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
    state: _Attached = getattr(model, _ATTRIBUTE)
    adapter = None
    try:
        adapter = make()
        _save_modules(model, name, config.modules_to_save)
    except BaseException:
        if adapter is not None:
            adapter.remove()
        drop_changes(model, name)
        if is_first:
            _restore(model)
        raise
    state.adapters[name] = adapter
    state.selection.default = Rows([state.selection.default.sets[0] | {name}])
    return adapter


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters on `model` by name, in the order in which they were attached."""
    state: _Attached | None = getattr(model, _ATTRIBUTE, None)
    return {} if state is None else dict(state.adapters)


def on_all_rows(model: nn.Module) -> list[str]:
    """Return the adapters of `model` that are on from now on, as `set_adapters` left them."""
    state = _state(model)
    return [name for name in state.adapters if name in state.selection.default.sets[0]]


def virtual_count(model: nn.Module) -> int:
    """Return how many virtual tokens every text has with the adapters that are on."""
    state: _Attached | None = getattr(model, _ATTRIBUTE, None)
    return 0 if state is None or state.bodies is None else state.bodies.virtual_count()


def set_adapters(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """Switch on just these adapters of `model`, together, from now on; without a name, none.

    Returns:
        The same model.

    Raises:
        MethodError: it has no adapter of such a name.
    """
    state = _state(model)
    state.selection.default = Rows([_names(state, names)])
    return model


@contextmanager
def use_adapters(model: PreTrainedModel, *names: str, rows: Sequence[RowChoice] | None = None) -> Iterator[None]:
    """Switch on other adapters for the calls of `model` inside the block, in this thread.

    Each row of a call gives what it would give alone with its adapters, whatever the others have.

    Args:
        model: a model with adapters.
        names: what works on every row: one adapter, several together, or, without a name, none.
        rows: instead, what works on each row of a batch: `["a", "b", None, ("a", "b")]`. Beams and sequences that
            `generate` makes of a row have what the row has.

    Raises:
        MethodError: the model has no adapter of such a name; or, when it is called, the batch has other rows.
    """
    state = _state(model)
    if rows is not None and names:
        raise MethodError("give names for all rows, or rows with their own; not both")
    if rows is None:
        chosen = Rows([_names(state, names)])
    elif rows:
        chosen = Rows([_names(state, [row] if isinstance(row, str) else row or ()) for row in rows])
    else:
        raise MethodError("rows is empty: give an adapter, several, or None for each row of the batch")
    with state.selection.use(chosen):
        yield


@contextmanager
def use_places(model: nn.Module, places: Sequence[Sequence[int]] | Tensor | None) -> Iterator[None]:
    """Say where virtual tokens with `place: template` stand in the calls of `model` inside the block, in this thread.

    `train`, `evaluate`, `generate` and `classify` say it themselves; this is for calls of the model itself.

    Args:
        model: a model; nothing changes for one without such virtual tokens.
        places: for each row of the batch, in front of which token of its text each of them stands: 0 for the first
            token, as many as the text has for the end; padding is not counted. It is `Encoded.places`, or the
            `places` of a batch (where those of shorter rows are filled up with -1). Beams and sequences that
            `generate` makes of a row have what the row has. None, or no place in any row: nothing is said.
    """
    state: _Attached | None = getattr(model, _ATTRIBUTE, None)
    table = places.tolist() if isinstance(places, Tensor) else places or []
    rows = tuple(tuple(place for place in row if place >= 0) for row in table)
    if state is None or not any(rows):
        yield
        return
    with state.selection.put(rows):
        yield


def detach(model: PreTrainedModel, name: str | None = None) -> PreTrainedModel:
    """Take an adapter off `model`, or all of them; without any it is the very model that it was before `attach`.

    Raises:
        MethodError: there is none, or none of this name.
    """
    state = _state(model)
    for one in list(state.adapters) if name is None else [*_names(state, [name])]:
        state.adapters.pop(one).remove()
        state.selection.default = Rows([state.selection.default.sets[0] - {one}])
    if not state.adapters:
        _restore(model)
    return model


def check_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of adapters of `model` as they are.

    Raises:
        MethodError: it has no adapter, or none of such a name.
    """
    _names(_state(model), names)
    return list(names)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _state(model: nn.Module) -> _Attached:
    state: _Attached | None = getattr(model, _ATTRIBUTE, None)
    if state is None:
        raise MethodError("this model carries no adapter; attach or load one first")
    return state


def _names(state: _Attached, names: Sequence[str]) -> Names:
    unknown = [name for name in names if name not in state.adapters]
    if unknown:
        raise MethodError(f"this model has no adapter {unknown[0]!r}; it has {', '.join(map(repr, state.adapters))}")
    return frozenset(names)


def _prepare(model: Any) -> None:
    """Freeze a model that has no adapter yet and make it ready for one."""
    taken_over = take_over(model)
    # By all their names: merging may untie what had several.
    named = model.named_parameters(remove_duplicate=False)
    state = _Attached([name for name, parameter in named if parameter.requires_grad], taken_over)
    model.requires_grad_(False)
    setattr(model, _ATTRIBUTE, state)
    if isinstance(model, PreTrainedModel):
        state.bodies = Bodies(model)
        override_method(model, "save_pretrained", _SavesAdapters(model))
        state.checkpointing = Checkpointing(model)
        if getattr(model, "is_quantized", False):
            # transformers' Trainer trains a quantised model only if this says that there is an adapter on it.
            model._hf_peft_config_loaded = True


def _restore(model: Any) -> None:
    """Undo `_prepare`."""
    state = _state(model)
    for part in (state.bodies, state.checkpointing):
        if part is not None:
            part.remove()
    give_back(state.taken_over)
    for path in state.unfrozen:
        model.get_parameter(path).requires_grad_(True)
    if isinstance(model, PreTrainedModel):
        restore_method(model, "save_pretrained")
        vars(model).pop("_hf_peft_config_loaded", None)
    delattr(model, _ATTRIBUTE)


def _save_modules(model: nn.Module, name: str, wanted: Sequence[str] | None) -> None:
    """Let adapter `name` train copies of the modules that it saves; by itself, of the classifier if there is one."""
    if wanted is None:
        taken = [path for path, _, _ in changed_layers(model, name)]
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
        from peftly.checkpoint import save_adapter

        save_adapter(self.model, save_directory)
