"""What LoRA and DoRA share: two small factors at every target layer, and the PEFT files that they are kept in."""

from __future__ import annotations

import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftly.errors import AdapterError
from peftly.injection import (
    ALL_LINEAR,
    BiasCopy,
    LayerAdapter,
    adapted_layers,
    add_layer_adapter,
    bias_layers,
    bias_of,
    device_of,
    features,
    find_targets,
    is_below,
    own_parts,
    short_names,
)
from peftly.methods.method import Adapter, MethodConfig, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "LowRankAdapter",
    "LowRankConfig",
    "LowRankLayer",
    "by_pattern",
    "lora_delta",
    "lora_scaling",
]


class LowRankConfig(MethodConfig):
    """Settings of LoRA and DoRA."""

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
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    """Another rank for some layers: by the end of a layer's path, or a regular expression for it. The first of
    the alphabet holds where several fit."""
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    """Another alpha for some layers, likewise."""


def lora_scaling(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return the factor on the update: alpha / rank, or alpha / sqrt(rank)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def lora_delta(lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Return the change of a weight that the two factors stand for, (out_features, in_features).

    Args:
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        scaling: see `lora_scaling`.
    """
    return scaling * (lora_b @ lora_a)


class LowRankLayer(LayerAdapter):
    """The two factors at one layer, and its bias where that is trained too.

    Attributes:
        lora_a: (rank, in_features), Kaiming-uniform as in LoRA's own code.
        lora_b: (out_features, rank), zero, so that the layer starts as it was.
        bias: a trained copy of the layer's, or None.
    """

    def __init__(self, layer: Any, config: LowRankConfig, path: str, setup: Setup, *, with_bias: bool) -> None:
        super().__init__()
        out_features, in_features = features(layer)
        self.rank = by_pattern(config.rank_pattern, path, config.rank)
        alpha = by_pattern(config.alpha_pattern, path, config.alpha)
        self.scaling = lora_scaling(alpha, self.rank, rslora=config.rslora)
        self.dropout = config.dropout
        lora_a = torch.empty(self.rank, in_features)
        nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=setup.generator)
        self.lora_a = nn.Parameter(lora_a.to(device_of(layer)))
        self.lora_b = nn.Parameter(torch.zeros(out_features, self.rank, device=device_of(layer)))
        self.bias = nn.Parameter(bias_of(layer).detach().float().clone()) if with_bias else None

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the factors as they are saved."""
        return self.lora_a, self.lora_b

    def load_factors(self, lora_a: Tensor, lora_b: Tensor) -> None:
        """Take factors over from a file."""
        self.lora_a.copy_(lora_a)
        self.lora_b.copy_(lora_b)


class LowRankAdapter(Adapter):
    """Two small factors at each target layer of a model."""

    config: LowRankConfig
    peft_types: ClassVar[tuple[str, ...]] = ("LORA",)
    uses_dora: ClassVar[bool]
    kinds: ClassVar[tuple[type[nn.Module], ...]]
    """The kinds of layers that it can change."""

    @classmethod
    @abstractmethod
    def change(cls, layer: Any, config: Any, path: str, setup: Setup, *, with_bias: bool) -> LowRankLayer:
        """Return what the adapter does at one layer."""

    @classmethod
    def attach(cls, model: PreTrainedModel, config: Any, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        targets = find_targets(model, config.target_modules, cls.kinds)
        with_bias = {} if config.bias == "none" else bias_layers(model)
        # A classifier is trained as a whole.
        with_bias = {path: layer for path, layer in with_bias.items() if not is_below(path, own_parts(model))}
        if config.bias == "lora_only":
            with_bias = {path: layer for path, layer in with_bias.items() if path in targets}
        if config.bias != "none" and not with_bias:
            warnings.warn(f"bias={config.bias!r} trains no bias: these layers of the model have none", stacklevel=4)
        for path, layer in targets.items():
            add_layer_adapter(model, layer, name, cls.change(layer, config, path, setup, with_bias=path in with_bias))
        for path, layer in with_bias.items():
            if path not in targets:
                add_layer_adapter(model, layer, name, BiasCopy(layer))
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        named = {}
        for path, layer, change in adapted_layers(self.model, self.name):
            place = f"base_model.model.{path}"
            if isinstance(change, LowRankLayer):
                for letter, parameter in zip("AB", (change.lora_a, change.lora_b), strict=True):
                    named[f"{place}.{_factor(layer, letter)}"] = parameter
                named |= self.more_parameters(place, change)
                place = f"{place}.base_layer"
            if getattr(change, "bias", None) is not None:
                named[f"{place}.bias"] = change.bias
        return named

    def more_parameters(self, place: str, change: Any) -> dict[str, nn.Parameter]:
        """Return what is trained at a layer beside the two factors, by name."""
        return {}

    def own_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.own_tensors`."""
        tensors: dict[str, Tensor] = dict(self.parameters())
        for path, (layer, change) in self.targets().items():
            for letter, factor in zip("AB", change.factors(), strict=True):
                tensors[f"base_model.model.{path}.{_factor(layer, letter)}"] = factor
        return tensors

    def load_own_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_own_tensors`."""
        factors = set()
        for path, (layer, change) in self.targets().items():
            names = [f"base_model.model.{path}.{_factor(layer, letter)}" for letter in "AB"]
            change.load_factors(*(tensors[name] for name in names))
            factors.update(names)
        for name, parameter in self.parameters().items():
            if name not in factors:
                parameter.copy_(tensors[name])

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        targets = self.targets()
        return {
            "alpha_pattern": self.config.alpha_pattern,
            "bias": self.config.bias,
            "exclude_modules": None,
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer, _ in targets.values()),
            "init_lora_weights": True,
            "layers_pattern": None,
            "layers_to_transform": None,
            "lora_alpha": self.config.alpha,
            "lora_bias": False,
            "lora_dropout": self.config.dropout,
            "r": self.config.rank,
            "rank_pattern": self.config.rank_pattern,
            "target_modules": short_names(self.model, list(targets)),
            "use_dora": self.uses_dora,
            "use_rslora": self.config.rslora,
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig | None:
        """See `Adapter.config_from_peft`."""
        if bool(peft.get("use_dora")) != cls.uses_dora:
            return None
        unsupported = [key for key in _UNSUPPORTED if peft.get(key)]
        if unsupported:
            raise AdapterError(f"this LoRA adapter uses {', '.join(unsupported)}, which peftly cannot read")
        init = peft.get("init_lora_weights")
        if isinstance(init, str) and init.startswith(_CHANGES_BASE):
            raise AdapterError(
                f"this LoRA adapter has init_lora_weights={init!r}, with which PEFT changes the base when it loads it; "
                "save it again with PEFT's path_initial_model_for_weight_conversion"
            )
        targets = peft.get("target_modules") or ()
        settings = {
            "rank": peft.get("r", 8),
            "alpha": peft.get("lora_alpha", 8),
            "dropout": peft.get("lora_dropout", 0.0),
            "target_modules": targets if isinstance(targets, str) else tuple(sorted(targets)),
            "bias": peft.get("bias", "none"),
            "rslora": peft.get("use_rslora", False),
            "rank_pattern": peft.get("rank_pattern") or {},
            "alpha_pattern": peft.get("alpha_pattern") or {},
        }
        return cls.settings(**settings)

    settings: ClassVar[type[LowRankConfig]]

    def targets(self) -> dict[str, tuple[Any, LowRankLayer]]:
        """Return the layers that have factors, each with its change, by path."""
        changed = adapted_layers(self.model, self.name)
        return {path: (layer, change) for path, layer, change in changed if isinstance(change, LowRankLayer)}


_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Beginnings of what PEFT's `init_lora_weights` may be so that the factors are beside other weights than the base's."""

_UNSUPPORTED = (
    "alora_invocation_tokens",
    "exclude_modules",
    "layer_replication",
    "layers_to_transform",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)


def _factor(layer: nn.Module, letter: str) -> str:
    """Return what PEFT calls a factor of this layer."""
    return f"lora_embedding_{letter}" if isinstance(layer, nn.Embedding) else f"lora_{letter}.weight"


def by_pattern(pattern: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the first value whose key is the end of `path`, as PEFT reads such patterns.

    The first of the alphabet: files keep keys in that order, whatever it was in training.
    """
    found = (value for key, value in sorted(pattern.items()) if re.match(rf"(.*\.)?({key})$", path))
    return next(found, default)
