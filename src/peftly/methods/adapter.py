"""Bottleneck adapters: `h + s (W_up f(W_down h + b_down) + b_up)` in every transformer block.

Placements: `houlsby`, after the attention and after the feed-forward layer, with trained normalisation layers
(Houlsby et al. 2019, arXiv:1902.00751); `pfeiffer`, after the feed-forward layer only (Pfeiffer et al. 2021,
arXiv:2005.00247); `parallel`, from the input of the feed-forward layer to its output (He et al. 2022,
arXiv:2110.04366).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from peftly.errors import MethodError
from peftly.injection import (
    LayerAdapter,
    adapted_layers,
    add_copies,
    add_layer_adapter,
    device_of,
    features,
    find_part,
    norm_layers,
)
from peftly.kernels import draw_mask, drop, dropout, is_transformed, keep_probability, plain_gradients
from peftly.methods.method import MethodConfig, OwnFormat, Setup, Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["AdapterConfig", "BottleneckAdapter", "add_bottleneck", "bottleneck"]

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


class AdapterConfig(MethodConfig):
    """Settings of bottleneck adapters."""

    name: Literal["adapter"] = "adapter"
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """Networks after the attention and the feed-forward layer of each block (houlsby), after the feed-forward layer
    only (pfeiffer), or parallel to the feed-forward layer (parallel)."""
    bottleneck_dim: Size | None = None
    """Bottleneck dimension. None: by `reduction_factor`."""
    reduction_factor: float | None = Field(default=None, gt=0)
    """Width of the layer divided by the bottleneck dimension, instead of `bottleneck_dim`. None: 16."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Activation between the two projections."""
    scaling: float | None = Field(default=None, gt=0)
    """Factor of the adapter's output. None: 4 for `parallel`, as in its paper, else 1."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability on the adapter's output, in training."""
    layer_norms: bool | None = None
    """Train copies of the normalisation layers, too. None: only with `houlsby`, as in its paper."""
    init: Literal["identity", "near_identity"] = "identity"
    """Initial weights: zero for the up projection (identity); or both projections from a normal distribution with a
    standard deviation of 0.01, truncated at two standard deviations (near_identity, as in Houlsby et al.)."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.bottleneck_dim is not None and self.reduction_factor is not None:
            raise ValueError("bottleneck_dim and reduction_factor set the same dimension; leave one of them out")
        return self


def bottleneck(
    h: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor, activation: Activation
) -> Tensor:
    """Return `activation(h downᵀ + down_bias) upᵀ + up_bias`, computed in the dtype of `h`.

    Args:
        h: (..., width).
        down: (bottleneck_dim, width).
        down_bias: (bottleneck_dim,).
        up: (width, bottleneck_dim).
        up_bias: (width,).
        activation: elementwise function.

    Returns:
        (..., width).
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
    """Return `output + scaling drop(bottleneck(h, *weights, activation))`.

    The second product is accumulated into the sum. The tensors saved for the backward pass are `h`, the input of the
    activation, the weights and, with dropout, one bit per element of the output.

    Args:
        output: (..., width), in the dtype of `h`; None: `h`.
        h: (..., width).
        weights: down, down_bias, up and up_bias of `bottleneck`.
        activation: elementwise function.
        scaling: factor of the bottleneck's output.
        probability: probability with which an element of this output is dropped, see `keep_probability`.

    Returns:
        (..., width).
    """
    if is_transformed():
        down, down_bias, up, up_bias = weights
        update = bottleneck(h, down, down_bias, up, up_bias, activation)
        update = F.dropout(update, probability) if probability else update
        return (h if output is None else output) + scaling * update
    mask = None
    if probability > 0:
        keep = keep_probability(probability)
        mask, scaling = draw_mask(h, keep), scaling / keep
    apply: Callable[..., Tensor] = _AddBottleneck.apply
    dtype = h.dtype
    same = (weight if weight.dtype == dtype else weight.to(dtype) for weight in weights)  # `to` takes longer
    return apply(output, h, *same, activation, scaling, mask)


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
        flat_h = h.reshape(-1, h.shape[-1])
        before = (h if output is None else output).contiguous()
        hidden = torch.addmm(down_bias, flat_h, down.T)
        if mask is None:
            after = torch.add(before, up_bias, alpha=scaling)
            after.view(flat_h.shape).addmm_(activation(hidden), up.T, alpha=scaling)
        else:
            update = torch.addmm(up_bias, activation(hidden), up.T)
            after = torch.add(before, drop(update, mask).view(h.shape), alpha=scaling)
        ctx.save_for_backward(h, hidden, down, down_bias, up, up_bias, mask)
        ctx.activation, ctx.scaling, ctx.adds_to_h = activation, scaling, output is None
        return after  # not a view, which no caller may change in place

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad)
        h, hidden, down, _, up, _, mask = ctx.saved_tensors
        flat_h = h.reshape(-1, h.shape[-1])
        flat_grad = grad.reshape(flat_h.shape)
        grad_update = flat_grad if mask is None else drop(flat_grad, mask)
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            activated = ctx.activation(hidden)
        (grad_hidden,) = torch.autograd.grad(activated, hidden, (grad_update @ up).mul_(ctx.scaling))
        activated = activated.detach()
        grad_h = torch.addmm(flat_grad, grad_hidden, down) if ctx.adds_to_h else grad_hidden @ down
        return (
            None if ctx.adds_to_h else grad,
            grad_h.view(grad.shape),
            grad_hidden.T @ flat_h,
            grad_hidden.sum(0),
            (grad_update.T @ activated).mul_(ctx.scaling),
            grad_update.sum(0).mul_(ctx.scaling),
            None,
            None,
            None,
        )


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of `_AddBottleneck` for a backward pass with `create_graph=True`."""
    h, _, down, down_bias, up, up_bias, mask = ctx.saved_tensors
    kept = None if mask is None else drop(torch.ones_like(h), mask)

    def update(h: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
        added: Tensor = ctx.scaling * bottleneck(h, down, down_bias, up, up_bias, ctx.activation)
        added = added if kept is None else added * kept
        return h + added if ctx.adds_to_h else added

    inputs = (h, down, down_bias, up, up_bias)
    gradients = plain_gradients(update, inputs, ctx.needs_input_grad[1:6], grad)
    return (None if ctx.adds_to_h else grad, *gradients, None, None, None)


class Bottleneck(LayerAdapter):
    """Weights of one bottleneck network, for all placements.

    Attributes:
        down: (bottleneck_dim, width).
        down_bias: (bottleneck_dim,).
        up: (width, bottleneck_dim).
        up_bias: (width,).
        activation: name of the activation.
        dropout_module: dropout on the output of the network, or None.
        scaling: factor of the output of the network.
    """

    def __init__(self, width: int, config: AdapterConfig, device: torch.device, generator: torch.Generator) -> None:
        super().__init__()
        hidden = config.bottleneck_dim or max(1, round(width / (config.reduction_factor or 16)))
        down, up = torch.empty(hidden, width), torch.zeros(width, hidden)
        if config.init == "near_identity":
            for weight in (down, up):
                nn.init.trunc_normal_(weight, std=0.01, a=-0.02, b=0.02, generator=generator)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down, self.up = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))
        self.down_bias = nn.Parameter(torch.zeros(hidden, device=device))
        self.up_bias = nn.Parameter(torch.zeros(width, device=device))
        self.activation = config.activation
        # A module, so that tools which disable dropout find it (TRL's trainers do).
        self.dropout_module = nn.Dropout(config.dropout) if config.dropout else None
        self.scaling = config.scaling or (4.0 if config.placement == "parallel" else 1.0)

    @property
    def dropout(self) -> float:
        """Dropout probability on the output of the network."""
        return 0.0 if self.dropout_module is None else self.dropout_module.p

    def add_to(self, output: Tensor | None, h: Tensor) -> Tensor:
        """Return `output` (None: `h`) plus the output of the bottleneck network for `h`; all (..., width)."""
        weights, activation = (self.down, self.down_bias, self.up, self.up_bias), ACTIVATIONS[self.activation]
        has_mixed_dtypes = output is not None and output.dtype != h.dtype
        if not torch.is_autocast_enabled(h.device.type) and not has_mixed_dtypes:
            probability = self.dropout if self.training else 0.0
            return add_bottleneck(output, h, weights, activation, self.scaling, probability=probability)
        update = dropout(bottleneck(h, *weights, activation), self.dropout, training=self.training)
        return (h if output is None else output) + self.scaling * update


class Sequential(Bottleneck):
    """Bottleneck network after a layer, from its output to its output."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.add_to(None, inner(x, *args, **kwargs))


