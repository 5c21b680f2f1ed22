"""Optimizers and their parameter groups."""

import importlib
from collections.abc import Container
from typing import Any

import torch
from torch import nn

from peftly.adapters import attached, trainable_parameters
from peftly.errors import ConfigError
from peftly.injection import is_within, owner, task_modules
from peftly.kernels import has_bitsandbytes, import_bitsandbytes, without_kernels
from peftly.methods import Adapter, default_learning_rate
from peftly.training.config import TrainConfig

__all__ = ["make_optimizer", "optimizer_note", "parameter_groups"]

HEAD_RATE = 5e-4
"""Highest default learning rate of a head that starts from a linear probe: twenty times as much, as for virtual tokens,
destroys the start."""

_AT_BITSANDBYTES = {
    "adamw_8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW32bit",
    "paged_adamw_8bit": "PagedAdamW8bit",
}
"""Class names of these optimizers in bitsandbytes."""


def parameter_groups(
    model: nn.Module, config: TrainConfig, given: float | None = None, *, among: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model in groups of one learning rate, as optimizers of torch take them.

    The learning rate is that of the configuration, else `given`, else the default of the method that a parameter
    belongs to. A method may multiply the learning rate of some parameters by a factor (LoRA+).

    Args:
        model: adapted model.
        config: training settings.
        given: learning rate if `config` sets none.
        among: names of the parameters to train; None: all trainable parameters.

    Raises:
        ConfigError: no learning rate is known, or the methods' defaults are not for the optimizer.
    """
    adapters, heads = attached(model), task_modules(model)
    groups: dict[float, list[nn.Parameter]] = {}
    for path, parameter in trainable_parameters(model).items():
        if among is not None and path not in among:
            continue
        adapter = adapters.get(owner(path))
        rate = config.learning_rate if config.learning_rate is not None else given
        if rate is None:
            rate = _default_rate(adapter, config)
            if adapter is not None and adapter.has_probed_head and is_within(path, heads):
                rate = min(rate, HEAD_RATE)
        factor = 1.0 if adapter is None else adapter.learning_rate_factor(path)
        groups.setdefault(rate * factor, []).append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]


def _default_rate(adapter: Adapter | None, config: TrainConfig) -> float:
    if adapter is None:
        raise ConfigError("train.learning_rate is missing, and this model has no adapter that has a default")
    if config.optimizer == "sgd":
        raise ConfigError(
            "train.learning_rate is missing; the method's default is for adamw and adafactor, not for sgd"
        )
    return default_learning_rate(adapter.config)


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer for `parameter_groups`, or the replacement that `optimizer_note` reports."""
    name: str = config.optimizer
    decay = config.weight_decay
    if name == "sgd":
        return torch.optim.SGD(groups, weight_decay=decay)
    if name == "adafactor":
        # Adafactor's step sizes would replace the schedule, so they are off, as in prompt tuning (arXiv:2104.08691).
        adafactor: torch.optim.Optimizer = _optimization().Adafactor(
            groups, weight_decay=decay, scale_parameter=False, relative_step=False
        )
        return adafactor
    if groups[0]["params"][0].is_cpu:
        name = name.removeprefix("paged_")
    if name in _AT_BITSANDBYTES and has_bitsandbytes():
        optimizer_class = getattr(import_bitsandbytes().optim, _AT_BITSANDBYTES[name])
        optimizer: torch.optim.Optimizer = optimizer_class(groups, weight_decay=decay)
        return optimizer
    return torch.optim.AdamW(groups, weight_decay=decay)


def optimizer_note(config: TrainConfig, device: torch.device) -> str | None:
    """Return a note to the user if the optimizer is not the configured one on this device, else None."""
    name = config.optimizer
    if name not in _AT_BITSANDBYTES:
        return None
    if not has_bitsandbytes():
        return (
            f"train.optimizer {name} needs bitsandbytes (pip install 'peftly[quant]'): this is plain adamw, whose "
            "moments take 8 bytes per trained parameter"
        )
    if "paged" in name and device.type == "cpu":
        return f"train.optimizer {name}: nothing is paged, since there is no GPU"
    return None


def _optimization() -> Any:
    """Import `transformers.optimization` without bitsandbytes, which it would import where PEFT is installed."""
    with without_kernels():
        return importlib.import_module("transformers.optimization")
