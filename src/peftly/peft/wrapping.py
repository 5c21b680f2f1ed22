"""The class of a model becomes a subclass of itself and of a class of PEFT, and back, as with parametrizations."""

from __future__ import annotations

from functools import cache
from types import new_class
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from peftly.adapters import state_of
from peftly.injection import body_of
from peftly.peft.config import PeftConfig

__all__ = ["BaseModelView", "Wrapping", "is_wrapped", "model_class_of", "reduced", "wrapping_of"]

_ATTRIBUTE = "_peftly_peft"
_MODEL_CLASS = "_peftly_model_class"


class Wrapping:
    """A model as one of PEFT: its configurations, and what is needed to give it its own class back.

    The last adapter that leaves the model calls `remove`.

    Attributes:
        model: the model.
        configs: configurations of the adapters, by their names.
        disabled: adapters that `disable_adapter_layers` has deactivated; None: nothing is disabled.
    """

    def __init__(self, model: Any, peft_class: type) -> None:
        self.model = model
        self.configs: dict[str, PeftConfig] = {}
        self.disabled: list[str] | None = None
        # Methods that `attach` has put on the instance, where they would shadow those of the class.
        replaced = [name for name, value in vars(model).items() if hasattr(value, "shadowed")]
        self.hidden = {name: vars(model).pop(name) for name in replaced if hasattr(peft_class, name)}
        vars(model)[_ATTRIBUTE] = self
        has_model = isinstance(model, PreTrainedModel) and body_of(model) is model and not hasattr(model, "model")
        model.__class__ = _wrapped_class(peft_class, type(model), has_model)  # type: ignore[arg-type]
        state_of(model).handles.append(self)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Give the model its own class and methods back."""
        self.model.__class__ = model_class_of(type(self.model))
        vars(self.model).update(self.hidden)
        del vars(self.model)[_ATTRIBUTE]


def is_wrapped(model: object) -> bool:
    """Return whether a model is one of PEFT."""
    return isinstance(model, nn.Module) and _ATTRIBUTE in vars(model)


def wrapping_of(model: nn.Module) -> Wrapping:
    """Return the record of a model that is one of PEFT.

    Raises:
        AttributeError: the model is none.
    """
    found: Wrapping | None = vars(model).get(_ATTRIBUTE)
    if found is None:
        raise AttributeError(f"this {type(model).__name__} has no adapter; call peftly.peft.get_peft_model first")
    return found


def model_class_of(kind: type[nn.Module]) -> Any:
    """Return the own class of the models of a class that `Wrapping` has made; None for any other class."""
    return getattr(kind, _MODEL_CLASS, None)


@cache
def _wrapped_class(peft_class: type, model_class: Any, has_model: bool) -> type[nn.Module]:
    """Return the subclass of a class of PEFT and of a class of models, under the name of the latter.

    Args:
        peft_class: class of PEFT.
        model_class: class of models.
        has_model: whether the model has an attribute `model`, the model: for a body of transformers, which is its own
            `base_model`, since methods of transformers recur unless `base_model is self` there.
    """
    names = {name: getattr(model_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    names |= {_MODEL_CLASS: model_class} | ({"model": property(lambda model: model)} if has_model else {})
    return new_class(model_class.__name__, (peft_class, model_class), {}, lambda namespace: namespace.update(names))


def reduced(model: nn.Module, reduction: Any) -> tuple[Any, ...]:
    """Return how to copy or pickle a model of PEFT, whose class no module holds under its name.

    Args:
        model: the model.
        reduction: the result of `__reduce_ex__` of its own class.
    """
    peft_class = type(model).__bases__[0]
    return _rebuilt, (peft_class, model_class_of(type(model)), "model" in vars(type(model))), *reduction[2:]


def _rebuilt(peft_class: type, model_class: type, has_model: bool) -> nn.Module:
    """Return an empty model, whose attributes are set afterwards."""
    model: nn.Module = object.__new__(_wrapped_class(peft_class, model_class, has_model))
    return model


class BaseModelView:
    """PEFT's `base_model`: the body of a model, whose attribute `model` is the whole model.

    Methods of PEFT's tuners (`merge_and_unload`, `set_adapter` and others) are those of the whole model. All other
    attributes are those of the body, which the view equals, and a call calls the body, as transformers and TRL expect.
    """

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "_body", body)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # `isinstance` accepts the view as the body
        return type(self._body)

    def __getattr__(self, name: str) -> Any:
        is_of_model = name in _TUNER_ATTRIBUTES or not hasattr(self._body, name)  # as PEFT's tuners pass them on
        return getattr(self.model if is_of_model else self._body, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._body, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the body."""
        return self._body(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return self._body is (object.__getattribute__(other, "_body") if type(other) is BaseModelView else other)

    def __hash__(self) -> int:
        return hash(self._body)

    def __repr__(self) -> str:
        return repr(self._body)

    def __dir__(self) -> list[str]:
        return [*dir(self._body), "model"]


_TUNER_ATTRIBUTES = frozenset(
    {
        "active_adapter",
        "active_adapters",
        "add_weighted_adapter",
        "delete_adapter",
        "disable_adapter_layers",
        "enable_adapter_layers",
        "generate",
        "merge_adapter",
        "merge_and_unload",
        "peft_config",
        "set_adapter",
        "set_requires_grad",
        "unload",
        "unmerge_adapter",
    }
)
