"""Which adapters of a model work on which rows of a call.

A model remembers which adapters are on (`Selection.default`). A `with` block may say otherwise for the calls inside it:
other adapters for all rows, or other ones for each row. That choice is kept in a context variable and not on the model,
so calls from several threads do not disturb each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from peftly.errors import MethodError

__all__ = [
    "ActiveAdapters",
    "AdapterNames",
    "Group",
    "Selection",
    "adapters_of_picked",
    "keep_context",
    "selection_of",
    "spread",
]

AdapterNames = frozenset[str]
"""Adapters that work together on one row, by name."""

Places = tuple[tuple[int, ...], ...]
"""How many tokens of its text stand before each virtual token of a row that a template has marked, row by row."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """Rows of a call that the same adapters work on.

    Attributes:
        names: those adapters.
        index: which rows, (count,).
        rows: what was chosen for just these rows.
    """

    names: AdapterNames
    index: Tensor
    rows: ActiveAdapters


class ActiveAdapters:
    """The adapters of every row of a call: one set for all of them, or one set a row.

    Attributes:
        sets: those.
        names: all adapters that some row has.
        differ: whether the rows do not all have the same.
    """

    def __init__(self, sets: Sequence[AdapterNames]) -> None:
        self.sets = tuple(sets)
        self.names = frozenset[str]().union(*sets)
        self.differ = len(set(sets)) > 1
        self._without: dict[tuple[int, tuple[str, ...], torch.device], Tensor] = {}
        self._groups: dict[tuple[int, AdapterNames, torch.device], list[Group]] = {}

    def spread(self, count: int) -> tuple[AdapterNames, ...]:
        """Return one set for each of `count` rows, where beams and returned sequences repeat each row in place.

        Raises:
            MethodError: so many rows cannot be repetitions of the rows that adapters were chosen for.
        """
        return spread(self.sets, count, "adapters were chosen")

    def groups(self, count: int, among: AdapterNames, device: torch.device) -> list[Group]:
        """Return the rows in groups that no adapter `among` those given tells apart."""
        key = (count, among, device)
        if key not in self._groups:
            spread = self.spread(count)
            places: dict[AdapterNames, list[int]] = {}
            for place, names in enumerate(spread):
                places.setdefault(names & among, []).append(place)
            self._groups[key] = [
                Group(names, torch.tensor(index, device=device), ActiveAdapters([spread[place] for place in index]))
                for names, index in places.items()
            ]
        return self._groups[key]

    def without(self, count: int, names: tuple[str, ...], device: torch.device) -> Tensor:
        """Return which of these adapters each row is without, (count, names)."""
        key = (count, names, device)
        if key not in self._without:
            table = [[name not in own for name in names] for own in self.spread(count)]
            self._without[key] = torch.tensor(table, device=device)
        return self._without[key]


def spread(items: Sequence[Item], count: int, what: str) -> tuple[Item, ...]:
    """Return one item for each of `count` rows, of which some were made by repeating each row in place.

    Raises:
        MethodError: `count` is no multiple of the rows that there are items for; `what` says what was done for them.
    """
    if count % len(items):
        raise MethodError(f"{what} for {len(items)} rows and this call has {count}; give one entry for each row")
    return tuple(item for item in items for _ in range(count // len(items)))


class Selection:
    """The adapters that are on in one model. All changed layers of the model share it."""

    def __init__(self) -> None:
        self.default = ActiveAdapters([frozenset()])

    @property
    def rows(self) -> ActiveAdapters:
        """What is chosen at this moment."""
        return _CHOSEN.get().get(self, self.default)

    @property
    def places(self) -> Places | None:
        """Where virtual tokens stand that a template has marked, if that is known."""
        return _PLACES.get().get(self)

    @contextmanager
    def use(self, rows: ActiveAdapters) -> Iterator[None]:
        """Choose `rows` for the calls inside the block."""
        token = _CHOSEN.set({**_CHOSEN.get(), self: rows})
        try:
            yield
        finally:
            _CHOSEN.reset(token)

    @contextmanager
    def put(self, places: Places) -> Iterator[None]:
        """Let marked virtual tokens stand at `places` in the calls inside the block."""
        token = _PLACES.set({**_PLACES.get(), self: places})
        try:
            yield
        finally:
            _PLACES.reset(token)


_CHOSEN: ContextVar[Mapping[Selection, ActiveAdapters]] = ContextVar("chosen adapters", default={})  # noqa: B039 -- never changed
_PLACES: ContextVar[Mapping[Selection, Places]] = ContextVar("marked places", default={})  # noqa: B039 -- never changed


def selection_of(model: Any) -> Selection:
    """Return the selection of an adapted model."""
    selection: Selection = model._peftly.selection
    return selection


@contextmanager
def adapters_of_picked(model: Any, batch: int, owners: Tensor) -> Iterator[None]:
    """Let a layer whose input is picked from the rows of a call work with the adapters of those rows.

    Args:
        model: adapted or not.
        batch: how many rows the call has.
        owners: the row that each one of the layer's inputs was picked from, (count,).
    """
    selection: Selection | None = getattr(getattr(model, "_peftly", None), "selection", None)
    if selection is None or len(selection.rows.sets) == 1:
        yield
        return
    spread = selection.rows.spread(batch)
    with selection.use(ActiveAdapters([spread[owner] for owner in owners.tolist()])):
        yield


def keep_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as it works here and now, for a backward pass that calls it later or in another thread."""
    context = copy_context()
    # A context cannot be entered twice at once, and blocks may be checkpointed inside each other: hence the copy.
    return lambda *args, **kwargs: context.copy().run(function, *args, **kwargs)
