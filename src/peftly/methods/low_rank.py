"""Low-rank factors of target layers, the common part of LoRA and DoRA, and their PEFT files."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

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
    by_pattern,
    device_of,
    features,
    find_targets,
    first_matches,
    is_within,
    short_names,
    task_modules,
)
from peftly.methods.method import Adapter, MethodConfig, Setup, Size
from peftly.methods.peft_files import LORA_KEYS, check_parameter_targets, lora_settings, peft_targets
from peftly.utils import warn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "LowRankAdapter",
    "LowRankConfig",
    "LowRankLayer",
    "lora_delta",
    "lora_scaling",
]


MAX_PATTERNS = 10_000
"""Most keys of `rank_pattern`, each of which is compared with every layer."""


class LowRankConfig(MethodConfig):
    """Settings of LoRA and DoRA."""

    rank: Size = 8
    """Rank of the update."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the update: it is multiplied by alpha / rank, or by alpha / sqrt(rank) with `rslora`."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout probability on the input of the update, in training."""
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    """Layers that get an update: `all-linear` (all linear layers but the output head), ends of paths in a list, or a
    regular expression for whole paths."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases of which copies are trained, too: none, all of the model (all), or those of the target layers
    (lora_only)."""
    rslora: bool = False
    """Multiply the update by alpha / sqrt(rank) instead of alpha / rank (rank-stabilised LoRA, arXiv:2312.03732)."""
    rank_pattern: dict[str, Size] = Field(default_factory=dict, max_length=MAX_PATTERNS)
    """Ranks of layers that differ from `rank`, by the end of a path or a regular expression for this end. Of several
    keys that match a layer, the first in alphabetical order holds."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict, max_length=MAX_PATTERNS)
    """Values of alpha of layers that differ from `alpha`, by keys as in `rank_pattern`."""
    init: str = "kaiming"
    """Initial factors."""


def lora_scaling(alpha: float, rank: int, *, rslora: bool) -> float:
    """Return the factor of the update: alpha / rank, or alpha / sqrt(rank) with `rslora` (arXiv:2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def lora_delta(lora_a: Tensor, lora_b: Tensor, scaling: float) -> Tensor:
    """Return the low-rank update of a weight, `scaling lora_b lora_a`, (out_features, in_features).

    Args:
        lora_a: (rank, in_features).
        lora_b: (out_features, rank).
        scaling: factor of the update, see `lora_scaling`.
    """
    return scaling * (lora_b @ lora_a)


class LowRankLayer(LayerAdapter):
    """Low-rank factors of one layer, and a copy of its bias if the bias is trained too.

    Attributes:
        rank: rank of the factors.
        scaling: factor of the update.
        dropout_module: dropout on the input of the update, or None.
        lora_a: (rank, in_features), initially Kaiming-uniform as in the released code of LoRA.
        lora_b: (out_features, rank), initially zero, so that the layer is unchanged; with `init: random` it is not.
        bias: trained copy of the bias of the layer, (out_features,), or None.
    """

    def __init__(self, layer: Any, config: LowRankConfig, path: str, setup: Setup, *, with_bias: bool) -> None:
        super().__init__()
        out_features, in_features = features(layer)
        self.rank = config.rank
        self.scaling = lora_scaling(config.alpha, config.rank, rslora=config.rslora)
        # A module, so that tools which disable dropout find it (TRL's trainers do).
        self.dropout_module = nn.Dropout(config.dropout) if config.dropout else None
        lora_a = torch.empty(self.rank, in_features)
        if not setup.is_loading:
            nn.init.kaiming_uniform_(lora_a, a=math.sqrt(5), generator=setup.generator)
        lora_b = torch.zeros(out_features, self.rank)
        if config.init == "gaussian" and not setup.is_loading:
            nn.init.normal_(lora_a, std=1 / self.rank, generator=setup.generator)
        elif config.init == "random" and not setup.is_loading:
            nn.init.kaiming_uniform_(lora_b, a=math.sqrt(5), generator=setup.generator)
        self.lora_a = nn.Parameter(lora_a.to(device_of(layer)))
        self.lora_b = nn.Parameter(lora_b.to(device_of(layer)))
        self.bias = nn.Parameter(bias_of(layer).detach().float().clone()) if with_bias else None

    @property
    def dropout(self) -> float:
        """Dropout probability on the input of the update."""
        return 0.0 if self.dropout_module is None else self.dropout_module.p

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B as they are saved, which may have a higher rank than the trained ones."""
        return self.lora_a, self.lora_b

    def load_factors(self, lora_a: Tensor, lora_b: Tensor) -> None:
        """Set the factors from those of a file, with the shapes of `factors`."""
        self.lora_a.copy_(lora_a)
        self.lora_b.copy_(lora_b)


