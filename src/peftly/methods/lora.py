"""LoRA: a low-rank change of linear layers, `y = x Wᵀ + s (x Aᵀ) Bᵀ` (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftly.errors import MethodError
from peftly.injection import ActiveAdapters, FusedForward, OriginalForward, bias_of, fusible_weight, whole_weight
from peftly.kernels import StackedFactors, dropout, low_rank_linear, stack_factors
from peftly.methods.low_rank import (
    LowRankAdapter,
    LowRankConfig,
    LowRankLayer,
    lora_delta,
)
from peftly.methods.method import Setup
from peftly.methods.quantization_error import (
    error_factors,
    quantization_errors,
    quantized_layers,
    typical_inputs,
)

__all__ = ["LoRA", "LoRAAdapter", "lora_embedding", "principal_factors"]


class LoRA(LowRankConfig):
    """Settings of LoRA."""

    name: Literal["lora"] = "lora"
    init: Literal["kaiming", "pissa", "qera"] = "kaiming"
    """Where the factors start: A random and B zero (kaiming); both from the weight's largest singular values (pissa);
    over a quantised base, from what quantising it has cost, by the inputs of some training rows (qera)."""
    lora_plus_ratio: float = Field(default=1.0, gt=0)
    """How many times the learning rate of A is that of B (LoRA+, arXiv:2402.12354)."""

    @property
    def corrects_quantization(self) -> bool:
        """See `MethodConfig.corrects_quantization`."""
        return self.init == "qera"


def lora_embedding(ids: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float | Tensor) -> Tensor:
    """Return the change of an embedding's output, `scaling A[:, ids]ᵀ Bᵀ`; 0 for ids that are no words.

    Args:
        ids: any shape.
        lora_a: (rank, words).
        lora_b: (width, rank).
        scaling: see `lora_scaling`.

    Returns:
        (..., width).
    """
    is_word = ids < lora_a.shape[1]
    inner = F.embedding(ids * is_word, lora_a.T)
    return scaling * (inner @ lora_b.T) * is_word[..., None]


def principal_factors(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return A and B whose product `scaling B A` is the best approximation of `weight` of that rank.

    Args:
        weight: (out_features, in_features).
        rank: inner dimension.
        scaling: see `lora_scaling`.

    Returns:
        (rank, in_features) and (out_features, rank), as in PiSSA (Meng et al. 2024, arXiv:2404.02948).
    """
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[:rank] / scaling).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


