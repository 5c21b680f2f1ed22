"""Cache of tensors derived from the weights of adapters, in blocks in which no weight changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar, cast

import torch

__all__ = ["cache_adapter_tensors", "cached", "invalidate_cached_tensors", "is_caching"]

Value = TypeVar("Value")


@contextmanager
def cache_adapter_tensors() -> Iterator[None]:
    """Compute tensors that are derived from the weights of adapters once for all calls inside the block.

    They are the keys and values of soft prompts, the outputs of the networks of prefixes, the stacked factors of LoRA
    and the scales of DoRA. Outside of a block each call computes them. `generate`, `evaluate`, `classify` and
    transformers' `model.generate` open a block themselves; a server or an evaluation loop that calls the model itself
    may do the same:

        with torch.no_grad(), peftly.cache_adapter_tensors():
            for batch in batches:
                model(**batch)

    No weight of the model, and no hook on its modules, may change inside the block. Adapters may be attached, loaded,
    detached, merged and switched: the next call computes its tensors from the active adapters. Nothing is cached with
    gradients enabled, and such a call, which is one of a training step, clears what is cached; nothing is cached under
    `torch.compile`. A block inside another one shares the tensors of the outer block, which
    are freed when the outer block ends. A block affects the current thread (or asyncio task) only. Forward hooks on
    layers see the virtual tokens of a soft prompt in the first call only.
    """
    scope = _SCOPE.get()
    if scope is not None and scope.is_open:
        yield
        return
    scope = _Scope()
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)
        scope.close()


def is_caching() -> bool:
    """Whether `cached` stores tensors in the current context."""
    if torch.compiler.is_compiling():
        return False
    scope = _SCOPE.get()
    if scope is None or not scope.is_open:
        return False
    if torch.is_grad_enabled():
        scope.results = {}  # a training step may follow, which changes the weights
        return False
    return True


def cached(
    key: Hashable,
    device: torch.device,
    compute: Callable[[], Value],
    *,
    should_store: Callable[[Value], bool] | None = None,
) -> Value:
    """Return the result of `compute`, which runs once for equal keys where `is_caching` is true.

    Args:
        key: modules from which the result is derived, and everything else it depends on: names of active adapters,
            dtypes, attention implementation. The autocast state is added here.
        device: device of the computation.
        compute: returns tensors that nobody modifies, or a closure over them.
        should_store: whether a result is stored for later calls; None: always.
    """
    if not is_caching():
        return compute()
    scope = cast(_Scope, _SCOPE.get())
    device_type = _type_of(device)
    autocast = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    return scope.get((key, device, autocast), compute, should_store)


def invalidate_cached_tensors() -> None:
    """Let open blocks of all threads compute their tensors again, because an adapter was attached or removed."""
    global _generation  # one assignment of a new object, which is atomic
    _generation = object()


@cache
def _type_of(device: torch.device) -> str:
    return device.type  # which makes a new string each time


class _Scope:
    """Results of one block.

    Attributes:
        is_open: whether the block still runs. A copy of its context may outlive it: asyncio tasks have such copies.
        generation: value of `_generation` for which the results are valid.
    """

    def __init__(self) -> None:
        self.is_open = True
        self.generation = _generation
        self.results: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], Value], should_store: Callable[[Value], bool] | None) -> Value:
        generation, results = _generation, self.results
        if self.generation is not generation:
            self.generation, self.results = generation, (results := {})
        if key in results:
            return cast(Value, results[key])
        result = compute()
        # Only into the dictionary of this generation: an adapter may have been attached while `compute` ran.
        if self.is_open and (should_store is None or should_store(result)):
            results[key] = result
        return result

    def close(self) -> None:
        self.is_open = False
        self.results = {}


_generation = object()
_SCOPE: ContextVar[_Scope | None] = ContextVar("open block of cached adapter tensors", default=None)
