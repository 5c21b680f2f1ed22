"""DoRA: low-rank updates and a trained magnitude of each output feature, `y = x (m (W + s B A) / ‖W + s B A‖)ᵀ + b`.

‖·‖ is the norm of each row of the weight (Liu et al. 2024, arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftly.injection import ActiveAdapters, FusedForward, OriginalForward, bias_of, fusible_weight, whole_weight
from peftly.kernels import dropout, low_rank_linear
from peftly.methods.low_rank import (
    LowRankAdapter,
    LowRankConfig,
    LowRankLayer,
    lora_delta,
)
from peftly.methods.method import Setup

__all__ = ["DoRA", "DoRAAdapter", "dora_scale", "row_norms"]


class DoRA(LowRankConfig):
    """Settings of DoRA."""

    name: Literal["dora"] = "dora"
    init: Literal["kaiming", "gaussian", "random"] = "kaiming"
    """Initial factors, as in LoRA."""


def row_norms(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Return the norm of each row of `weight + scaling lora_b lora_a`, (out_features,), without computing this sum.

    `‖w + s b A‖² = ‖w‖² + 2s (w Aᵀ) bᵀ + s² b (A Aᵀ) bᵀ` for each row w of the weight and b of B.

    Args:
        weight: (out_features, in_features).
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        scaling: factor of the update, see `lora_scaling`.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    weight_a = (weight @ lora_a.to(weight.dtype).T).to(wide)
    a, b = lora_a.to(wide), lora_b.to(wide)
    squares: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=wide).square()
    squares += torch.addmm(weight_a, b, a @ a.T, beta=2 * scaling, alpha=scaling**2).mul_(b).sum(1)
    return squares.clamp_min(0).sqrt()


def dora_scale(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor) -> Tensor:
    """Return the factor by which each row of `weight + scaling lora_b lora_a` gets the norm `magnitude`.

    Args:
        weight: (out_features, in_features).
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        scaling: factor of the update, see `lora_scaling`.
        magnitude: (out_features,).

    Returns:
        (out_features,). The norm is detached, as in section 4.3 of the paper.
    """
    with torch.no_grad():
        norms = row_norms(weight, lora_a, lora_b, scaling)
    scale: Tensor = magnitude / norms.detach()  # forward-mode AD does not heed no_grad
    return scale


class DoRALayer(LowRankLayer):
    """Low-rank update and magnitudes of a linear layer (`nn.Linear`, a subclass of it, or `Conv1D` of GPT-2).

    Attributes:
        magnitude: (out_features,), initially the norms of the rows of the weight.
    """

    def __init__(self, layer: Any, config: DoRA, path: str, setup: Setup, *, with_bias: bool) -> None:
        super().__init__(layer, config, path, setup, with_bias=with_bias)
        with torch.no_grad():
            norms = row_norms(whole_weight(layer), self.lora_a, self.lora_b, self.scaling)
        self.magnitude = nn.Parameter(norms.float())

    def scale(self, weight: Tensor) -> Tensor:
        """Return `dora_scale`, (out_features,), for the weight of the layer, (out_features, in_features)."""
        return dora_scale(weight, self.lora_a, self.lora_b, self.scaling, self.magnitude)

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fusible = fusible_weight(layer, inner, x)
        weight = whole_weight(layer) if fusible is None else fusible.value
        scale = self.scale(weight)
        bias = self.bias if self.bias is not None or layer.bias is None else bias_of(layer)
        if fusible is not None:
            return low_rank_linear(
                x,
                weight,
                bias,
                self.lora_a,
                self.lora_b,
                self.scaling,
                scale=scale,
                dropout=self.dropout if self.training else 0.0,
                recompute_weight=fusible.recompute,
            )
        output = inner(x, *args, **kwargs)
        if layer.bias is not None:
            output = output - bias_of(layer)
        x = dropout(x.to(output.dtype), self.dropout, training=self.training)
        update = F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        output = scale.to(output.dtype) * (output + self.scaling * update)
        return output if bias is None else output + bias.to(output.dtype)

    @classmethod
    def fused_forward(
        cls, layer: Any, adapters: Mapping[str, Self], x: Tensor, *, differ: bool, is_short: bool
    ) -> FusedForward | None:
        dora, *others = adapters.values()
        if differ or others or not is_short or (dora.training and dora.dropout > 0):
            return None
        dtype = x.dtype
        # In generation, with a token per call, the norms take longer than the layer itself.
        scale = dora.scale(whole_weight(layer)).to(dtype)
        factors = dora.lora_a.to(dtype), dora.lora_b.to(dtype)
        bias = layer.bias if dora.bias is None else dora.bias.to(dtype)

        def scaled(inner: OriginalForward, x: Tensor, _: ActiveAdapters) -> Tensor | None:
            weight = fusible_weight(layer, inner, x)
            if weight is None:
                return None
            return low_rank_linear(
                x, weight.value, bias, *factors, dora.scaling, scale=scale, recompute_weight=weight.recompute
            )

        return scaled

    def merge_into(self, layer: Any) -> None:
        weight = whole_weight(layer)
        scale = self.scale(weight)
        merged = scale[:, None] * (weight + lora_delta(self.lora_a, self.lora_b, self.scaling))
        layer.weight.copy_(merged.T if isinstance(layer, Conv1D) else merged)
        if self.bias is not None:
            layer.bias.copy_(self.bias)


class DoRAAdapter(LowRankAdapter):
    """DoRA on the target layers of a model."""

    config: DoRA
    settings: ClassVar[type[LowRankConfig]] = DoRA
    uses_dora: ClassVar[bool] = True
    layer_classes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D)

    @classmethod
    def make_layer(cls, layer: Any, config: DoRA, path: str, setup: Setup, *, with_bias: bool) -> DoRALayer:
        """See `LowRankAdapter.make_layer`."""
        return DoRALayer(layer, config, path, setup, with_bias=with_bias)

    def more_parameters(self, prefix: str, low_rank_layer: DoRALayer) -> dict[str, nn.Parameter]:
        """See `LowRankAdapter.more_parameters`."""
        return {f"{prefix}.lora_magnitude_vector": low_rank_layer.magnitude}
