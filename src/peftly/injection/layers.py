"""Change layers of a model in place: run adapters around them, and put everything back.

A changed layer stays the same module object with the same parameters under the same names, so checkpoints, tied
weights and other hooks go on working. Two things are added to it: a submodule `peftly` that holds one change per
adapter, and a `forward` of its own that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from peftly.errors import MethodError
from peftly.injection.selection import ActiveAdapters, AdapterNames, Selection, selection_of

__all__ = [
    "LAYER_ADAPTERS",
    "MOST_WORDS",
    "LayerAdapter",
    "OriginalForward",
    "adapted_layers",
    "add_layer_adapter",
    "fixed_weights",
    "original_forward",
    "override_method",
    "owner",
    "remove_layer_adapters",
    "restore_method",
]

LAYER_ADAPTERS = "peftly"

FusedForward = Callable[["OriginalForward", Tensor, ActiveAdapters], Tensor | None]
"""From what a layer computes without any change, its input and the adapters of its rows to its new output; None: not
for this input."""

MOST_WORDS = 256
"""Of all rows of a short call. Up to it stacking LoRA was faster in bf16 and fp32, with 2 adapters and with 16."""

_MADE: ContextVar[dict[Any, FusedForward | None] | None] = ContextVar(
    "made of weights that do not change", default=None
)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Let layers keep what they make of adapters' weights, of which none changes until the block ends."""
    token = _MADE.set({} if _MADE.get() is None else _MADE.get())
    try:
        yield
    finally:
        _MADE.reset(token)


