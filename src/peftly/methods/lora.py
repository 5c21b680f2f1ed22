"""LoRA: low-rank updates of linear layers, `y = x Wᵀ + s (x Aᵀ) Bᵀ` (Hu et al. 2021, arXiv:2106.09685)."""

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
from peftly.injection import (
    ActiveAdapters,
    FusedForward,
    OriginalForward,
    bias_of,
    features,
    fusible_weight,
    whole_weight,
)
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
    init: Literal["kaiming", "gaussian", "random", "pissa", "qera"] = "kaiming"
    """Initial factors: A random and B zero (kaiming); A from a normal distribution with standard deviation 1 / rank
    (gaussian); A and B random, for tests of other tools, since the outputs then differ from those of the base (random);
    both from the largest singular values of the weight (pissa,
    arXiv:2404.02948); for a quantised base, both from the quantisation error, given the inputs of the layers for some
    training examples (qera, arXiv:2410.06040)."""
    lora_plus_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of B divided by the learning rate of A (LoRA+, arXiv:2402.12354)."""

    @property
    def corrects_quantization(self) -> bool:
        """See `MethodConfig.corrects_quantization`."""
        return self.init == "qera"


def lora_embedding(ids: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float | Tensor) -> Tensor:
    """Return the update of the output of an embedding, `scaling A[:, ids]ᵀ Bᵀ`, which is 0 for virtual tokens.

    Args:
        ids: token ids of any shape; ids past the vocabulary are virtual tokens.
        lora_a: (rank, vocabulary).
        lora_b: (width, rank).
        scaling: factor of the update, see `lora_scaling`.

    Returns:
        (..., width).
    """
    in_vocabulary = ids < lora_a.shape[1]
    low = F.embedding(ids * in_vocabulary, lora_a.T)
    return scaling * (low @ lora_b.T) * in_vocabulary[..., None]


def principal_factors(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """Return A and B for which `scaling B A` is the best approximation of `weight` with rank `rank`.

    Args:
        weight: (out_features, in_features).
        rank: rank of the factors.
        scaling: factor of the update, see `lora_scaling`.

    Returns:
        A, (rank, in_features), and B, (out_features, rank), as in PiSSA (Meng et al. 2024, arXiv:2404.02948).
    """
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[:rank] / scaling).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


class LoRALayer(LowRankLayer):
    """Low-rank update of a linear layer (`nn.Linear`, a subclass of it, or `Conv1D` of GPT-2) or of an embedding.

    PiSSA trains the principal part of the weight. The base does not change: the initial principal part is stored too
    and subtracted, so that the trained part and the stored part together are an update of twice the rank.

    Attributes:
        start_a, start_b: initial factors of PiSSA, with the shapes of `lora_a` and `lora_b`; None without PiSSA.
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
            if setup.is_loading:
                self.start_a, self.start_b = torch.zeros_like(self.lora_a), torch.zeros_like(self.lora_b)
                return
            if self.rank > (widest := min(features(layer))):
                raise MethodError(
                    f"init: pissa: {path} has {widest} singular values, fewer than the rank {self.rank}; set rank to "
                    f"{widest} at most, or rank_pattern for this layer"
                )
            self.start_a, self.start_b = principal_factors(whole_weight(layer).detach(), self.rank, self.scaling)
            with torch.no_grad():
                self.lora_a.copy_(self.start_a)
                self.lora_b.copy_(self.start_b)
        elif isinstance(layer, nn.Embedding) and not setup.is_loading:
            # As in the released code: A, which has a column for each token, starts at zero.
            with torch.no_grad():
                self.lora_a.zero_()
                if config.init == "random":
                    self.lora_a.copy_(torch.randn(self.lora_a.shape, generator=setup.generator))
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
            # Some models scale the output of the embedding (Gemma, BART), of which the update is a part.
            scaling = self.scaling * getattr(layer, "embed_scale", 1.0)
            return output + lora_embedding(x, lora_a, lora_b, scaling).to(output.dtype)
        weight = fusible_weight(layer, inner, x)
        if weight is not None:
            bias = layer.bias if self.bias is None else self.bias
            probability = self.dropout if self.training else 0.0
            return low_rank_linear(
                x,
                weight.value,
                bias,
                lora_a,
                lora_b,
                self.scaling,
                dropout=probability,
                recompute_weight=weight.recompute,
            )
        output = inner(x, *args, **kwargs)
        x = dropout(x.to(output.dtype), self.dropout, training=self.training)
        output = output + self.scaling * F.linear(F.linear(x, lora_a.to(x.dtype)), lora_b.to(x.dtype))
        return output if self.bias is None else output + (self.bias - bias_of(layer)).to(output.dtype)

    @property
    def is_single_product(self) -> bool:
        """Whether the update is a single product with the input of the layer: no bias and no dropout."""
        return self.bias is None and not (self.training and self.dropout > 0)

    @classmethod
    def fused_forward(
        cls, layer: Any, adapters: Mapping[str, Self], x: Tensor, *, differ: bool, is_short: bool
    ) -> FusedForward | None:
        if isinstance(layer, nn.Embedding) or not all(lora.is_single_product for lora in adapters.values()):
            return None
        factors = {name: (lora.factors(), lora.scaling) for name, lora in adapters.items()}
        stacked = stack_factors(factors, x, differ=differ, is_short=is_short)
        return None if stacked is None else partial(_stacked_forward, stacked)

    def merge_into(self, layer: Any) -> None:
        delta = lora_delta(*self.factors(), self.scaling)
        layer.weight.copy_(layer.weight + (delta if isinstance(layer, nn.Linear) else delta.T))
        if self.bias is not None:
            layer.bias.copy_(self.bias)


