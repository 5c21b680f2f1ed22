"""Gradient checkpointing by transformers' own switches, while adapters are on a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from peftly.injection.layers import override_method, restore_method
from peftly.injection.selection import keep_context

__all__ = ["Checkpointing"]

_FUNCTION = "_gradient_checkpointing_func"
_SWITCHED = ("gradient_checkpointing", _FUNCTION, "_require_grads_hooks", "_require_grads_hook")
"""What the switches set: on blocks and stacks, and on the model, whose hooks let what is embedded have gradients."""


class Checkpointing:
    """Blocks are computed again with the adapters that they had, and `remove` leaves the switches as they were."""

    def __init__(self, model: Any) -> None:
        self.model = model
        parts = [part for part in model.modules() if part is model or hasattr(part, _SWITCHED[0])]
        self.before = [(part, {name: vars(part)[name] for name in _SWITCHED if name in vars(part)}) for part in parts]
        self.inputs = _InputGradients(model)
        override_method(model, _InputGradients.name, self.inputs)
        override_method(model, _KeepsContext.name, _KeepsContext(model))

    def remove(self) -> None:
        """Undo what was switched since."""
        restore_method(self.model, _InputGradients.name)
        restore_method(self.model, _KeepsContext.name)
        for hook in self.inputs.hooks:
            hook.remove()
        for part, before in self.before:
            for name in _SWITCHED:
                vars(part).pop(name, None)
            vars(part).update(before)


class _InputGradients:
    """`enable_input_require_grads`; transformers forgets the hooks of one call in the next."""

    name: ClassVar[str] = "enable_input_require_grads"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.original = getattr(model, self.name)
        self.hooks: list[Any] = []

    def __call__(self) -> None:
        self.original()
        self.hooks += self.model._require_grads_hooks


class _KeepsContext:
    """`_set_gradient_checkpointing`, in which the switches end."""

    name: ClassVar[str] = "_set_gradient_checkpointing"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.original = getattr(model, self.name)
        _wrap(model)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.original(*args, **kwargs)
        _wrap(self.model)


class _Checkpoints:
    """A model's checkpointing function, which computes a block again with the adapters that it had the first time."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.original(keep_context(function), *args, **kwargs)


def _wrap(model: Any) -> None:
    """Let checkpointed blocks keep their adapters."""
    for module in model.modules():
        function = vars(module).get(_FUNCTION)
        if function is not None and not isinstance(function, _Checkpoints):
            setattr(module, _FUNCTION, _Checkpoints(function))
