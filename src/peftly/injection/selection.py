"""Active adapters of a model, for all batch elements of a call or for each.

A model stores which adapters are active (`Selection.default`). A `with` block may activate others for the calls inside
it. That choice is stored in a context variable and not on the model, so calls in several threads do not affect each
other. A new thread does not inherit context variables; its calls use the default, with a warning.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from peftly.errors import MethodError
from peftly.utils import warn

__all__ = [
    "ActiveAdapters",
    "AdapterNames",
    "BatchGroup",
    "PromptPositions",
    "Selection",
    "bind_context",
    "expand_to_batch",
    "selection_of",
    "use_adapters_of_elements",
]

AdapterNames = frozenset[str]
"""Names of the adapters that work together on one batch element."""

PromptPositions = tuple[tuple[int, ...], ...]
"""For each batch element, the number of text tokens before each of its virtual tokens that a template marks."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class BatchGroup:
    """Batch elements of a call that have the same adapters.

    Attributes:
        names: names of these adapters.
        indices: indices of the batch elements, (count,).
        active: active adapters of these batch elements alone.
    """

    names: AdapterNames
    indices: Tensor
    active: ActiveAdapters


class ActiveAdapters:
    """Active adapters of each batch element of a call: one set for all batch elements, or one set for each.

    Attributes:
        sets: the sets of adapter names.
        names: names of all adapters that some batch element has.
        differ: whether the sets differ.
    """

    def __init__(self, sets: Sequence[AdapterNames]) -> None:
        self.sets = tuple(sets)
        self.names = frozenset[str]().union(*sets)
        self.differ = len(set(sets)) > 1
        self._missing: dict[tuple[int, tuple[str, ...], torch.device], Tensor] = {}
        self._groups: dict[tuple[int, AdapterNames, torch.device], list[BatchGroup]] = {}

    def expand(self, batch_size: int) -> tuple[AdapterNames, ...]:
        """Return one set for each of `batch_size` batch elements; see `expand_to_batch`."""
        return expand_to_batch(self.sets, batch_size, "adapters")

    def groups(self, batch_size: int, among: AdapterNames, device: torch.device) -> list[BatchGroup]:
        """Return the batch elements in groups that have the same of the adapters `among`."""
        key = (batch_size, among, device)
        if key not in self._groups:
            sets = self.expand(batch_size)
            indices_by_names: dict[AdapterNames, list[int]] = {}
            for index, names in enumerate(sets):
                indices_by_names.setdefault(names & among, []).append(index)
            self._groups[key] = [
                BatchGroup(names, _constant(indices, device), ActiveAdapters([sets[index] for index in indices]))
                for names, indices in indices_by_names.items()
            ]
        return self._groups[key]

    def missing(self, batch_size: int, names: tuple[str, ...], device: torch.device) -> Tensor:
        """Return which of the adapters `names` each batch element lacks, (batch, names)."""
        key = (batch_size, names, device)
        if key not in self._missing:
            table = [[name not in active for name in names] for active in self.expand(batch_size)]
            self._missing[key] = _constant(table, device)
        return self._missing[key]


