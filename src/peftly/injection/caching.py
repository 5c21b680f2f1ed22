"""What is computed from a module's tensors, once, and used again for as long as they are what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["Kept"]

_SAMPLED = 64
"""How many values of each tensor are compared."""

_HARMLESS = ("peftly.", "transformers.utils.output_capturing")
"""Where hooks come from that change nothing in what a module computes for given adapters."""


class Kept:
    """Tensors that were computed without gradients. A copy of it, or a pickle, starts empty."""

    def __init__(self) -> None:
        self._entry: tuple[_Origin, list[Tensor]] | None = None

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()

    def get(self, module: nn.Module, facts: Any, compute: Callable[[], list[Tensor]]) -> list[Tensor] | None:
        """Return what `compute` gives; it runs if anything differs from the last time.

        Args:
            module: from whose parameters and buffers, as they are used in evaluation, it is computed.
            facts: what else it depends on, to be compared with `==`.
            compute: gives tensors that nobody changes.

        Returns:
            None where no later call could tell that it is still right: with gradients, in a module of which a part
            trains, has hooks of others or has tensors that are elsewhere (offloaded ones) or of no plain kind.
        """
        origin = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else _origin(module, facts)
        if origin is None:
            return None
        entry = self._entry
        if entry is None or not entry[0].is_still(origin):
            entry = self._entry = (origin, compute())
        return entry[1]


@dataclass(frozen=True, eq=False)
class _Origin:
    """What something was computed from.

    Attributes:
        facts: to be compared with `==`.
        samples: some values of every tensor, by dtype. Versions do not tell what is written through `.data`, and fused
            optimizers raise none.
    """

    facts: tuple[Any, ...]
    samples: list[Tensor]

    def is_still(self, other: _Origin) -> bool:
        return self.facts == other.facts and all(map(torch.equal, self.samples, other.samples))


@torch.no_grad()
def _origin(module: nn.Module, facts: Any) -> _Origin | None:
    tensors: list[Tensor] = []
    forwards = []
    for part in module.modules():
        own = vars(part)
        hooks = (*own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values())
        trains = part.training and not isinstance(part, nn.ModuleDict)  # which has a mode that nobody reads
        if trains or not all(map(_is_harmless, hooks)):
            return None
        tensors += [one for kind in ("_parameters", "_buffers") for one in own[kind].values() if one is not None]
        forwards.append(own.get("forward"))
    device = tensors[0].device
    if not all(_is_plain(one) and one.device == device for one in tensors):
        return None
    samples: dict[torch.dtype, list[Tensor]] = {}
    for one in filter(Tensor.numel, tensors):
        samples.setdefault(one.dtype, []).append(_sample(one))
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    identities = [(one.data_ptr(), one._version, one.shape, one.stride(), one.dtype) for one in tensors]
    return _Origin((facts, device, autocast, forwards, identities), [torch.cat(group) for group in samples.values()])


def _is_harmless(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_HARMLESS)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values and version can be read."""
    return not (tensor.is_meta or tensor.is_inference() or is_traceable_wrapper_subclass(tensor))


def _sample(tensor: Tensor) -> Tensor:
    """Return values from all over a tensor, a step apart that shifts from row to row."""
    step = tensor.numel() // _SAMPLED + 1
    if tensor.is_contiguous():
        return tensor.as_strided((-(-tensor.numel() // step),), (step,))
    return tensor.flatten()[::step]
