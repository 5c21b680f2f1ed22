"""What turns gradients into updates, and how fast."""

import importlib
import math
from collections.abc import Container
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from peftly.adapters import attached, trainable_parameters
from peftly.errors import ConfigError
from peftly.injection import owner
from peftly.kernels import has_bitsandbytes, import_bitsandbytes, without_kernels
from peftly.methods import METHODS, Adapter
from peftly.training.config import TrainConfig

__all__ = ["make_optimizer", "make_schedule", "optimizer_note", "parameter_groups"]

_AT_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
}
"""What bitsandbytes calls these optimizers."""


def parameter_groups(
    model: nn.Module, config: TrainConfig, given: float | None = None, *, among: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Return what is trained in `model`, in groups of one learning rate, as optimizers of torch take them.

    `among` leaves out parameters of other names.

    The rate is that of the configuration, else `given`, else that of the method that a parameter belongs to, so that
    methods which are trained together each have their own. A method may let some of its parameters learn faster.

    Raises:
        ConfigError: there is none of them, or the optimizer is not of the kind that the methods' own are for.
    """
    adapters = attached(model)
    groups: dict[float, list[nn.Parameter]] = {}
    for path, parameter in trainable_parameters(model).items():
        if among is not None and path not in among:
            continue
        adapter = adapters.get(owner(path))
        rate = config.learning_rate if config.learning_rate is not None else given
        if rate is None:
            rate = _own_rate(adapter, config)
        factor = 1.0 if adapter is None else adapter.rate_factor(path)
        groups.setdefault(rate * factor, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _own_rate(adapter: Adapter | None, config: TrainConfig) -> float:
    if adapter is None:
        raise ConfigError("train.learning_rate is missing, and no method of peftly is on this model to say one")
    if config.optimizer == "sgd":
        raise ConfigError("train.learning_rate is missing; the method's own is for adamw and adafactor, not for sgd")
    return METHODS[adapter.config.name].learning_rate


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names, for `parameter_groups`, or what `optimizer_note` says."""
    name: str = config.optimizer
    decay = config.weight_decay
    if name == "sgd":
        return torch.optim.SGD(groups, weight_decay=decay)
    if name == "adafactor":
        # Its own step sizes would replace the schedule, so they are off, as in the prompt tuning paper.
        adafactor: torch.optim.Optimizer = _optimization().Adafactor(
            groups, weight_decay=decay, scale_parameter=False, relative_step=False
        )
        return adafactor
    if groups[0]["params"][0].is_cpu:
        name = name.removeprefix("paged_")
    if name in _AT_BITSANDBYTES and has_bitsandbytes():
        made: torch.optim.Optimizer = getattr(import_bitsandbytes().optim, _AT_BITSANDBYTES[name])(
            groups, weight_decay=decay
        )
        return made
    return torch.optim.AdamW(groups, weight_decay=decay)


def optimizer_note(config: TrainConfig, device: torch.device) -> str | None:
    """Return what a person should know of the optimizer on this device, where it is not just what was asked for."""
    asked = config.optimizer
    if asked not in _AT_BITSANDBYTES:
        return None
    if not has_bitsandbytes():
        return (
            f"train.optimizer {asked} needs bitsandbytes (pip install 'peftly[quant]'): this is plain adamw, whose "
            "moments take 8 bytes a trained number"
        )
    if "paged" in asked and device.type == "cpu":
        return f"train.optimizer {asked}: there is no GPU that could be full, so nothing is paged"
    return None


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """Return the schedule that the configuration names, over `steps` updates."""
    # transformers' "constant" ignores the warm-up.
    name = "constant_with_warmup" if config.lr_scheduler_type == "constant" else config.lr_scheduler_type
    warmup = math.ceil(config.warmup_ratio * steps) if config.warmup_steps is None else config.warmup_steps
    schedule: LRScheduler = _optimization().get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=steps
    )
    return schedule


def _optimization() -> Any:
    """Return transformers' module of this name; where PEFT is installed it imports that, and PEFT bitsandbytes."""
    with without_kernels():
        return importlib.import_module("transformers.optimization")