class LowRankAdapter(Adapter):
    """Low-rank factors on the target layers of a model."""

    config: LowRankConfig
    peft_types: ClassVar[tuple[str, ...]] = ("LORA",)
    peft_keys: ClassVar[frozenset[str]] = LORA_KEYS
    settings: ClassVar[type[LowRankConfig]]
    """Class of the settings."""
    uses_dora: ClassVar[bool]
    """Value of `use_dora` in the files of PEFT."""
    layer_classes: ClassVar[tuple[type[nn.Module], ...]]
    """Classes of layers that the method supports."""

    @classmethod
    @abstractmethod
    def make_layer(cls, layer: Any, config: Any, path: str, setup: Setup, *, with_bias: bool) -> LowRankLayer:
        """Return the newly initialised factors of one layer.

        Args:
            layer: layer of one of the `layer_classes`.
            config: settings of the method, with the rank and alpha of this layer.
            path: path of the layer.
            setup: setup of the adapter.
            with_bias: whether a copy of the bias is trained too.
        """

    @classmethod
    def attach(cls, model: PreTrainedModel, config: Any, name: str, setup: Setup) -> Self:
        """See `Adapter.attach`."""
        targets = find_targets(model, config.target_modules, cls.layer_classes, warns=not setup.is_loading)
        with_bias = {} if config.bias == "none" else bias_layers(model)
        # The modules of a task are trained as full copies.
        with_bias = {path: layer for path, layer in with_bias.items() if not is_within(path, task_modules(model))}
        if config.bias == "lora_only":
            with_bias = {path: layer for path, layer in with_bias.items() if path in targets}
        if config.bias != "none" and not with_bias:
            warn(f"bias={config.bias!r} trains no bias: these layers of the model have none", stacklevel=4)
        ranks = by_pattern(config.rank_pattern, targets, config.rank, "rank_pattern")
        alphas = by_pattern(config.alpha_pattern, targets, config.alpha, "alpha_pattern")
        if not setup.is_loading:
            for setting in ("rank_pattern", "alpha_pattern"):
                _warn_about_unused_keys(getattr(config, setting), targets, setting)
        for path, layer in targets.items():
            own_config = config.model_copy(update={"rank": ranks[path], "alpha": alphas[path]})
            low_rank_layer = cls.make_layer(layer, own_config, path, setup, with_bias=path in with_bias)
            add_layer_adapter(model, layer, name, low_rank_layer)
        for path, layer in with_bias.items():
            if path not in targets:
                add_layer_adapter(model, layer, name, BiasCopy(layer))
        return cls(model, config, name)

    def parameters(self) -> dict[str, nn.Parameter]:
        """See `Adapter.parameters`."""
        parameters = {}
        for path, layer, layer_adapter in adapted_layers(self.model, self.name):
            prefix = f"base_model.model.{path}"
            if isinstance(layer_adapter, LowRankLayer):
                for letter, parameter in zip("AB", (layer_adapter.lora_a, layer_adapter.lora_b), strict=True):
                    parameters[f"{prefix}.{_factor_name(layer, letter)}"] = parameter
                parameters |= self.more_parameters(prefix, layer_adapter)
                prefix = f"{prefix}.base_layer"
            if getattr(layer_adapter, "bias", None) is not None:
                parameters[f"{prefix}.bias"] = layer_adapter.bias
        return parameters

    def more_parameters(self, prefix: str, low_rank_layer: Any) -> dict[str, nn.Parameter]:
        """Return the trained parameters of a layer besides the factors and the bias, by `prefix` plus their names."""
        return {}

    def file_tensors(self) -> dict[str, Tensor]:
        """See `Adapter.file_tensors`."""
        tensors: dict[str, Tensor] = dict(self.parameters())
        for path, (layer, low_rank_layer) in self.targets().items():
            for letter, factor in zip("AB", low_rank_layer.factors(), strict=True):
                tensors[f"base_model.model.{path}.{_factor_name(layer, letter)}"] = factor
        return tensors

    def load_file_tensors(self, tensors: Mapping[str, Tensor], peft: Mapping[str, Any]) -> None:
        """See `Adapter.load_file_tensors`."""
        factor_names = set()
        for path, (layer, low_rank_layer) in self.targets().items():
            names = [f"base_model.model.{path}.{_factor_name(layer, letter)}" for letter in "AB"]
            low_rank_layer.load_factors(*(tensors[name] for name in names))
            factor_names.update(names)
        for name, parameter in self.parameters().items():
            if name not in factor_names:
                parameter.copy_(tensors[name])

    def peft_config(self) -> dict[str, Any]:
        """See `Adapter.peft_config`."""
        targets = self.targets()
        return {
            "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer, _ in targets.values()),
            "init_lora_weights": True,
            "layers_pattern": None,
            "lora_bias": False,
            "target_modules": short_names(self.model, list(targets)),
            **self.peft_settings(self.config),
        }

    @classmethod
    def peft_settings(cls, config: Any) -> dict[str, Any]:
        """See `Adapter.peft_settings`."""
        return {
            "alpha_pattern": config.alpha_pattern,
            "bias": config.bias,
            "exclude_modules": None,
            "layers_to_transform": None,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "r": config.rank,
            "rank_pattern": config.rank_pattern,
            "use_dora": cls.uses_dora,
            "use_rslora": config.rslora,
        }

    @classmethod
    def config_from_peft(cls, peft: Mapping[str, Any]) -> MethodConfig | None:
        """See `Adapter.config_from_peft`."""
        uses_dora = False if peft.get("use_dora") is None else peft["use_dora"]
        if not isinstance(uses_dora, bool):
            raise TypeError(f"use_dora: {uses_dora!r} is neither true nor false")
        if uses_dora != cls.uses_dora:
            return None
        return cls.settings.from_json(lora_settings(peft))

    @classmethod
    def config_on(
        cls, model: nn.Module, config: Any, peft: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> MethodConfig:
        """See `Adapter.config_on`."""
        in_file = {match[1] for name in shapes if (match := _FACTOR.fullmatch(name))}
        targets = peft_targets(model, cls.layer_classes, peft, config.modules_to_save or (), in_file)
        embedding = next((name for name in shapes if ".lora_embedding_A" in name), None)
        if embedding is not None and nn.Embedding not in cls.layer_classes:
            raise AdapterError(f"{embedding} is of an embedding, and peftly has {config.name} of linear layers only")
        if peft.get("target_parameters"):
            check_parameter_targets(model, peft)
        found: LowRankConfig = config
        # Of several keys that match a layer, PEFT takes the first in the file, and `by_pattern` that in the alphabet.
        alphas = first_matches(list(found.alpha_pattern), in_file, "alpha_pattern", at_end=True)
        if alphas != first_matches(sorted(found.alpha_pattern), in_file, "alpha_pattern", at_end=True):
            of_paths = {path: found.alpha_pattern[key] for path, key in alphas.items()}
            found = found.model_copy(update={"alpha_pattern": of_paths})
        return found if targets is None else found.model_copy(update={"target_modules": tuple(targets)})

    @classmethod
    def shape_error(cls, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """See `Adapter.shape_error`."""
        factors = {name: match for name in shapes if (match := _FACTOR.fullmatch(name))}
        for name, match in factors.items():
            other = f"{name[: match.start(2)]}{'BA'['AB'.index(match[2])]}{name[match.end(2) :]}"
            if other not in factors:
                return f"it lacks {other}"
        settings = cls.peft_settings(config)
        ranks = by_pattern(
            settings["rank_pattern"], {match[1] for match in factors.values()}, settings["r"], "rank_pattern"
        )
        for name, (path, letter) in ((name, match.groups()) for name, match in factors.items()):
            shape = shapes[name]
            if len(shape) != 2 or shape["AB".index(letter)] != ranks[path]:
                return f"{name} is {shape}, and the rank is {ranks[path]}"
        return None

    def targets(self) -> dict[str, tuple[Any, LowRankLayer]]:
        """Return each layer that has factors, and these factors, by path."""
        layers = adapted_layers(self.model, self.name)
        return {path: (layer, adapter) for path, layer, adapter in layers if isinstance(adapter, LowRankLayer)}


def _warn_about_unused_keys(pattern: Mapping[str, Any], paths: Mapping[str, Any], setting: str) -> None:
    unused = [key for key in pattern if not first_matches([key], paths, setting, at_end=True)]
    if unused:
        warn(f"{setting} has keys that match no target layer and are passed over: {', '.join(unused)}", stacklevel=5)


_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")


def _factor_name(layer: nn.Module, letter: str) -> str:
    """Return the name of a factor of this layer in the files of PEFT."""
    return f"lora_embedding_{letter}" if isinstance(layer, nn.Embedding) else f"lora_{letter}.weight"
