"""PEFT's configuration of LoRA and DoRA."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from peftly.errors import ConfigError
from peftly.peft.config import PeftConfig
from peftly.peft.default_targets import LORA_TARGETS, target_modules_on
from peftly.peft.names import PeftType
from peftly.utils import warn

__all__ = ["LoraConfig"]

_UNAVAILABLE = {
    "alora_invocation_tokens": "train a plain LoRA",
    "arrow_config": "combine adapters with add_weighted_adapter",
    "kasa_config": "use use_dora=True or a plain LoRA",
    "layer_replication": "train the layers of the base as they are",
    "lora_bias": 'use bias="lora_only", which trains the biases of the target layers',
    "megatron_config": "leave it out",
    "monteclora_config": "train an ensemble of plain LoRAs",
    "trainable_token_indices": "name the embedding in modules_to_save",
    "use_bdlora": "use a plain LoRA",
    "use_qalora": 'use a plain LoRA on the quantised base, or peftly.LoRA(init="qera")',
    "velora_config": "use gradient checkpointing to save memory",
}
"""Arguments of PEFT for which peftly has no computation, and what to do instead."""

_INITS = {True: "kaiming", False: "random", "gaussian": "gaussian", "pissa": "pissa"}
"""Initialisations of peftly by values of `init_lora_weights`."""

_UNAVAILABLE_INITS = {
    "corda": 'use init_lora_weights="pissa"',
    "eva": 'use init_lora_weights="pissa"',
    "loftq": 'use peftly.LoRA(init="qera") on a quantised base',
    "lora_ga": 'use init_lora_weights="pissa"',
    "mica": "use init_lora_weights=True",
    "olora": 'use init_lora_weights="pissa"',
    "orthogonal": 'use init_lora_weights="gaussian"',
}


@dataclass
class LoraConfig(PeftConfig):
    """Configuration of LoRA, and of DoRA with `use_dora`.

    The arguments are those of PEFT, with its defaults. The ones that peftly has no computation for are refused if they
    are on: `alora_invocation_tokens`, `arrow_config`, `kasa_config`, `layer_replication`, `lora_bias`,
    `megatron_config`, `monteclora_config`, `trainable_token_indices`, `use_bdlora`, `use_qalora` and `velora_config`.

    Attributes:
        r: rank of the update.
        target_modules: names of layers, a regular expression for whole paths, or "all-linear"; None: the layers that
            PEFT has for the type of the model, often those of queries and values.
        exclude_modules: names of layers, or a regular expression, that are left out.
        lora_alpha: the update is multiplied by lora_alpha / r, or by lora_alpha / sqrt(r) with `use_rslora`.
        lora_dropout: dropout probability on the input of the update, in training.
        fan_in_fan_out: not used; peftly sees how a layer stores its weight.
        bias: biases that are trained too: "none", "all", or "lora_only" for those of the target layers.
        use_rslora: rank-stabilised scaling.
        modules_to_save: names of modules of which trained copies are saved.
        init_lora_weights: True: A random and B zero; "gaussian": A from a normal distribution; "pissa"; False: A and B
            random, so that the adapter changes the outputs before training.
        layers_to_transform: indices of the layers in which `target_modules` are looked for.
        layers_pattern: name of the list of layers that these indices count.
        rank_pattern: ranks of layers that differ from `r`.
        alpha_pattern: values of alpha of layers that differ from `lora_alpha`.
        use_dora: DoRA instead of LoRA.
        target_parameters: names of parameters to adapt; those of linear layers in `target_modules` only.
        ensure_weight_tying: not used; copies of tied modules share their parameters in peftly.
    """

    r: int = 8
    target_modules: Any = None
    exclude_modules: Any = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    megatron_config: dict[str, Any] | None = None
    megatron_core: str | None = "megatron.core"
    trainable_token_indices: Any = None
    loftq_config: Any = field(default_factory=dict)
    eva_config: Any = None
    corda_config: Any = None
    lora_ga_config: Any = None
    use_dora: bool = False
    velora_config: Any = None
    alora_invocation_tokens: list[int] | None = None
    use_qalora: bool = False
    qalora_group_size: int = 16
    monteclora_config: Any = None
    layer_replication: list[tuple[int, int]] | None = None
    runtime_config: Any = None
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    ensure_weight_tying: bool = False

    method_type: ClassVar[PeftType | None] = PeftType.LORA

    def __post_init__(self) -> None:
        """Check the arguments; see `PeftConfig`."""
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, list | tuple) else value)
        if isinstance(self.target_parameters, str):
            raise TypeError("`target_parameters` must be a list of strings or None.")
        for name, advice in _UNAVAILABLE.items():
            if getattr(self, name):
                raise ConfigError(f"peftly has no {name} of PEFT's LoraConfig; {advice}")
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) is not None:
                raise ConfigError(f"`{name}` cannot be used when `target_modules` is a str.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("When `layers_pattern` is specified, `layers_to_transform` must also be specified. ")
        for name in ("loftq_config", "eva_config", "corda_config"):
            init = name.removesuffix("_config")
            if getattr(self, name) and self.init_lora_weights != init:
                warn(f"`{name}` specified but will be ignored when `init_lora_weights` is not '{init}'.", stacklevel=3)

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments by name, without `runtime_config`, which holds only while a program runs."""
        return {name: value for name, value in super().to_dict().items() if name != "runtime_config"}

    def entries_on(self, model: nn.Module) -> dict[str, Any]:
        """See `PeftConfig.entries_on`."""
        fresh = {"init_lora_weights": True}  # `fresh_settings` has the initialisation
        if self.target_modules is None and self.target_parameters:
            return fresh
        return fresh | {"target_modules": target_modules_on(model, self.target_modules, LORA_TARGETS, self.task_type)}

    def fresh_settings(self) -> dict[str, Any]:
        """See `PeftConfig.fresh_settings`."""
        init = self.init_lora_weights
        name = init.lower() if isinstance(init, str) else init
        # PEFT's "pissa_niter_16" approximates the singular values that "pissa" computes.
        name = "pissa" if isinstance(name, str) and name.startswith("pissa_niter_") else name
        if name in _UNAVAILABLE_INITS:
            raise ConfigError(f"peftly has no init_lora_weights={init!r} of PEFT; {_UNAVAILABLE_INITS[name]}")
        if name not in _INITS or (self.use_dora and name == "pissa"):
            raise ConfigError(
                f"Unknown initialization init_lora_weights={init!r}; use True, False, 'gaussian' or, without use_dora, "
                "'pissa'"
            )
        return {"init": _INITS[name]}
