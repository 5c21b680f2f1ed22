"""LoRA: a low-rank change of linear layers, `y = x Wᵀ + s (x Aᵀ) Bᵀ` (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftly.errors import AdapterError, MethodError
from peftly.methods._layers import (
    ALL_LINEAR,
    LayerChange,
    OwnForward,
    add_change,
    base_modules,
    changed_layers,
    drop_changes,
    find_targets,
    short_names,
)
from peftly.methods._method import Adapter, MethodConfig, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LoRA", "LoRAAdapter", "lora_delta", "lora_linear", "lora_scaling"]


class LoRA(MethodConfig):
    """Settings of LoRA."""

    name: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """Inner dimension of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """Strength: the update is scaled by alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the input of the update, while training."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """`all-linear` (all but the output head), names of layers, or a regular expression for whole paths."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias vectors are trained too: copies of all the model's, or of the target layers'."""
    rslora: bool = False
    """Rank-stabilised scaling (arXiv:2312.03732)."""


def lora_scaling(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return the factor on the update: alpha / rank, or alpha / sqrt(rank)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def lora_delta(lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Return the change of the weight that `lora_linear` makes, (out_features, in_features).

    Args:
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        scaling: see `lora_scaling`.
    """
    return scaling * (lora_b @ lora_a)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
) -> Tensor:
    """Return `x weightᵀ + bias + scaling (x lora_aᵀ) lora_bᵀ` with the second product added into the first.

    Only `x`, `x lora_aᵀ` and the small factors are kept for the backward pass; `weight` gets no gradient.

    Args:
        x: (..., in_features), in the dtype of `weight`.
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        lora_a: (rank, in_features), any float dtype; computed in that of `weight`.
        lora_b: (out_features, rank), likewise.
        scaling: see `lora_scaling`.

    Returns:
        (..., out_features).
    """
    apply: Callable[..., Tensor] = _LowRankLinear.apply
    return apply(x, weight, bias, lora_a.to(weight.dtype), lora_b.to(weight.dtype), scaling)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ lora_a.T
        output = F.linear(rows, weight, bias).addmm_(inner, lora_b.T, alpha=scaling)
        ctx.save_for_backward(rows, inner, weight, lora_a, lora_b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, lora_a, lora_b = ctx.saved_tensors
        for_x, _, for_bias, for_a, for_b, _ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])
        grad_inner = (grad @ lora_b).mul_(ctx.scaling)
        return (
            (grad @ weight).addmm_(grad_inner, lora_a).view(ctx.shape) if for_x else None,
            None,
            grad.sum(0) if for_bias else None,
            grad_inner.T @ rows if for_a else None,
            (grad.T @ inner).mul_(ctx.scaling) if for_b else None,
            None,
        )


class BiasChange(LayerChange):
    """A trained copy of a layer's bias, for any layer that adds its bias last (linear, LayerNorm)."""

    only_adds: ClassVar[bool] = True

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(layer.bias.detach().float().clone())

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = inner(x, *args, **kwargs)
        change: Tensor = self.bias - layer.bias
        return output + change.to(output.dtype)


class LoRALinear(LayerChange):
    """The low-rank update of one linear layer (`nn.Linear`, a subclass of it, or GPT-2's `Conv1D`)."""

    only_adds: ClassVar[bool] = True

    def __init__(self, layer: Any, config: LoRA, generator: torch.Generator, *, with_bias: bool) -> None:
        super().__init__()
        out_features, in_features = _shape(layer)
        device = layer.weight.device
        lora_a = torch.empty(config.rank, in_features)
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=generator)
        self.lora_a = nn.Parameter(lora_a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(out_features, config.rank, device=device))
        self.bias = nn.Parameter(layer.bias.detach().float().clone()) if with_bias else None
        self.scaling = lora_scaling(config.alpha, config.rank, rslora=config.rslora)
        self.dropout = config.dropout

    def run(self, layer: Any, inner: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        drops = self.training and self.dropout > 0
        weight = None if drops or torch.is_autocast_enabled(x.device.type) else _own_weight(layer, inner, x)
        if weight is not None:
            bias = layer.bias if self.bias is None else self.bias.to(weight.dtype)
            return lora_linear(x, weight, bias, self.lora_a, self.lora_b, self.scaling)
        output = inner(x, *args, **kwargs)
        x = F.dropout(x.to(output.dtype), self.dropout, training=drops)
        output = output + self.scaling * F.linear(F.linear(x, self.lora_a.to(x.dtype)), self.lora_b.to(x.dtype))
        return output if self.bias is None else output + (self.bias - layer.bias).to(output.dtype)


class LoRAAdapter(Adapter):
    """LoRA on the target layers of a model."""

    config: LoRA
    peft_type: ClassVar[str] = "LORA"

    @classmethod
    def attach(cls, model: PreTrainedModel, config: LoRA, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        generator = torch.Generator().manual_seed(setup.seed)
        targets = find_targets(model, config.target_modules)
        with_bias = _layers_with_trained_bias(model, targets, config.bias)
        for path, layer in targets.items():
            add_change(model, layer, name, LoRALinear(layer, config, generator, with_bias=path in with_bias))
        for path in with_bias:
            if path not in targets:
                layer = model.get_submodule(path)
                add_change(model, layer, name, BiasChange(layer))
        return cls(model, config, name)

    def remove(self) -> None:
        """See `Adapter.remove`."""
        drop_changes(self.model, self.name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        named = {}
        for path, _, change in changed_layers(self.model, self.name):
            layer = f"base_model.model.{path}"
            if isinstance(change, LoRALinear):
                named[f"{layer}.lora_A.weight"] = change.lora_a
                named[f"{layer}.lora_B.weight"] = change.lora_b
                layer = f"{layer}.base_layer"
            if change.bias is not None:
                named[f"{layer}.bias"] = change.bias
        return named

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        targets = self._targets()
        return {
            "alpha_pattern": {},
            "bias": self.config.bias,
            "exclude_modules": None,
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer, _ in targets.values()),
            "init_lora_weights": True,
            "layers_pattern": None,
            "layers_to_transform": None,
            "lora_alpha": self.config.alpha,
            "lora_bias": False,
            "lora_dropout": self.config.dropout,
            "modules_to_save": None,
            "r": self.config.rank,
            "rank_pattern": {},
            "target_modules": short_names(self.model, list(targets)),
            "use_dora": False,
            "use_rslora": self.config.rslora,
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> LoRA | None:
        """See `Adapter.config_from_peft`."""
        if peft.get("use_dora"):
            return None
        unsupported = [key for key in _UNSUPPORTED if peft.get(key)]
        if unsupported:
            raise AdapterError(f"this LoRA adapter uses {', '.join(unsupported)}, which peftly cannot read")
        targets = peft.get("target_modules") or ()
        return LoRA(
            rank=peft.get("r", 8),
            alpha=peft.get("lora_alpha", 8),
            dropout=peft.get("lora_dropout", 0.0),
            target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
            bias=peft.get("bias", "none"),
            rslora=peft.get("use_rslora", False),
        )

    def check_mergeable(self) -> None:
        """See `Adapter.check_mergeable`."""
        for path, (layer, _) in self._targets().items():
            if not layer.weight.is_floating_point():
                raise MethodError(f"{path} is quantised: load the base without quantisation to merge into it")
            _refuse_tied(self.model, path)

    def merge(self) -> None:
        """Add the update, and the change of the biases, to the base's own tensors."""
        with torch.no_grad():
            for layer, change in self._targets().values():
                delta = lora_delta(change.lora_a, change.lora_b, change.scaling)
                delta = delta.T if isinstance(layer, Conv1D) else delta
                layer.weight.copy_(layer.weight.float() + delta)
            for _, layer, change in changed_layers(self.model, self.name):
                if change.bias is not None:
                    layer.bias.copy_(change.bias)

    def _targets(self) -> dict[str, tuple[Any, LoRALinear]]:
        changed = changed_layers(self.model, self.name)
        return {path: (layer, change) for path, layer, change in changed if isinstance(change, LoRALinear)}


_UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "exclude_modules",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)


def _shape(layer: Any) -> tuple[int, int]:
    """Return (out_features, in_features). A quantised `nn.Linear` packs its weight, whose shape does not tell."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    in_features, out_features = layer.weight.shape
    return out_features, in_features


def _own_weight(layer: Any, inner: Callable[..., Tensor], x: Tensor) -> Tensor | None:
    """Return the layer's weight as (out_features, in_features) if its product may be fused, else None."""
    if not isinstance(inner, OwnForward) or layer.weight.dtype != x.dtype:
        return None
    if layer.weight.requires_grad or (layer.bias is not None and layer.bias.requires_grad):
        return None
    if inner.is_plain(nn.Linear):
        weight: Tensor = layer.weight
        return weight
    return layer.weight.T if inner.is_plain(Conv1D) else None


def _layers_with_trained_bias(
    model: nn.Module, targets: Mapping[str, nn.Module], which: Literal["none", "all", "lora_only"]
) -> list[str]:
    candidates = {"none": [], "all": base_modules(model), "lora_only": targets.items()}[which]
    found = [path for path, layer in candidates if isinstance(getattr(layer, "bias", None), nn.Parameter)]
    if which != "none" and not found:
        raise MethodError(f"bias={which!r} trains nothing: these layers of the model have no bias; use bias='none'")
    return found


def _refuse_tied(model: nn.Module, path: str) -> None:
    weight = model.get_parameter(f"{path}.weight")
    sharers = [name for name, other in model.named_parameters(remove_duplicate=False) if other is weight]
    if len(sharers) > 1:
        raise MethodError(
            f"{path} shares its weight ({', '.join(sharers)}), so merging would change the others too; "
            "untie the weights first, or leave this layer out of target_modules"
        )
