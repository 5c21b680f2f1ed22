"""Adapters merged into a model of PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from peftly.adapters import active_adapters, attached, check_mergeable, set_adapters
from peftly.adapters.merge import merge
from peftly.errors import MethodError

__all__ = ["merged"]


def merged(model: Any, names: Sequence[str]) -> Any:
    """Merge adapters into the weights of a model, remove the others, and return the model.

    Raises:
        MethodError: see `peftly.merge`; the model is then unchanged.
    """
    kind, active = type(model), active_adapters(model)
    if not names:
        raise MethodError("no adapter is active, so there is nothing to merge; call model.set_adapter(name) first")
    check_mergeable(model, names, without=[name for name in attached(model) if name not in names])
    try:
        set_adapters(model, *names)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "merged .*; detached without merging")  # as PEFT does
            return merge(model)
    except BaseException:
        model.__class__ = kind
        set_adapters(model, *active)
        raise
