"""Restoration of a model after an adapter could not be put on it, taken off it, or merged into it."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import torch
from torch import Tensor, nn

from peftly.adapters.state import ATTRIBUTE, AttachedAdapters
from peftly.injection import LAYER_ADAPTERS, OriginalForward, base_modules, invalidate_cached_tensors
from peftly.utils import available_memory, stops_held

__all__ = ["ReplacedValues", "restored_on_failure"]

USED_SHARE = 0.25
"""Fraction of free memory that replaced values may take while the disk has room for them."""


@contextmanager
def restored_on_failure(model: nn.Module) -> Iterator[None]:
    """Restore a model if the block, which attaches or detaches adapters, raises anything: any error, or Ctrl-C.

    Restored are the modules (attributes, parameters, submodules, hooks, the configuration), the flags `requires_grad`,
    and the adapters with the choice of the active ones; not the values of tensors, see `ReplacedValues`.
    """
    contents = [(attributes, _copied(attributes)) for attributes in _attributes(model)]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    state: AttachedAdapters | None = getattr(model, ATTRIBUTE, None)
    default = None if state is None else state.selection.default
    try:
        yield
    except BaseException:
        with stops_held():
            for attributes, before in contents:
                _restore(attributes, before)
            for module, mode in modes:  # of earlier adapters, too
                module.training = mode
            for parameter, requires_grad in flags:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
            if state is not None and default is not None:
                state.selection.default = default
            invalidate_cached_tensors()
        raise


def _attributes(model: Any) -> Iterator[dict[str, Any]]:
    """Yield the attributes of all objects that attaching and detaching change."""
    for _, module in base_modules(model):
        yield vars(module)
        if LAYER_ADAPTERS in module._modules:
            yield vars(module._modules[LAYER_ADAPTERS])
        for name in ("forward", "_old_forward"):
            original = getattr(vars(module).get(name), "original", None)
            if isinstance(original, OriginalForward):  # of an adapted layer, or of a module that reads its weights
                yield from (vars(vars(module)[name]), vars(original))
    if (state := getattr(model, ATTRIBUTE, None)) is not None:
        yield vars(state)
    if (config := getattr(model, "config", None)) is not None and hasattr(config, "get_text_config"):
        yield vars(config)
        yield vars(config.get_text_config())


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return attributes, each with a copy of its content if it is a collection (hooks, parameters)."""
    return {
        name: (value, next((kind(value) for kind in (dict, list, set) if isinstance(value, kind)), None))
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    """Restore attributes from `_copied`, in place: handles of hooks refer to the dictionaries."""
    attributes.clear()
    for name, (value, content) in before.items():
        attributes[name] = value
        if isinstance(value, list):
            value[:] = content
        elif content is not None:
            value.clear()
            value.update(content)


class ReplacedValues:
    """Values of tensors that are replaced inside a `with` block, which gives them back if the block raises anything.

    A merge may replace all weights of a model, of which a second copy may not fit into memory. Then they are kept in a
    temporary file, in the folder for such files (`TMPDIR`), if the disk has room for them.
    """

    def __init__(self, size: int) -> None:
        """Create an empty collection; `size` is the number of bytes of all tensors that may be replaced."""
        fits = size < USED_SHARE * available_memory()
        on_disk = not fits and shutil.disk_usage(tempfile.gettempdir()).free > size
        self._file: IO[bytes] = tempfile.TemporaryFile() if on_disk else io.BytesIO()  # noqa: SIM115 -- see __exit__
        self._kept: list[tuple[Tensor, Tensor, int]] = []

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Keep the values of tensors, which are about to be replaced."""
        for tensor in tensors:
            start = self._file.seek(0, 2)
            self._file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._kept.append((tensor, tensor.data, start))

    def __enter__(self) -> ReplacedValues:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with stops_held(), self._file:
            if kind is None:
                return
            for tensor, data, start in reversed(self._kept):
                self._file.seek(start)
                values = torch.frombuffer(bytearray(self._file.read(data.nbytes)), dtype=torch.uint8)
                tensor.data = data  # not a converted copy
                with torch.no_grad():
                    tensor.copy_(values.view(data.dtype).view(data.shape))