def _stacked_forward(stacked: StackedFactors, inner: OriginalForward, x: Tensor, active: ActiveAdapters) -> Tensor:
    """Return the output of a layer with the adapters of each batch element, (batch, ..., out_features).

    Args:
        stacked: factors of all adapters of the call.
        inner: forward of the layer without adapters.
        x: (batch, ..., in_features).
        active: active adapters of each batch element.
    """
    low = stacked.low(x, active.missing(x.shape[0], stacked.owners, x.device) if active.differ else None)
    return stacked.add_to(inner(x), low, in_place=inner.is_plain(nn.Linear))


class LoRAAdapter(LowRankAdapter):
    """LoRA on the target layers of a model."""

    config: LoRA
    settings: ClassVar[type[LowRankConfig]] = LoRA
    uses_dora: ClassVar[bool] = False
    can_be_weighted: ClassVar[bool] = True
    layer_classes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, Conv1D, nn.Embedding)

    @classmethod
    def make_layer(cls, layer: Any, config: LoRA, path: str, setup: Setup, *, with_bias: bool) -> LoRALayer:
        """See `LowRankAdapter.make_layer`."""
        return LoRALayer(layer, config, path, setup, with_bias=with_bias)

    def initialize_from_data(self, setup: Setup) -> None:
        """Set the factors for `init: qera`. See `Adapter.initialize_from_data`."""
        if self.config.init != "qera":
            return
        targets = self.targets()
        layers = quantized_layers({path: layer for path, (layer, _) in targets.items()})
        inputs = typical_inputs(self.model, layers, setup.examples)
        for path, error in quantization_errors(layers, setup.original):
            lora = targets[path][1]
            with torch.no_grad():
                lora.load_factors(*error_factors(error, inputs[path], lora.rank, lora.scaling))

    def learning_rate_factor(self, path: str) -> float:
        """See `Adapter.learning_rate_factor`."""
        return self.config.lora_plus_ratio if path.endswith("lora_b") else 1.0

    @classmethod
    def peft_settings(cls, config: Any) -> dict[str, Any]:
        """See `Adapter.peft_settings`."""
        peft = super().peft_settings(config)
        if config.init == "pissa":
            # The saved factors have twice the rank, so alpha grows by the factor that leaves the scaling unchanged.
            alpha_factor = 2**0.5 if config.rslora else 2
            peft["r"] *= 2
            peft["lora_alpha"] *= alpha_factor
            peft["rank_pattern"] = {key: 2 * rank for key, rank in peft["rank_pattern"].items()}
            peft["alpha_pattern"] = {key: alpha_factor * alpha for key, alpha in peft["alpha_pattern"].items()}
        return peft
