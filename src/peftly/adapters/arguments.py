"""Checks of arguments that people pass who know other tools, such as a configuration of PEFT."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from peftly.errors import MethodError
from peftly.injection import peft_layer
from peftly.methods import MethodConfig
from peftly.object_names import OTHER_OBJECTS

__all__ = ["PEFT_METHODS", "RefuseMethod", "check_config", "check_model"]

PEFT_METHODS = ("add_adapter", "load_adapter", "set_adapter", "enable_adapters", "disable_adapters", "delete_adapter")
"""Methods of every transformers model that put an adapter of PEFT on it, or that change one."""


def check_model(model: object) -> None:
    """Do nothing if adapters can be put on an argument, or taken off it.

    Raises:
        MethodError: the argument is no model, or PEFT has put an adapter on it.
    """
    if not isinstance(model, nn.Module):
        inner = next(
            (name for name in ("model", "auto_model") if isinstance(getattr(model, name, None), nn.Module)), ""
        )
        advice = f"pass its {inner}" if inner else "open one with peftly.load_base or with transformers"
        raise MethodError(f"{_kind(model)} is no model; {advice}")
    if (path := peft_layer(model)) is not None:
        raise MethodError(
            f"this model has an adapter of PEFT ({path or 'the whole model'}), which would be missing in the files of "
            "peftly; open its folder with peftly.load_adapter on the base instead, or merge it first: "
            "model = model.merge_and_unload()"
        )


def check_config(config: object) -> None:
    """Do nothing for the settings of a method.

    Raises:
        MethodError: the argument is something else.
    """
    if isinstance(config, MethodConfig):
        return
    if inspect.isclass(config) and issubclass(config, MethodConfig):
        raise MethodError(f"peftly.{config.__name__} is a class; give settings: peftly.{config.__name__}()")
    advice = OTHER_OBJECTS.get(type(config).__name__, "give the settings of a method, such as peftly.LoRA(rank=8)")
    raise MethodError(f"{_kind(config)} is not the settings of a method of peftly; {advice}")


class RefuseMethod:
    """Method of a transformers model for adapters of PEFT, which an adapted model does not have."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name

    def __call__(self, *_: Any, **__: Any) -> None:
        """Refuse the call.

        Raises:
            MethodError: always.
        """
        advice = OTHER_OBJECTS.get(self.name, "use peftly.load_adapter")
        raise MethodError(f"{type(self.model).__name__}.{self.name} is for adapters of PEFT; {advice} on this model")


def _kind(value: object) -> str:
    """Return an argument for a message: a text as it is, and the class of anything else."""
    return repr(value)[:80] if isinstance(value, str) else f"a {type(value).__name__}"