class LoRALayer(LowRankLayer):
    """The low-rank update of a linear layer (`nn.Linear`, a subclass of it, or GPT-2's `Conv1D`) or an embedding.

    PiSSA trains the principal part of the weight. The base stays as it is: the principal part that it starts from is
    kept beside the trained one and subtracted, so that the two together are an update of twice the rank.
    """

    def __init__(self, layer: Any, config: LoRA, path: str, setup: Setup, *, with_bias: bool) -> None:
        super().__init__(layer, config, path, setup, with_bias=with_bias)
        self.only_adds = not with_bias
        self.start_a: Tensor | None
        self.start_b: Tensor | None
        self.register_buffer("start_a", None)
        self.register_buffer("start_b", None)
        if config.init == "pissa":
            if not isinstance(layer, nn.Linear | Conv1D):
                raise MethodError(f"init: pissa needs linear layers, and {path} is a {type(layer).__name__}")
            self.start_a, self.start_b = principal_factors(whole_weight(layer).detach(), self.rank, self.scaling)
            with torch.no_grad():
                self.lora_a.copy_(self.start_a)
                self.lora_b.copy_(self.start_b)
        elif isinstance(layer, nn.Embedding):
            # As in the released code: A has a column for every word, so it is the one that starts at zero.
            with torch.no_grad():
                self.lora_a.zero_()
                self.lora_b.copy_(torch.randn(self.lora_b.shape, generator=setup.generator))

    def factors(self) -> tuple[Tensor, Tensor]:
        if self.start_a is None or self.start_b is None:
            return self.lora_a, self.lora_b
        return torch.cat([self.lora_a, self.start_a.to(self.lora_a)]), torch.cat(
            [self.lora_b, -self.start_b.to(self.lora_b)], dim=1
        )

    def load_factors(self, lora_a: Tensor, lora_b: Tensor) -> None:
        if self.start_a is not None and self.start_b is not None:
            lora_a, start_a = lora_a.chunk(2)
            lora_b, start_b = lora_b.chunk(2, dim=1)
            self.start_a.copy_(start_a)
            self.start_b.copy_(-start_b)
        super().load_factors(lora_a, lora_b)

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        lora_a, lora_b = self.factors()
        if isinstance(layer, nn.Embedding):
            output = inner(x, *args, **kwargs)
            # Some models scale their embeddings' output (Gemma, BART), of which the change is a part.
            scaling = self.scaling * getattr(layer, "embed_scale", 1.0)
            return output + lora_embedding(x, lora_a, lora_b, scaling).to(output.dtype)
        weight = fusible_weight(layer, inner, x)
        if weight is not None:
            bias = layer.bias if self.bias is None else self.bias
            dropped = self.dropout if self.training else 0.0
            factors = (lora_a, lora_b)
            return low_rank_linear(x, weight.value, bias, *factors, self.scaling, dropout=dropped, again=weight.again)
        output = inner(x, *args, **kwargs)
        x = dropout(x.to(output.dtype), self.dropout, training=self.training)
        output = output + self.scaling * F.linear(F.linear(x, lora_a.to(x.dtype)), lora_b.to(x.dtype))
        return output if self.bias is None else output + (self.bias - bias_of(layer)).to(output.dtype)

    @property
    def only_multiplies(self) -> bool:
        """Whether all that it does at present is to add a product with its input."""
        return self.bias is None and not (self.training and self.dropout > 0)

    @classmethod
    def fused_forward(
        cls, layer: Any, changes: Mapping[str, Self], x: Tensor, *, differ: bool, is_short: bool
    ) -> FusedForward | None:
        if isinstance(layer, nn.Embedding) or not all(change.only_multiplies for change in changes.values()):
            return None
        factors = {name: (change.factors(), change.scaling) for name, change in changes.items()}
        stacked = stack_factors(factors, x, differ=differ, is_short=is_short)
        return None if stacked is None else partial(_stacked_forward, stacked)

    def merge_into(self, layer: Any) -> None:
        delta = lora_delta(*self.factors(), self.scaling)
        layer.weight.copy_(layer.weight + (delta if isinstance(layer, nn.Linear) else delta.T))
        if self.bias is not None:
            layer.bias.copy_(self.bias)


def _stacked_forward(stacked: StackedFactors, inner: OriginalForward, x: Tensor, rows: ActiveAdapters) -> Tensor:
    """Return the output of a layer in which each batch element has its own adapters.

    Args:
        stacked: factors of all adapters of the call.
        inner: the forward of the layer without adapters.
        x: (batch, ..., in_features).
        rows: the adapters of each batch element.
    """
    low = stacked.low(x, rows.without(x.shape[0], stacked.owners, x.device) if rows.differ else None)
    return stacked.add_to(inner(x), low, in_place=inner.is_plain(nn.Linear))


class LoRAAdapter(LowRankAdapter):
    """LoRA on the target layers of a model."""

    config: LoRA
    settings: ClassVar[type[LowRankConfig]] = LoRA
    uses_dora: ClassVar[bool] = False
    is_sum: ClassVar[bool] = True
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D, nn.Embedding)

    @classmethod
    def change(cls, layer: Any, config: LoRA, path: str, setup: Setup, *, with_bias: bool) -> LoRALayer:
        """See `LowRankAdapter.change`."""
        return LoRALayer(layer, config, path, setup, with_bias=with_bias)

    def initialize_from_data(self, setup: Setup) -> None:
        """See `Adapter.fit`."""
        if self.config.init != "qera":
            return
        targets = self.targets()
        layers = quantized_layers({path: layer for path, (layer, _) in targets.items()})
        inputs = typical_inputs(self.model, layers, setup.rows)
        for path, error in quantization_errors(layers, setup.original):
            change = targets[path][1]
            with torch.no_grad():
                change.load_factors(*error_factors(error, inputs[path], change.rank, change.scaling))

    def rate_factor(self, path: str) -> float:
        """See `Adapter.rate_factor`."""
        return self.config.lora_plus_ratio if path.endswith("lora_b") else 1.0

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        peft = super().peft_config()
        if self.config.init == "pissa":
            # The saved factors have twice the rank, and the scaling stays.
            times = 2**0.5 if self.config.rslora else 2
            peft["r"] *= 2
            peft["lora_alpha"] *= times
            peft["rank_pattern"] = {key: 2 * rank for key, rank in peft["rank_pattern"].items()}
            peft["alpha_pattern"] = {key: times * alpha for key, alpha in peft["alpha_pattern"].items()}
        return peft
