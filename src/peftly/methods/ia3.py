"""(IA)³: trained factors on keys, values and the feed-forward layers' inner activations (arXiv:2205.05638)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.injection import (
    LayerAdapter,
    adapted_layers,
    add_layer_adapter,
    device_of,
    features,
    find_part,
    find_targets,
    plays,
    short_names,
)
from peftly.methods.method import Adapter, MethodConfig, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["IA3", "IA3Adapter"]


class IA3(MethodConfig):
    """Settings of (IA)³."""

    name: Literal["ia3"] = "ia3"
    target_modules: str | tuple[str, ...] | None = None
    """Layers whose output, or input, is scaled. None: the keys, the values and the feed-forward output layers."""
    feedforward_modules: str | tuple[str, ...] | None = None
    """Those among them whose input is scaled. None: the feed-forward output layers; an empty list: none of them."""


class IA3Layer(LayerAdapter):
    """Factors on a layer's output (its bias included) or on its input, one a feature."""

    def __init__(self, layer: Any, *, on_input: bool) -> None:
        super().__init__()
        out_features, in_features = features(layer)
        self.on_input = on_input
        self.factors = nn.Parameter(torch.ones(in_features if on_input else out_features, device=device_of(layer)))

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.on_input:
            return inner(x * self.factors.to(x.dtype), *args, **kwargs)
        output = inner(x, *args, **kwargs)
        return output * self.factors.to(output.dtype)

    def merge_into(self, layer: Any) -> None:
        # A Conv1D has its inputs in rows.
        by_column = self.on_input != isinstance(layer, Conv1D)
        layer.weight.mul_(self.factors if by_column else self.factors[:, None])
        if layer.bias is not None and not self.on_input:
            layer.bias.mul_(self.factors)


class IA3Adapter(Adapter):
    """Factors on the target layers of a model."""

    config: IA3
    peft_types: ClassVar[tuple[str, ...]] = ("IA3",)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: IA3, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        if config.target_modules is None:
            targets = find_part(model, "keys and values") | find_part(model, "feed-forward output")
        else:
            targets = find_targets(model, config.target_modules)
        named = config.feedforward_modules
        inputs = find_targets(model, named) if named else {}
        for path, layer in targets.items():
            on_input = plays("feed-forward output", path) if named is None else path in inputs
            add_layer_adapter(model, layer, name, IA3Layer(layer, on_input=on_input))
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {f"base_model.model.{path}.ia3_l": change.factors for path, _, change in self._targets()}

    def own_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.own_tensors`."""
        # PEFT keeps a column for factors on the output and a row for factors on the input.
        return {
            f"base_model.model.{path}.ia3_l": change.factors[None] if change.on_input else change.factors[:, None]
            for path, _, change in self._targets()
        }

    def load_own_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_own_tensors`."""
        for name, parameter in self.parameters().items():
            parameter.copy_(tensors[name].flatten())

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        targets = self._targets()
        inputs = [path for path, _, change in targets if change.on_input]
        return {
            "exclude_modules": None,
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for _, layer, _ in targets),
            "feedforward_modules": short_names(self.model, inputs),
            "init_ia3_weights": True,
            "target_modules": short_names(self.model, [path for path, _, _ in targets]),
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> IA3:
        """See `Adapter.config_from_peft`."""
        targets, inputs = (peft.get(key) or () for key in ("target_modules", "feedforward_modules"))
        return IA3(
            target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
            feedforward_modules=inputs if isinstance(inputs, str) else tuple(sorted(inputs)),
        )

    def _targets(self) -> list[tuple[str, Any, IA3Layer]]:
        changed = adapted_layers(self.model, self.name)
        return [(path, layer, change) for path, layer, change in changed if isinstance(change, IA3Layer)]
