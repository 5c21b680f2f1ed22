"""Bottleneck adapters: a small network with a skip around it, `h + s W_up f(W_down h + b_down) + b_up`, in every block.

Placements: `houlsby`, after the attention and after the feed-forward layer, with the normalisations trained too
(Houlsby et al. 2019, arXiv:1902.00751); `pfeiffer`, after the feed-forward layer only (Pfeiffer et al. 2021,
arXiv:2005.00247); `parallel`, beside the feed-forward layer: it reads that layer's input and adds to its output
(He et al. 2022, arXiv:2110.04366).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.injection import (
    LayerAdapter,
    adapted_layers,
    add_copies,
    add_layer_adapter,
    base_modules,
    device_of,
    features,
    find_part,
    is_norm,
)
from peftly.kernels import draw_mask, drop, dropout, keep_probability
from peftly.methods.method import MethodConfig, OwnFormat, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterConfig", "BottleneckAdapter", "add_bottleneck", "bottleneck"]

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


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
    h: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, activation: Activation
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


def add_bottleneck(
    output: Tensor | None,
    h: Tensor,
    weights: Sequence[Tensor],
    activation: Activation,
    scaling: float,
    *,
    probability: float = 0.0,
) -> Tensor:
    """Return `output + scaling drop(bottleneck(h, *weights, activation))`, the second product added into the sum.

    Kept for the backward pass are `h`, what goes into the activation, the weights, and one bit for each entry of the
    output if some are dropped.

    Args:
        output: (..., width), in the dtype of `h`; None: `h`.
        h: (..., width).
        weights: those of `bottleneck`.
        activation: elementwise.
        scaling: of what is added.
        probability: with which an entry of it is dropped, see `keep_probability`.

    Returns:
        (..., width).
    """
    mask = None
    if probability > 0:
        keep = keep_probability(probability)
        mask, scaling = draw_mask(h, keep), scaling / keep
    apply: Callable[..., Tensor] = _AddBottleneck.apply
    return apply(output, h, *(weight.to(h.dtype) for weight in weights), activation, scaling, mask)


class _AddBottleneck(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor | None,
        h: Tensor,
        down: Tensor,
        down_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
        activation: Activation,
        scaling: float,
        mask: Tensor | None,
    ) -> Tensor:
        rows = h.reshape(-1, h.shape[-1])
        before = rows if output is None else output.reshape(rows.shape)
        inner = torch.addmm(down_bias, rows, down.T)
        if mask is None:
            after = torch.add(before, up_bias, alpha=scaling).addmm_(activation(inner), up.T, alpha=scaling)
        else:
            found = torch.addmm(up_bias, activation(inner), up.T)
            after = torch.add(before, drop(found, mask), alpha=scaling)
        ctx.save_for_backward(rows, inner, down, up, mask)
        ctx.activation, ctx.scaling, ctx.adds_to_h = activation, scaling, output is None
        return after.view(h.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, down, up, mask = ctx.saved_tensors
        grad_rows = grad.reshape(rows.shape)
        grad_found = grad_rows if mask is None else drop(grad_rows, mask)
        with torch.enable_grad():
            inner = inner.detach().requires_grad_()
            outer = ctx.activation(inner)
        (grad_inner,) = torch.autograd.grad(outer, inner, (grad_found @ up).mul_(ctx.scaling))
        outer = outer.detach()
        grad_h = torch.addmm(grad_rows, grad_inner, down) if ctx.adds_to_h else grad_inner @ down
        return (
            None if ctx.adds_to_h else grad,
            grad_h.view(grad.shape),
            grad_inner.T @ rows,
            grad_inner.sum(0),
            (grad_found.T @ outer).mul_(ctx.scaling),
            grad_found.sum(0).mul_(ctx.scaling),
            None,
            None,
            None,
        )


class Bottleneck(LayerAdapter):
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

    def add_to(self, output: Tensor | None, h: Tensor) -> Tensor:
        """Return `output`, or None: `h`, with what the adapter makes of `h` added; all (..., width)."""
        weights, activation = (self.down, self.down_bias, self.up, self.up_bias), ACTIVATIONS[self.activation]
        plain = torch.is_autocast_enabled(h.device.type) or (output is not None and output.dtype != h.dtype)
        if not plain:
            probability = self.dropout if self.training else 0.0
            return add_bottleneck(output, h, weights, activation, self.scaling, probability=probability)
        found = dropout(bottleneck(h, *weights, activation), self.dropout, training=self.training)
        return (h if output is None else output) + self.scaling * found


class Sequential(Bottleneck):
    """After a layer: reads and changes the layer's output."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.add_to(None, inner(x, *args, **kwargs))


class Parallel(Bottleneck):
    """Beside a module: reads the module's input and adds to its output."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.add_to(inner(x, *args, **kwargs), x)


class BesideOutput(Bottleneck):
    """Beside BERT's two feed-forward modules, of which the second, `output(hidden, x)`, is given the input again."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (feedforward_input,) = args
        return inner(x, self.add_to(None, feedforward_input), **kwargs)


class BottleneckAdapter(OwnFormat):
    """Bottleneck adapters in every block of a model."""

    config: AdapterConfig
    settings: ClassVar[type[MethodConfig]] = AdapterConfig
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_ADAPTER",)
    beyond_peft: ClassVar[str] = "PEFT has no bottleneck adapters"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        outputs = find_part(model, "feed-forward output")
        if config.placement == "houlsby":
            outputs |= find_part(model, "attention output")
        for path, layer in outputs.items():
            width, device = features(layer)[0], device_of(layer)
            kind: type[Bottleneck] = Sequential
            place: Any = layer
            if config.placement == "parallel":
                kind, place = _feedforward(model, path)
            add_layer_adapter(model, place, name, kind(width, config, device, setup.generator))
        if config.layer_norms if config.layer_norms is not None else config.placement == "houlsby":
            add_copies(model, name, [module for _, module in base_modules(model) if is_norm(module)])
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {
            f"base_model.model.{path}.adapter_{part}": parameter
            for path, _, change in adapted_layers(self.model, self.name)
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
