"""(IA)³: trained scaling vectors on keys, values and feed-forward activations (Liu et al. 2022, arXiv:2205.05638).

`k = l_k ⊙ (x W_kᵀ)`, `v = l_v ⊙ (x W_vᵀ)` and `y = (l_ff ⊙ h) W_downᵀ`, where h is the input of the last feed-forward
layer. The vectors start at one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection import (
    LayerAdapter,
    adapted_layers,
    add_layer_adapter,
    device_of,
    features,
    find_part,
    find_targets,
    is_part,
    short_names,
)
from peftly.methods.method import Adapter, MethodConfig, Setup
from peftly.methods.peft_files import LAYER_KEYS, check_layer_choice, module_names, peft_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["IA3", "IA3Adapter"]


class IA3(MethodConfig):
    """Settings of (IA)³."""

    name: Literal["ia3"] = "ia3"
    target_modules: str | tuple[str, ...] | None = None
    """Layers whose output or input is scaled. None: the layers of keys and values and the last feed-forward layers."""
    feedforward_modules: str | tuple[str, ...] | None = None
    """Layers among `target_modules` whose input is scaled. None: the last feed-forward layers; an empty list: none."""
    init: Literal["ones", "random"] = "ones"
    """Initial vectors: ones, or values from N(0, 1), for tests of other tools."""


class IA3Layer(LayerAdapter):
    """Scaling vector on the output of a linear layer, bias included, or on its input.

    Attributes:
        factors: (out_features,), or (in_features,) with `on_input`.
        on_input: whether the input is scaled.
    """

    def __init__(self, layer: Any, config: IA3, setup: Setup, *, on_input: bool) -> None:
        super().__init__()
        out_features, in_features = features(layer)
        self.on_input = on_input
        factors = torch.ones(in_features if on_input else out_features)
        if config.init == "random" and not setup.is_loading:
            factors = torch.randn(factors.shape, generator=setup.generator)
        self.factors = nn.Parameter(factors.to(device_of(layer)))

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output with the input or the output scaled; see `LayerAdapter.run`."""
        if self.on_input:
            return inner(x * self.factors.to(x.dtype), *args, **kwargs)
        output = inner(x, *args, **kwargs)
        return output * self.factors.to(output.dtype)

    def merge_into(self, layer: Any) -> None:
        """See `LayerAdapter.merge_into`."""
        # The weight of a Conv1D is (in_features, out_features).
        scales_last_dim = self.on_input != isinstance(layer, Conv1D)
        layer.weight.mul_(self.factors if scales_last_dim else self.factors[:, None])
        if layer.bias is not None and not self.on_input:
            layer.bias.mul_(self.factors)


class IA3Adapter(Adapter):
    """Scaling vectors on the target layers of a model."""

    config: IA3
    peft_types: ClassVar[tuple[str, ...]] = ("IA3",)
    peft_keys: ClassVar[frozenset[str]] = LAYER_KEYS | {"feedforward_modules", "init_ia3_weights"}

    @classmethod
    def attach(cls, model: PreTrainedModel, config: IA3, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        if config.target_modules is None:
            targets = find_part(model, "keys and values") | find_part(model, "feed-forward output")
        else:
            targets = find_targets(model, config.target_modules, warns=not setup.is_loading)
        modules = config.feedforward_modules
        inputs = find_targets(model, modules, warns=not setup.is_loading) if modules else {}
        outside = [path for path in inputs if path not in targets]
        if outside and not setup.is_loading:  # in a file they have no effect in PEFT either
            raise MethodError(
                f"feedforward_modules={modules!r} name {outside[0]}, which is not among target_modules; name it there "
                "too, or leave it out"
            )
        for path, layer in targets.items():
            on_input = is_part("feed-forward output", path) if modules is None else path in inputs
            add_layer_adapter(model, layer, name, IA3Layer(layer, config, setup, on_input=on_input))
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {f"base_model.model.{path}.ia3_l": ia3.factors for path, _, ia3 in self._targets()}

    def file_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.file_tensors`."""
        # PEFT stores (out_features, 1) for an output and (1, in_features) for an input.
        return {
            f"base_model.model.{path}.ia3_l": ia3.factors[None] if ia3.on_input else ia3.factors[:, None]
            for path, _, ia3 in self._targets()
        }

    def load_file_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_file_tensors`."""
        for name, parameter in self.parameters().items():
            parameter.copy_(tensors[name].flatten())

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        targets = self._targets()
        inputs = [path for path, _, ia3 in targets if ia3.on_input]
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
        check_layer_choice(peft)
        return IA3.from_json({key: module_names(peft, key) for key in ("target_modules", "feedforward_modules")})

    @classmethod
    def config_on(
        cls, model: nn.Module, config: IA3, peft: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> IA3:
        """See `Adapter.config_on`."""
        in_file = {match[1]: shape for name, shape in shapes.items() if (match := _VECTOR.fullmatch(name))}
        targets = peft_targets(model, (nn.Linear, Conv1D), peft, config.modules_to_save or (), in_file)
        if targets is None:
            targets = list(find_targets(model, config.target_modules or (), warns=False)) if not shapes else None
        if targets is None:
            return config
        modules: Any = config.feedforward_modules
        if modules and not shapes:  # a new adapter: PEFT leaves names of layers that are no target layers out
            inputs = find_targets(model, modules, warns=False)
            modules = tuple(path for path in inputs if path in targets)
        if not peft.get("target_modules"):
            modules = tuple(path for path in targets if in_file[path][0] == 1)
        return config.model_copy(update={"target_modules": tuple(targets), "feedforward_modules": modules})

    def _targets(self) -> list[tuple[str, Any, IA3Layer]]:
        layers = adapted_layers(self.model, self.name)
        return [(path, layer, ia3) for path, layer, ia3 in layers if isinstance(ia3, IA3Layer)]


_VECTOR = re.compile(r"base_model\.model\.(.+)\.ia3_l")
