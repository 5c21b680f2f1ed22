"""DoRA: LoRA's direction with a trained length for every output, `y = x (m (W + s B A) / |W + s B A|)ᵀ + b`.

Liu et al. 2024, arXiv:2402.09353.
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

__all__ = ["DoRA", "DoRAAdapter", "dora_scale", "row_lengths"]


class DoRA(LowRankConfig):
    """Settings of DoRA: those of LoRA."""

    name: Literal["dora"] = "dora"


def row_lengths(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Return the length of each row of `weight + scaling lora_b lora_a`, (out_features,), without making that sum.

    `|w + s b A|² = |w|² + 2s (w Aᵀ) bᵀ + s² b (A Aᵀ) bᵀ` for each row w of the weight and b of B.

    Args:
        weight: (out_features, in_features).
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        scaling: see `lora_scaling`.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    along = (weight @ lora_a.to(weight.dtype).T).to(wide)
    a, b = lora_a.to(wide), lora_b.to(wide)
    squares: Tensor = torch.linalg.vector_norm(weight, dim=1, dtype=wide).square()
    squares += torch.addmm(along, b, a @ a.T, beta=2 * scaling, alpha=scaling**2).mul_(b).sum(1)
    return squares.clamp_min(0).sqrt()


def dora_scale(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, magnitude: Tensor) -> Tensor:
    """Return the factor that gives each row of `weight + scaling lora_b lora_a` the length `magnitude`.

    Returns:
        (out_features,). The length is detached, as in section 4.3 of the paper.
    """
    with torch.no_grad():
        lengths = row_lengths(weight, lora_a, lora_b, scaling)
    scale: Tensor = magnitude / lengths
    return scale


class DoRALayer(LowRankLayer):
    """The scaled low-rank update of a linear layer (`nn.Linear`, a subclass of it, or GPT-2's `Conv1D`)."""

    def __init__(self, layer: Any, config: DoRA, path: str, setup: Setup, *, with_bias: bool) -> None:
        super().__init__(layer, config, path, setup, with_bias=with_bias)
        with torch.no_grad():
            lengths = row_lengths(whole_weight(layer), self.lora_a, self.lora_b, self.scaling)
        self.magnitude = nn.Parameter(lengths.float())

    def scale(self, weight: Tensor) -> Tensor:
        """Return `dora_scale` for the layer's weight."""
        return dora_scale(weight, self.lora_a, self.lora_b, self.scaling, self.magnitude)

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        fusible = fusible_weight(layer, inner, x)
        weight = whole_weight(layer) if fusible is None else fusible.value
        scale = self.scale(weight)
        bias = self.bias if self.bias is not None or layer.bias is None else bias_of(layer)
        if fusible is not None:
            factors, dropped = (self.lora_a, self.lora_b), self.dropout if self.training else 0.0
            return low_rank_linear(
                x, weight, bias, *factors, self.scaling, scale=scale, dropout=dropped, again=fusible.again
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
        cls, layer: Any, changes: Mapping[str, Self], x: Tensor, *, differ: bool, is_short: bool
    ) -> FusedForward | None:
        change, *others = changes.values()
        if differ or others or not is_short or (change.training and change.dropout > 0):
            return None
        dtype = x.dtype
        # The lengths take longer than the layer itself where a text is written word by word.
        scale = change.scale(whole_weight(layer)).to(dtype)
        factors = change.lora_a.to(dtype), change.lora_b.to(dtype)
        bias = layer.bias if change.bias is None else change.bias.to(dtype)

        def scaled(inner: OriginalForward, x: Tensor, _: ActiveAdapters) -> Tensor | None:
            weight = fusible_weight(layer, inner, x)
            if weight is None:
                return None
            return low_rank_linear(x, weight.value, bias, *factors, change.scaling, scale=scale, again=weight.again)

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
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D)

    @classmethod
    def change(cls, layer: Any, config: DoRA, path: str, setup: Setup, *, with_bias: bool) -> DoRALayer:
        """See `LowRankAdapter.change`."""
        return DoRALayer(layer, config, path, setup, with_bias=with_bias)

    def more_parameters(self, place: str, change: DoRALayer) -> dict[str, nn.Parameter]:
        """See `LowRankAdapter.more_parameters`."""
        return {f"{place}.lora_magnitude_vector": change.magnitude}
