"""Methods of one model that are replaced, and restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["override_method", "restore_method"]


def override_method(model: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Replace the method `name` of this one `model`; `restore_method` undoes it.

    The replacement should be an object that holds what it needs, so that deepcopy and pickle copy it with the model.
    """
    replacement.shadowed = model.__dict__.get(name)  # type: ignore[attr-defined]
    setattr(model, name, replacement)


def restore_method(model: Any, name: str) -> None:
    """Undo `override_method`: restore the previous method, on the instance or from its class."""
    shadowed = model.__dict__.pop(name).shadowed
    if shadowed is not None:
        setattr(model, name, shadowed)
