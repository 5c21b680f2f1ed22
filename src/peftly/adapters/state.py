"""The adapters that a model has, and the choice of those that are on.

A model may carry several adapters, of one method or of several. Those that are on work together on every batch element
of a call, in the order in which they were attached; `set_adapters` and `use_adapters` choose others, for all batch
elements or for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.injection import copied_modules, new_parts

if TYPE_CHECKING:
    pass
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers import PreTrainedModel

from peftly.errors import MethodError
from peftly.injection import ActiveAdapters, AdapterNames, Checkpointing, ModelHooks, Selection, is_below
from peftly.methods import Adapter

if TYPE_CHECKING:
    pass

__all__ = [
    "AdapterChoice",
    "active_adapters",
    "attached",
    "check_names",
    "num_virtual_tokens_of",
    "parts_without_copy",
    "set_adapters",
    "trainable_parameters",
    "use_adapters",
    "use_prompt_positions",
]

ATTRIBUTE = "_peftly"


AdapterChoice = str | Sequence[str] | None
"""What works on one row: one adapter, several together, or none."""


@dataclass
class AttachedAdapters:
    """What a model remembers of the adapters on it: enough to take everything off again."""

    unfrozen: list[str]
    taken_over: list[nn.Module]
    selection: Selection = field(default_factory=Selection)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    bodies: ModelHooks | None = None
    checkpointing: Checkpointing | None = None


def attached(model: nn.Module) -> dict[str, Adapter]:
    """Return the adapters on `model` by name, in the order in which they were attached."""
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    return {} if state is None else dict(state.adapters)


def active_adapters(model: nn.Module) -> list[str]:
    """Return the adapters of `model` that are on from now on, as `set_adapters` left them."""
    state = state_of(model)
    return [name for name in state.adapters if name in state.selection.default.sets[0]]


def num_virtual_tokens_of(model: nn.Module) -> int:
    """Return how many virtual tokens every text has with the adapters that are on."""
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    return 0 if state is None or state.bodies is None else state.bodies.num_virtual_tokens_of()


def set_adapters(model: PreTrainedModel, *names: str) -> PreTrainedModel:
    """Switch on just these adapters of `model`, together, from now on; without a name, none.

    Returns:
        The same model.

    Raises:
        MethodError: it has no adapter of such a name.
    """
    state = state_of(model)
    state.selection.default = ActiveAdapters([checked_names(state, names)])
    return model


@contextmanager
def use_adapters(model: PreTrainedModel, *names: str, rows: Sequence[AdapterChoice] | None = None) -> Iterator[None]:
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
    state = state_of(model)
    if rows is not None and names:
        raise MethodError("give names for all rows, or rows with their own; not both")
    if rows is None:
        chosen = ActiveAdapters([checked_names(state, names)])
    elif rows:
        chosen = ActiveAdapters([checked_names(state, [row] if isinstance(row, str) else row or ()) for row in rows])
    else:
        raise MethodError("rows is empty: give an adapter, several, or None for each row of the batch")
    with state.selection.use(chosen):
        yield


@contextmanager
def use_prompt_positions(model: nn.Module, places: Sequence[Sequence[int]] | Tensor | None) -> Iterator[None]:
    """Say where virtual tokens with `position: template` stand in the calls of `model` inside the block, in this thread.

    `train`, `evaluate`, `generate` and `classify` say it themselves; this is for calls of the model itself.

    Args:
        model: a model; nothing changes for one without such virtual tokens.
        places: for each row of the batch, in front of which token of its text each of them stands: 0 for the first
            token, as many as the text has for the end; padding is not counted. It is `EncodedExample.places`, or the
            `places` of a batch (where those of shorter rows are filled up with -1). Beams and sequences that
            `generate` makes of a row have what the row has. None, or no place in any row: nothing is said.
    """
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    table = places.tolist() if isinstance(places, Tensor) else places or []
    rows = tuple(tuple(place for place in row if place >= 0) for row in table)
    if state is None or not any(rows):
        yield
        return
    with state.selection.put(rows):
        yield


def check_names(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of adapters of `model` as they are.

    Raises:
        MethodError: it has no adapter, or none of such a name.
    """
    checked_names(state_of(model), names)
    return list(names)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def state_of(model: nn.Module) -> AttachedAdapters:
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    if state is None:
        raise MethodError("this model carries no adapter; attach or load one first")
    return state


def checked_names(state: AttachedAdapters, names: Sequence[str]) -> AdapterNames:
    unknown = [name for name in names if name not in state.adapters]
    if unknown:
        raise MethodError(f"this model has no adapter {unknown[0]!r}; it has {', '.join(map(repr, state.adapters))}")
    return frozenset(names)


def parts_without_copy(model: Any) -> list[str]:
    """Return the new parts of a base that no adapter on it keeps a copy of: they are random, and stay so."""
    kept = [path for name in attached(model) for path in copied_modules(model, name)]
    return [path for path in new_parts(model) if not is_below(path, kept)]
