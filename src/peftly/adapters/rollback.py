"""Restoration of a model after an adapter could not be put on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from peftly.adapters.state import ATTRIBUTE, AttachedAdapters
from peftly.injection import LAYER_ADAPTERS, base_modules, invalidate_cached_tensors

__all__ = ["restored_on_failure"]


@contextmanager
def restored_on_failure(model: nn.Module) -> Iterator[None]:
    """Restore a model if the block, which attaches adapters, raises anything: an error of any kind, or Ctrl-C.

    Restored are the modules (attributes, parameters, submodules, hooks), the flags `requires_grad`, and the adapters
    with the choice of the active ones; not the values of tensors, which attaching does not change.
    """
    modules = [module for _, module in base_modules(model)]
    modules += [module._modules[LAYER_ADAPTERS] for module in modules if LAYER_ADAPTERS in module._modules]  # type: ignore[misc]
    contents = [(vars(module), _copied(vars(module))) for module in modules]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    adapters, default = ({}, None) if state is None else (dict(state.adapters), state.selection.default)
    try:
        yield
    except BaseException:
        for attributes, before in contents:
            _restore(attributes, before)
        for parameter, requires_grad in flags:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        if state is not None and default is not None:
            state.adapters, state.selection.default = adapters, default
        invalidate_cached_tensors()
        raise


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the attributes of a module, each with a copy of its content if it is a dictionary (hooks, parameters)."""
    return {name: (value, dict(value) if isinstance(value, dict) else None) for name, value in attributes.items()}


def _restore(attributes: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    """Restore attributes from `_copied`, in place: handles of hooks refer to the dictionaries."""
    attributes.clear()
    for name, (value, content) in before.items():
        attributes[name] = value
        if content is not None:
            value.clear()
            value.update(content)