class Parallel(Bottleneck):
    """Bottleneck network parallel to a module, from its input to its output."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.add_to(inner(x, *args, **kwargs), x)


class ParallelBertOutput(Bottleneck):
    """Bottleneck network parallel to the feed-forward layer of BERT, at its second module, `output(hidden, x)`."""

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        (feedforward_input,) = args
        return inner(x, self.add_to(None, feedforward_input), **kwargs)


class BottleneckAdapter(OwnFormat):
    """Bottleneck networks in every block of a model."""

    config: AdapterConfig
    settings: ClassVar[type[MethodConfig]] = AdapterConfig
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_ADAPTER",)
    peft_limitation: ClassVar[str] = "PEFT has no bottleneck adapters"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: AdapterConfig, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        outputs = find_part(model, "feed-forward output")
        if config.placement == "houlsby":
            outputs |= find_part(model, "attention output")
        for path, layer in outputs.items():
            width, device = features(layer)[0], device_of(layer)
            network: type[Bottleneck] = Sequential
            module: Any = layer
            if config.placement == "parallel":
                network, module = _parallel_to(model, path)
            add_layer_adapter(model, module, name, network(width, config, device, setup.generator))
        if config.layer_norms if config.layer_norms is not None else config.placement == "houlsby":
            add_copies(model, name, norm_layers(model).values())
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        return {
            f"base_model.model.{path}.adapter_{part}": parameter
            for path, _, network in adapted_layers(self.model, self.name)
            if isinstance(network, Bottleneck)
            for part, parameter in network.named_parameters()
        }


def _parallel_to(model: nn.Module, path: str) -> tuple[type[Bottleneck], nn.Module]:
    """Return the module to adapt, and how, for a network parallel to the feed-forward layer that ends at `path`.

    Raises:
        MethodError: the feed-forward layer is no module of its own.
    """
    parent = model.get_submodule(path.rpartition(".")[0])
    if path.endswith(".output.dense"):
        return ParallelBertOutput, parent
    if any(isinstance(child, nn.LayerNorm) for child in parent.children()):
        raise MethodError(
            f"placement: parallel needs a feed-forward layer that is a module, and in {type(parent).__name__} it is "
            "none; use placement: pfeiffer"
        )
    return Parallel, parent