class LayerAdapter(nn.Module):
    """What one adapter does at one layer."""

    is_outermost: ClassVar[bool] = False
    """Whether it stands outside all other changes of its layer, whenever they were attached."""

    has_forward: ClassVar[bool] = True
    """Whether it takes part in the layer's forward, or only has its place there."""

    only_adds: bool = False
    """Whether it adds something to the layer's output in which the layer's own parameters have no part."""

    def run(self, layer: nn.Module, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's new output for its input `x`.

        Args:
            layer: the module that is changed.
            inner: what the layer computes without this change: an `OriginalForward`, or an earlier adapter's work.
            x: the layer's input.
            args, kwargs: what else it was called with.
        """
        raise NotImplementedError

    def merge_into(self, layer: Any) -> None:
        """Fold what it does into the layer's own parameters, in place, which are in fp32 or wider meanwhile."""
        raise NotImplementedError

    @classmethod
    def fused_forward(
        cls, layer: nn.Module, changes: Mapping[str, Self], x: Tensor, *, differ: bool, is_short: bool
    ) -> FusedForward | None:
        """Return what gives the layer's new output for all rows of a call, for as long as no weight changes.

        None where there is no such thing: then every row goes by `run`, those with other adapters apart.

        Args:
            layer: the module that is changed.
            changes: all those that some row has, by the adapter's name; they are of this very class.
            x: the layer's input in such a call.
            differ: whether its rows have different ones of them.
            is_short: whether it has `MOST_WORDS` at most, so that what is made is kept for others.
        """
        return None


class OriginalForward:
    """A layer's forward as it was before any change, whoever had set it (accelerate's device hooks do)."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.replaced: Callable[..., Tensor] | None = layer.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        output: Tensor = type(self.layer).forward(self.layer, *args, **kwargs)
        return output

    def is_plain(self, kind: type[nn.Module]) -> bool:
        """Whether the layer is exactly a `kind` that nobody has altered, so that its product may be fused."""
        return type(self.layer) is kind and self.replaced is None


class _AdaptedForward:
    """Stands in for `layer.forward`: the adapters' changes in the order they were attached, innermost first.

    An object and not a closure, so that deepcopy and pickle take it along with the layer.
    """

    def __init__(self, layer: Any, selection: Selection) -> None:
        self.layer = layer
        self.selection = selection
        self.own = OriginalForward(layer)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = self.selection.rows
        if not (args or kwargs) and (output := self._fused_forward(rows, x)) is not None:
            return output
        if len(rows.sets) == 1:
            return self._through(rows.sets[0], x, *args, **kwargs)
        if x.shape[0] % len(rows.sets):
            raise MethodError(
                f"adapters were chosen for {len(rows.sets)} rows and this call has {x.shape[0]}; give one entry for "
                "each row (what all rows of a batch share, as T5's relative positions, cannot differ between them)"
            )
        groups = rows.groups(x.shape[0], frozenset(self.layer.peftly), x.device)
        if len(groups) == 1:
            return self._through(groups[0].names, x, *args, **kwargs)
        outputs = []
        for group in groups:
            picked = [_rows_of(value, x.shape[0], group.index) for value in (x, *args)]
            named = {key: _rows_of(value, x.shape[0], group.index) for key, value in kwargs.items()}
            with self.selection.use(group.rows):
                output = self._through(group.names, *picked, **named)
            # A layer may give one row that stands for all (BART's positions).
            outputs.append(output.expand(len(group.index), *output.shape[1:]) if output.shape[0] == 1 else output)
        place = torch.cat([group.index for group in groups]).argsort()
        return torch.cat(outputs).index_select(0, place)

    def _fused_forward(self, rows: ActiveAdapters, x: Tensor) -> Tensor | None:
        """Return the output for all rows at once, if weights are fixed and all changes of one kind that knows how."""
        made = _MADE.get()
        if made is None or torch.is_grad_enabled():
            return None
        is_short = x.numel() <= MOST_WORDS * x.shape[-1]
        key = (self, rows.names, rows.differ, x.dtype, is_short)
        if key in made:
            fused_forward = made[key]
        else:
            changes = {name: change for name, change in self.layer.peftly.items() if name in rows.names}
            kinds = {type(change) for change in changes.values()}
            kind = kinds.pop() if len(kinds) == 1 else LayerAdapter
            fused_forward = kind.fused_forward(self.layer, changes, x, differ=rows.differ, is_short=is_short)
            if (
                is_short or fused_forward is None
            ):  # what stays among the large tensors of a long call would pin the heap
                made[key] = fused_forward
        return None if fused_forward is None else fused_forward(self.own, x, rows)

    def _through(self, names: AdapterNames, *args: Any, **kwargs: Any) -> Tensor:
        forward: Callable[..., Tensor] = self.own
        for name, change in self.layer.peftly.items():
            if name in names:
                forward = partial(change.run, self.layer, forward)
        return forward(*args, **kwargs)


def _rows_of(value: Any, count: int, index: Tensor) -> Any:
    is_batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count
    return value.index_select(0, index) if is_batched else value


def add_layer_adapter(model: nn.Module, layer: Any, name: str, change: LayerAdapter) -> None:
    """Let adapter `name` run `change` at `layer`, a part of `model`.

    Raises:
        MethodError: the adapter changes this layer already.
    """
    if name in getattr(layer, LAYER_ADAPTERS, {}):
        path = next(path for path, module in model.named_modules() if module is layer)
        raise MethodError(f"{path} would be changed twice by one adapter; take it out of one of the two settings")
    if not hasattr(layer, LAYER_ADAPTERS):
        forward = _AdaptedForward(layer, selection_of(model)) if change.has_forward else None
        layer.peftly = nn.ModuleDict()
        if forward is not None:
            layer.forward = forward
    layer.peftly[name] = change.train(layer.training)
    for other in [other for other, known in layer.peftly.items() if known.is_outermost]:
        layer.peftly[other] = layer.peftly.pop(other)


def original_forward(layer: Any) -> OriginalForward:
    """Return what a changed layer computes without any change."""
    own: OriginalForward = vars(layer)["forward"].own
    return own


def remove_layer_adapters(model: nn.Module, name: str) -> None:
    """Take adapter `name` off every layer of `model`; a layer that nothing changes any more is as it was."""
    for _, layer, change in list(adapted_layers(model, name)):
        del layer.peftly[name]
        if not len(layer.peftly):
            if change.has_forward:
                replaced = layer.__dict__.pop("forward").own.replaced
                if replaced is not None:
                    layer.forward = replaced
            del layer.peftly


def adapted_layers(model: nn.Module, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, the layer and the change of every layer that adapter `name` touches, in the model's order."""
    for path, layer in model.named_modules():
        changes = dict(layer.named_children()).get(LAYER_ADAPTERS)
        if isinstance(changes, nn.ModuleDict) and name in changes:
            yield path, layer, changes[name]


def owner(path: str) -> str:
    """Return the adapter that a parameter of a model belongs to, by the parameter's path; empty for the base's own."""
    parts = path.split(".")
    return parts[parts.index(LAYER_ADAPTERS) + 1] if LAYER_ADAPTERS in parts else ""


def override_method(model: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Let this one `model` answer `name` with `replacement`; `restore_method` undoes it.

    The replacement should be an object that holds what it needs, so that deepcopy and pickle take it along.
    """
    replacement.shadowed = model.__dict__.get(name)  # type: ignore[attr-defined]
    setattr(model, name, replacement)


def restore_method(model: Any, name: str) -> None:
    """Undo `override_method`: what stood there before is back, on the instance or from its class."""
    shadowed = model.__dict__.pop(name).shadowed
    if shadowed is not None:
        setattr(model, name, shadowed)