def _constant(values: Sequence[Any], device: torch.device) -> Tensor:
    """Return a tensor that later calls may save for a backward pass, whatever the mode of this call."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def expand_to_batch(items: Sequence[Item], batch_size: int, noun: str) -> tuple[Item, ...]:
    """Return one item for each batch element, where `generate` repeats each element for beams or several sequences.

    Args:
        items: one item for each element of the batch before the repetition, or one for all.
        batch_size: batch elements of the call.
        noun: the items, in the plural, for messages.

    Raises:
        MethodError: `batch_size` is no multiple of the number of items.
    """
    if batch_size % len(items):
        raise MethodError(
            f"{noun} were given for {len(items)} batch elements and this call has {batch_size}; give one entry for each"
        )
    return tuple(item for item in items for _ in range(batch_size // len(items)))


class Selection:
    """Active adapters of one model. All adapted layers of the model share it.

    Attributes:
        default: adapters that are active where no block has chosen others.
        chosen: choices of `use` that some context still has, by id: of a running block of `use_adapters` the threads
            that may call the model without a choice, otherwise None. A copy of a context may outlive the block.
    """

    def __init__(self, default: ActiveAdapters | None = None) -> None:
        self.default = ActiveAdapters([frozenset()]) if default is None else default
        self.chosen: dict[int, set[threading.Thread] | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the default only: choices are of this selection."""
        return Selection, (self.default,)

    def activate(self, name: str) -> None:
        """Add an adapter to the default."""
        self.default = ActiveAdapters([self.default.sets[0] | {name}])

    @property
    def active(self) -> ActiveAdapters:
        """Adapters that are active in the current context."""
        if not self.chosen:  # torch.compile traces this line, and guards it; it cannot trace context variables
            return self.default
        active = _ACTIVE.get().get(self)
        if active is None:
            self._warn_of_thread()
            return self.default
        return active

    @property
    def prompt_positions(self) -> PromptPositions | None:
        """Positions of virtual tokens that a template marks, or None if they are unknown in the current context."""
        return _PROMPT_POSITIONS.get().get(self)

    @contextmanager
    def use(self, active: ActiveAdapters, *, warns: bool = False) -> Iterator[None]:
        """Activate these adapters for the calls inside the block.

        Args:
            active: the adapters.
            warns: whether a thread that is started inside the block is warned that it does not inherit the choice.
        """
        key = id(active)
        if key not in self.chosen:
            weakref.finalize(active, self.chosen.pop, key, None)
        self.chosen[key] = set(threading.enumerate()) if warns else None
        token = _ACTIVE.set({**_ACTIVE.get(), self: active})
        try:
            yield
        finally:
            _ACTIVE.reset(token)
            self.chosen[key] = None

    def _warn_of_thread(self) -> None:
        """Warn if the current thread, which has no choice of adapters, was started inside a block that made one."""
        thread = threading.current_thread()
        for known in tuple(self.chosen.values()):
            if known is not None and thread not in known:
                known.add(thread)
                warn(
                    "this thread was started inside peftly.use_adapters and does not inherit its choice: the model "
                    "uses its default adapters here; enter use_adapters in the function that the thread runs, or start "
                    "the thread with Thread(target=contextvars.copy_context().run, args=(function,))",
                    stacklevel=4,
                )

    @contextmanager
    def use_prompt_positions(self, positions: PromptPositions) -> Iterator[None]:
        """Insert marked virtual tokens at `positions` in the calls inside the block."""
        token = _PROMPT_POSITIONS.set({**_PROMPT_POSITIONS.get(), self: positions})
        try:
            yield
        finally:
            _PROMPT_POSITIONS.reset(token)


_ACTIVE: ContextVar[Mapping[Selection, ActiveAdapters]] = ContextVar("active adapters", default={})  # noqa: B039 -- never changed
_PROMPT_POSITIONS: ContextVar[Mapping[Selection, PromptPositions]] = ContextVar("prompt positions", default={})  # noqa: B039 -- never changed


def selection_of(model: Any) -> Selection:
    """Return the selection of an adapted model."""
    selection: Selection = model._peftly.selection
    return selection


@contextmanager
def use_adapters_of_elements(model: Any, batch_size: int, elements: Tensor) -> Iterator[None]:
    """Activate, for a layer whose inputs are picked from the batch elements of a call, the adapters of these elements.

    Args:
        model: a model with or without adapters.
        batch_size: batch elements of the call.
        elements: index of the batch element from which each input of the layer was picked, (inputs,).
    """
    selection: Selection | None = getattr(getattr(model, "_peftly", None), "selection", None)
    if selection is None or len(selection.active.sets) == 1:
        yield
        return
    sets = selection.active.expand(batch_size)
    with selection.use(ActiveAdapters([sets[element] for element in elements.tolist()])):
        yield


def bind_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` bound to the current context, for a backward pass that calls it later or in another thread."""
    context = copy_context()
    # A context cannot be entered twice at once, and checkpointed blocks may contain each other: hence the copy.
    return lambda *args, **kwargs: context.copy().run(function, *args, **kwargs)
