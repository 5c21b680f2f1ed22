"""Length of a training, and its learning rate: a warm-up, in which the rate rises to its peak, and a decay."""

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from peftly.models import TASKS, task_of
from peftly.training.config import Schedule, TrainConfig

__all__ = ["learning_rate_factor", "make_schedule", "num_epochs", "schedule_notes", "warmup_steps_of"]

EPOCHS = 5
"""Passes over the training examples."""

EXAMPLES_OF_HEAD = 2000
"""Examples that the training of a classification head passes over, with repetitions."""

MOST_EPOCHS_OF_HEAD = 15

INVERSE_SQRT_STEPS = 10_000
"""Time scale of `inverse_sqrt` without a warm-up, as in transformers."""


def num_epochs(config: TrainConfig, model: nn.Module, num_examples: int) -> int:
    """Return the number of passes over the training examples.

    Heads of classifiers gain a point of accuracy from 10 epochs instead of 5 on 200 examples, and from 15 on 50
    (benchmarks/encoders.py).

    Args:
        config: training settings.
        model: model with the head of a task.
        num_examples: number of training examples.
    """
    if config.epochs is not None:
        return config.epochs
    task = task_of(model)
    if task is None or not TASKS[task].is_classification:
        return EPOCHS
    return min(max(EPOCHS, math.ceil(EXAMPLES_OF_HEAD / num_examples)), MOST_EPOCHS_OF_HEAD)


def learning_rate_factor(schedule: Schedule, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of a step as a fraction of its peak.

    Step `k` of `w` warm-up steps has `k / w`, so step `w` has the peak; without a warm-up step 1 has it. Every step has
    a rate above 0, the last one too: a decay from the peak at step `p` would reach 0 one step after the last, with the
    progress `t = (k - p) / (steps + 1 - p)`. The decay is `1 - t` for `linear`, `(1 + cos(pi t)) / 2` for `cosine` and
    `sqrt(w / k)` for `inverse_sqrt`.

    Args:
        schedule: name of the schedule.
        step: number of the step, from 1.
        steps: number of steps of the run.
        warmup: number of warm-up steps.
    """
    if step < warmup:
        return step / warmup
    peak = max(warmup, 1)
    progress = min((step - peak) / max(steps + 1 - peak, 1), 1.0)
    if schedule == "linear":
        return 1.0 - progress
    if schedule in ("cosine", "cosine_with_restarts"):  # the number of cycles is 1, as by default in transformers
        return (1.0 + math.cos(math.pi * progress)) / 2.0
    if schedule == "inverse_sqrt":
        scale = warmup or INVERSE_SQRT_STEPS
        return math.sqrt(scale / (step - peak + scale))
    return 1.0


def warmup_steps_of(config: TrainConfig, steps: int) -> int:
    """Return the number of warm-up steps of a run of `steps` steps."""
    return math.ceil(config.warmup_ratio * steps) if config.warmup_steps is None else config.warmup_steps


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int) -> LambdaLR:
    """Return the learning rate schedule of the configuration over `steps` updates."""
    name, warmup = config.lr_scheduler_type, warmup_steps_of(config, steps)
    return LambdaLR(optimizer, lambda updates: learning_rate_factor(name, updates + 1, steps, warmup))


def schedule_notes(config: TrainConfig, steps: int) -> list[str]:
    """Return notes to the user: a setting of the warm-up without effect, or a run that ends before its warm-up does."""
    warmup, ratio = warmup_steps_of(config, steps), config.warmup_ratio
    notes = []
    if config.warmup_steps is not None and ratio != TrainConfig.model_fields["warmup_ratio"].default:
        notes.append(f"train.warmup_steps {warmup} replaces train.warmup_ratio {ratio:g}: leave one of them out")
    if warmup > steps:
        notes.append(
            f"train.warmup_steps is {warmup} and the run has {steps} step{'s' * (steps > 1)}: the learning rate only "
            f"rises to {steps}/{warmup} of its peak"
        )
    return notes
