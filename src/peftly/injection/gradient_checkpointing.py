"""Gradient checkpointing of adapted models by the switches of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from peftly.injection.overrides import override_method, restore_method
from peftly.injection.selection import bind_context

__all__ = ["Checkpointing"]

_FUNCTION = "_gradient_checkpointing_func"
_SWITCHED = ("gradient_checkpointing", _FUNCTION, "_require_grads_hooks", "_require_grads_hook")
"""Attributes that the switches set: on blocks and stacks, and on the model, whose hooks let embeddings require grad."""


class Checkpointing:
    """Gradient checkpointing of an adapted model: recomputed blocks have the adapters of their first computation.

    `remove` restores the switches as they were before.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        modules = [module for module in model.modules() if module is model or hasattr(module, _SWITCHED[0])]
        self.before = [
            (module, {name: vars(module)[name] for name in _SWITCHED if name in vars(module)}) for module in modules
        ]
        self.inputs = _InputGradients(model)
        override_method(model, _InputGradients.name, self.inputs)
        override_method(model, _BindContext.name, _BindContext(model))

    def remove(self) -> None:
        """Restore the switches."""
        restore_method(self.model, _InputGradients.name)
        restore_method(self.model, _BindContext.name)
        for hook in self.inputs.hooks:
            hook.remove()
        for module, before in self.before:
            for name in _SWITCHED:
                vars(module).pop(name, None)
            vars(module).update(before)


class _InputGradients:
    """`enable_input_require_grads` that remembers its hooks; transformers forgets the hooks of one call in the next."""

    name: ClassVar[str] = "enable_input_require_grads"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.original = getattr(model, self.name)
        self.hooks: list[Any] = []

    def __call__(self) -> None:
        """Let the outputs of the input embedding require grad."""
        self.original()
        self.hooks += self.model._require_grads_hooks


class _BindContext:
    """`_set_gradient_checkpointing`, which all switches call, with checkpointing functions that keep the context."""

    name: ClassVar[str] = "_set_gradient_checkpointing"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.original = getattr(model, self.name)
        _wrap_functions(model)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Set the checkpointing function of all blocks."""
        self.original(*args, **kwargs)
        _wrap_functions(self.model)


class _CheckpointInContext:
    """Checkpointing function of a model that recomputes a block in the context of its first computation."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the output of `function`."""
        return self.original(bind_context(function), *args, **kwargs)


def _wrap_functions(model: Any) -> None:
    """Let checkpointed blocks keep their context, which has their active adapters."""
    for module in model.modules():
        function = vars(module).get(_FUNCTION)
        if function is not None and not isinstance(function, _CheckpointInContext):
            setattr(module, _FUNCTION, _CheckpointInContext(function))
