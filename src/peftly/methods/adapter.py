"""Bottleneck adapters: a small network with a skip around it, `h + s W_up f(W_down h + b_down) + b_up`, in every block.

Placements: `houlsby`, after the attention and after the feed-forward layer, with the normalisations trained too
(Houlsby et al. 2019, arXiv:1902.00751); `pfeiffer`, after the feed-forward layer only (Pfeiffer et al. 2021,
arXiv:2005.00247); `parallel`, beside the feed-forward layer: it reads that layer's input and adds to its output
(He et al. 2022, arXiv:2110.04366).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.methods._copies import add_copies, is_norm
from peftly.methods._layers import LayerChange, add_change, changed_layers
from peftly.methods._low_rank import features
from peftly.methods._method import MethodConfig, OwnFormat, Setup
from peftly.methods._targets import base_modules, find_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterConfig", "BottleneckAdapter", "bottleneck"]

ACTIVATIONS: dict[str, Any] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


class AdapterConfig(MethodConfig):
    """Settings of bottleneck adapters."""

    name: Literal["adapter"] = "adapter"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """Where they stand: after attention and feed-forward layer, after the latter only, or beside it."""
    bottleneck_dim: int | None = Field(default=None, ge=1)
    """The inner dimension."""
    reduction_factor: float | None = Field(default=None, gt=0)
    """Instead, how many times smaller than the layer's width it is. Without either: 16 times."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """What stands between the two projections."""
    scaling: float | None = None
    """What the adapter's output is multiplied by; None: 4 for `parallel`, as in its paper, else 1."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's output, while training."""
    layer_norms: bool | None = None
    """Whether trained copies of the normalisations belong to it; None: with `houlsby`, as in its paper."""
    init: Literal["identity", "near_identity"] = "identity"
    """The up projection starts at zero; or both near zero, from N(0, 0.01) cut at two deviations (Houlsby et al.)."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.bottleneck_dim is not None and self.reduction_factor is not None:
            raise ValueError("bottleneck_dim and reduction_factor both say the inner dimension; leave one of them out")
        return self


def bottleneck(
    h: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return `activation(h downᵀ + down_bias) upᵀ + up_bias`, (..., width), in the dtype of `h`.

    Args:
        h: (..., width).
        down: (bottleneck_dim, width).
        down_bias: (bottleneck_dim,).
        up: (width, bottleneck_dim).
        up_bias: (width,).
        activation: elementwise.
    """
    dtype = h.dtype
    inner = activation(F.linear(h, down.to(dtype), down_bias.to(dtype)))
    return F.linear(inner, up.to(dtype), up_bias.to(dtype))


class Bottleneck(LayerChange):
    """One adapter's weights, and what all placements have in common."""

    def __init__(self, width: int, config: AdapterConfig, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        inner = config.bottleneck_dim or max(1, round(width / (config.reduction_factor or 16)))
        down, up = torch.empty(inner, width), torch.zeros(width, inner)
        if config.init == "near_identity":
            for weight in (down, up):
                nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02, generator=generator)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down, self.up = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))
        self.down_bias = nn.Parameter(torch.zeros(inner, device=device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))
        self.activation, self.dropout = config.activation, config.dropout
        self.scaling = config.scaling or (4.0 if config.placement == "parallel" else 1.0)

    def change(self, h: Tensor) -> Tensor:
        """Return what the adapter adds, from what it reads, both (..., width)."""
        found = bottleneck(h, self.down, self.down_bias, self.up, self.up_bias, ACTIVATIONS[self.activation])
        return self.scaling * F.dropout(found, self.dropout, training=self.training)


class Sequential(Bottleneck):
    """After a layer: reads and changes the layer's output."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = inner(x, *args, **kwargs)
        return output + self.change(output)


class Parallel(Bottleneck):
    """Beside a module: reads the module's input and adds to its output."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return inner(x, *args, **kwargs) + self.change(x)


class BesideOutput(Bottleneck):
    """Beside BERT's two feed-forward modules, of which the second, `output(hidden, x)`, is given the input again."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (feedforward_input,) = args
        return inner(x, feedforward_input + self.change(feedforward_input), **kwargs)


class BottleneckAdapter(OwnFormat):
    """Bottleneck adapters in every block of a model."""

    config: AdapterConfig
    settings: ClassVar[type[MethodConfig]] = AdapterConfig
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_ADAPTER",)

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        outputs = find_part(model, "feed-forward output")
        if config.placement == "houlsby":
            outputs |= find_part(model, "attention output")
        for path, layer in outputs.items():
            width, device = features(layer)[0], next(layer.parameters()).device
            kind: type[Bottleneck] = Sequential
            place: Any = layer
            if config.placement == "parallel":
                kind, place = _feedforward(model, path)
            add_change(model, place, name, kind(width, config, device, setup.generator))
        if config.layer_norms if config.layer_norms is not None else config.placement == "houlsby":
            add_copies(model, name, [(path, module) for path, module in base_modules(model) if is_norm(module)])
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {
            f"base_model.model.{path}.adapter_{part}": parameter
            for path, _, change in changed_layers(self.model, self.name)
            if isinstance(change, Bottleneck)
            for part, parameter in change.named_parameters()
        }


def _feedforward(model: nn.Module, path: str) -> tuple[type[Bottleneck], nn.Module]:
    """Return where an adapter beside the feed-forward layer stands whose last layer is at `path`."""
    parent = model.get_submodule(path.rpartition(".")[0])
    if path.endswith(".output.dense"):
        return BesideOutput, parent
    if any(isinstance(child, nn.LayerNorm) for child in parent.children()):
        raise MethodError(
            f"placement: parallel needs the feed-forward layer as a module of its own, and {type(parent).__name__} "
            "has its parts among others; use placement: pfeiffer"
        )
    return Parallel, parent
