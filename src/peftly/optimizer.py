"""What turns gradients into updates, and how fast."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from peftly.adapt import attached
from peftly.errors import ConfigError
from peftly.methods import METHODS
from peftly.train_config import TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["choose_learning_rate", "make_optimizer", "make_schedule"]


def choose_learning_rate(model: "PreTrainedModel", config: TrainConfig, given: float | None = None) -> float:
    """Return the learning rate of the configuration, else `given`, else that of the method that is on the model.

    Raises:
        ConfigError: there is none of them, or the optimizer is not of the kind that the method's own is for.
    """
    for rate in (config.learning_rate, given):
        if rate is not None:
            return rate
    adapter = attached(model)
    if adapter is None:
        raise ConfigError("train.learning_rate is missing, and no method of peftly is on this model to say one")
    if config.optimizer == "sgd":
        raise ConfigError("train.learning_rate is missing; the method's own is for adamw and adafactor, not for sgd")
    return METHODS[adapter.config.name].learning_rate


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig, rate: float) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names, at learning rate `rate`."""
    decay = config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
    from transformers import Adafactor

    # Its own step sizes would replace the schedule, so they are off, as in the prompt tuning paper.
    optimizer: torch.optim.Optimizer = Adafactor(
        parameters, lr=rate, weight_decay=decay, scale_parameter=False, relative_step=False
    )
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LRScheduler:
    """Return the schedule that the configuration names, over `steps` updates."""
    from transformers import get_scheduler

    # transformers' "constant" ignores the warm-up.
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    warmup = math.ceil(config.warmup * steps)
    schedule: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    return schedule
