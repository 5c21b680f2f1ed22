"""Memory of a computation that is not run: tensors without data, and the bytes that they would take.

Inside `SimulatedMemory`, tensors of floating-point numbers are on torch's device `meta`, which computes shapes and
dtypes only. Token ids, masks and other integers stay real, so that code which depends on them runs as ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, Self
from unittest.mock import patch

import numpy
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

__all__ = ["SimulatedMemory"]

_aten = torch.ops.aten
_CPU, _META = torch.device("cpu"), torch.device("meta")


class SimulatedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that live at the same time, while a computation runs without data.

    Numbers that Python reads from a tensor without data are 1, true or 0.5, so that losses and norms are finite.

    Attributes:
        live: bytes of the tensors that live now.
        peak: largest `live` so far; it can be set to `live` to begin anew.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """Begin to count.

        Args:
            held: tensors on `meta` that live already, such as the parameters of a model.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: dict[int, int] = {}
        self._pretend_cpu = _PretendCPU()
        for tensor in held:
            self.count(tensor)

    def __enter__(self) -> Self:
        """Begin the simulation."""
        self._pretend_cpu.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """End the simulation."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._pretend_cpu.__exit__(*error)

    def count(self, tensor: Tensor) -> None:
        """Count the memory of a tensor on `meta` from now until it is freed; views share the memory of their base."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        self._storages[key] = storage.nbytes()
        self.live += self._storages[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.live -= self._storages.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch, on `meta` if an input is there, and count its outputs."""
        pretended = self._pretend_cpu
        was_in_kernel, pretended.in_kernel = pretended.in_kernel, True
        try:
            output = _run(func, args, kwargs or {})
            for tensor in tree_iter(output):
                if isinstance(tensor, Tensor) and tensor.is_meta:
                    self.count(tensor)
        finally:
            pretended.in_kernel = was_in_kernel
        return output


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    inputs = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    if not inputs:
        return _create(func, args, kwargs)
    if not any(tensor.is_meta for tensor in inputs):
        return func(*args, **kwargs)
    if func is _aten._local_scalar_dense.default:
        return _number(args[0])
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": _META}
    if not all(tensor.is_meta for tensor in inputs):
        args, kwargs = tree_map_only(Tensor, _without_data, (args, kwargs))
    return _computed(func, args, kwargs)


_SHAPES: dict[Any, tuple[tuple[Any, ...], type | None] | None] = {}
"""Shape, stride and dtype of each output of an operation, by the operation and its inputs; None: it has to run.

Blocks of a model are alike, and torch needs a tenth of a millisecond for the shapes of one operation."""


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation on `meta`."""
    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info is not None:
        is_known = returns[0].alias_info.is_write and isinstance(args[0], Tensor)
        key = _key(func, args, kwargs) if is_known else None
        if key is not None and key in _SHAPES:
            return args[0]  # an operation in place
        output = func(*args, **kwargs)
        if key is not None and output is args[0]:
            _SHAPES[key] = None
        return output
    key = _key(func, args, kwargs)
    known = None if key is None else _SHAPES.get(key)
    if known is not None:
        specs, kind = known
        tensors = [spec and torch.empty_strided(spec[0], spec[1], dtype=spec[2], device=_META) for spec in specs]
        return tensors[0] if kind is None else kind(tensors)
    output = func(*args, **kwargs)
    outputs, kind = ((output,), None) if isinstance(output, Tensor) else (output, type(output))
    if key is not None and kind in (None, tuple, list) and _are_new(outputs, args, kwargs):
        _SHAPES[key] = tuple((t.shape, t.stride(), t.dtype) if t is not None else None for t in outputs), kind
    return output


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a key for the shapes of a result; None: there is none."""
    key = (func, _facts(args), _facts(tuple(kwargs.items())))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _facts(value: Any) -> Any:
    """Return the facts about an argument that decide the shape of a result."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_facts, value))
    return type(value), value


def _are_new(outputs: Any, args: Any, kwargs: Any) -> bool:
    """Return whether all outputs of an operation are tensors of their own, or None."""
    if not all(output is None or (isinstance(output, Tensor) and output.is_meta) for output in outputs):
        return False
    inputs = {value.untyped_storage()._cdata for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)}
    return all(output is None or output.untyped_storage()._cdata not in inputs for output in outputs)


def _create(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Create a tensor: floating-point numbers without data, others and scalars with data."""
    if not any(argument.name == "device" for argument in func._schema.arguments):
        return func(*args, **kwargs)
    dtype, device = kwargs.get("dtype"), kwargs.get("device")
    if device is not None and torch.device(device) == _META:  # a copy of the storage of a tensor without data
        return func(*args, **kwargs)
    if dtype is None or dtype.is_floating_point:
        created = func(*args, **{**kwargs, "device": _META})
        if created.is_floating_point() and created.ndim:
            return created
    return func(*args, **{**kwargs, "device": _CPU})


def _without_data(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta or tensor.ndim == 0 else torch.empty_like(tensor, device=_META)


def _number(tensor: Tensor) -> bool | float | int:
    """Return the number that Python reads from a tensor without data."""
    if tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.is_floating_point() else 1


_ATTENTION = "scaled_dot_product_attention"
_plain_attention = functional.scaled_dot_product_attention


def _attention(
    plain: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return attention by the fused kernel, where a CPU takes it; on `meta` torch would always store the scores."""
    if query.ndim != 4 or dropout_p or (attn_mask is not None and attn_mask.requires_grad):
        return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    mask = None if attn_mask is None else attn_mask.to(query.dtype)
    fused = _aten._scaled_dot_product_flash_attention_for_cpu.default
    output: Tensor = fused(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)[0]
    return output


class _PretendCPU:
    """Lets Python code see tensors without data on the CPU, so that it takes the branches of the CPU.

    Attributes of `torch.Tensor` are replaced meanwhile. They answer as ever for tensors with data, and inside the
    kernels of torch, some of which are written in Python.

    Attributes:
        in_kernel: whether a kernel of torch runs.
    """

    def __init__(self) -> None:
        self.in_kernel = False
        self._patches = ExitStack()

    def __enter__(self) -> None:
        """Replace the attributes."""
        device, is_meta, is_cpu, tolist = Tensor.device, Tensor.is_meta, Tensor.is_cpu, Tensor.tolist

        def hides(tensor: Tensor) -> bool:
            return not self.in_kernel and bool(is_meta.__get__(tensor))  # type: ignore[attr-defined]

        def read_device(tensor: Tensor) -> Any:
            return _CPU if hides(tensor) else device.__get__(tensor)

        def read_is_meta(tensor: Tensor) -> Any:
            return is_meta.__get__(tensor) and not hides(tensor)  # type: ignore[attr-defined]

        def read_is_cpu(tensor: Tensor) -> Any:
            return hides(tensor) or is_cpu.__get__(tensor)  # type: ignore[attr-defined]

        def numbers(tensor: Tensor) -> Any:
            if not hides(tensor):
                return tolist(tensor)
            return numpy.full(tuple(tensor.shape), 0.5 if tensor.is_floating_point() else 0).tolist()

        self._patches.enter_context(patch.object(functional, _ATTENTION, partial(_attention, _plain_attention)))
        for name, value in (
            ("device", property(read_device)),
            ("is_meta", property(read_is_meta)),
            ("is_cpu", property(read_is_cpu)),
            ("tolist", numbers),
        ):
            self._patches.enter_context(patch.object(Tensor, name, value))

    def __exit__(self, *error: object) -> None:
        """Restore the attributes."""
        self._patches.close()
