"""The learning rate range test (Smith, arXiv:1506.01186): a short training with a rate that rises at every step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from torch.optim.lr_scheduler import LambdaLR

from peftly.adapters import attached, trainable_parameters
from peftly.data import Data, DataSource
from peftly.errors import ConfigError
from peftly.evaluation import data_of
from peftly.injection import owner
from peftly.methods import default_learning_rate
from peftly.models import tokenizer_of
from peftly.training.callbacks import Callback, StepRecord
from peftly.training.config import TrainConfig
from peftly.training.finite_weights import assign, copies
from peftly.training.job import AdapterJob
from peftly.training.session import Job, run_jobs
from peftly.utils import same_random_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LearningRateTest", "find_learning_rate", "suggested_rate"]

LOWEST, HIGHEST = 1e-3, 1e2
"""Range of the learning rates, as multiples of the configured one or of the default of the method."""

STEPS = 100

_SETTLED = 10
"""Steps at the lowest rates, in which the weights hardly change: their mean loss is that of the untrained adapter."""

_DIVERGED = 2.0
"""Factor above the loss of the untrained adapter at which the test stops."""

_BELOW = 30
"""Least factor between the suggestion and the rate at which the loss diverged: a run takes many more steps at its peak
than the test takes at any rate (measured in docs/log.md)."""

_FALLEN = 0.9
"""Fraction of the fall of the smoothed loss at the suggestion."""

_WINDOW = 0.5
"""Decades of learning rates whose losses are averaged, so that the curve has no lag."""


@dataclass(frozen=True)
class LearningRateTest:
    """Losses of one short training at rising learning rates.

    Attributes:
        rates: learning rate of each step.
        losses: loss of each step, before its update.
        smoothed: mean losses of the steps with about the same learning rate.
        suggestion: lowest learning rate at which the smoothed loss has fallen by nine tenths of its whole fall, but at
            most 1/30 of the rate at which it diverged; None if it does not fall.
        has_diverged: whether the loss rose so much that the test stopped before the highest rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    has_diverged: bool


class _DivergedError(Exception):
    """The loss or the gradient norm is not finite."""


class _RangeTestJob(AdapterJob):
    """A job whose learning rate rises by the factor `growth` at every step until the loss diverges."""

    def __init__(self, *arguments: Any, growth: float, **settings: Any) -> None:
        self.growth = growth
        super().__init__(*arguments, **settings)

    def make_schedule(self) -> LambdaLR:
        return LambdaLR(self.optimizer, lambda updates: self.growth**updates)

    def after_step(self) -> None:
        losses = [record.loss for record in self.log.history]
        stops = len(losses) > _SETTLED and _has_diverged(losses)
        self.update_state(after_step_due=False, stopped_early=stops)

    def fail(self, reason: str) -> NoReturn:
        raise _DivergedError(reason)


class _Losses(Callback):
    """Records of the steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step(self, record: StepRecord) -> None:
        self.losses.append(record.loss)


def find_learning_rate(
    model: "PreTrainedModel",
    data: "Data | DataSource",
    config: TrainConfig | None = None,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    min_rate: float | None = None,
    max_rate: float | None = None,
    steps: int = STEPS,
    callbacks: Sequence[Callback] = (),
) -> LearningRateTest:
    """Test which learning rates train a model: the rate rises exponentially over a few steps, until the loss diverges.

    The steps are those of `train`, without clipping, warm-up and evaluations. Afterwards the model has the weights that
    it had before, and the global random generators have their states; nothing was written.

    Args:
        model: adapted model.
        data: training examples, as `train` takes them.
        config: training settings; None: the defaults.
        tokenizer: tokenizer of the model; None: that of its base.
        min_rate: first learning rate; None: a thousandth of the configured one, or of the method's default.
        max_rate: learning rate of the last step; None: a hundred times the configured one, or the method's default.
        steps: number of steps, unless the loss diverges.
        callbacks: callbacks that receive the steps and notes.

    Returns:
        The losses at all rates, and a suggestion.

    Raises:
        ConfigError: the rates do not rise, there are too few steps, or a reason given in `train`.
        DataError: see `train`.
    """
    config = config or TrainConfig()
    default = config.learning_rate or max(
        (default_learning_rate(adapter.config) for adapter in attached(model).values()), default=1e-3
    )
    lowest = default * LOWEST if min_rate is None else min_rate
    highest = default * HIGHEST if max_rate is None else max_rate
    if not 0 < lowest < highest < math.inf:
        raise ConfigError(
            f"the learning rates of the test must rise from above 0, and {lowest:g} to {highest:g} do not"
        )
    if steps < 2 * _SETTLED:
        raise ConfigError(f"a test of learning rates needs at least {2 * _SETTLED} steps, and steps is {steps}")
    tokenizer = tokenizer_of(model) if tokenizer is None else tokenizer
    data = data if isinstance(data, Data) else data_of(model, data, tokenizer)
    growth = (highest / lowest) ** (1 / (steps - 1))
    with same_random_states():
        losses = _losses(model, data, _of_test(config, lowest, steps), tokenizer, growth, callbacks)
    rates = tuple(lowest * growth**step for step in range(len(losses)))
    smoothed = _smoothed(losses, math.log10(growth))
    has_diverged = len(losses) < steps or _has_diverged(losses)
    suggestion = suggested_rate(rates, losses, smoothed)
    if suggestion is not None and has_diverged:
        suggestion = float(f"{min(suggestion, rates[-1] / _BELOW):.2g}")
    return LearningRateTest(rates, tuple(losses), smoothed, suggestion, has_diverged)


def suggested_rate(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """Return the lowest learning rate at which the smoothed loss has nearly fallen to its minimum, or None.

    Only the fall to the lowest smoothed loss counts: after it the losses jump up and down.
    """
    end = min(range(len(smoothed)), key=smoothed.__getitem__, default=0)
    if end < 2:
        return None
    settled = losses[:_SETTLED]
    mean = sum(settled) / len(settled)
    noise = math.sqrt(sum((loss - mean) ** 2 for loss in settled) / len(settled) / len(settled))
    if mean - smoothed[end] <= noise:
        return None
    level = mean - _FALLEN * (mean - smoothed[end])
    fallen = next(step for step in range(end + 1) if smoothed[step] <= level)
    return float(f"{rates[fallen]:.2g}")


def _of_test(config: TrainConfig, lowest: float, steps: int) -> TrainConfig:
    """Return the settings of the test: those of the training, without everything that is not a step."""
    return config.model_copy(
        update={
            "learning_rate": lowest,
            "epochs": None,
            "max_steps": steps,
            "max_grad_norm": None,
            "warmup_ratio": TrainConfig.model_fields["warmup_ratio"].default,
            "warmup_steps": None,
            "eval_steps": None,
            "save_steps": None,
            "early_stopping_patience": None,
            "early_stopping_threshold": 0.0,
            "metric_for_best_model": "auto",
            "report_to": (),
        }
    )


def _losses(
    model: "PreTrainedModel",
    data: Data,
    config: TrainConfig,
    tokenizer: "PreTrainedTokenizerBase",
    growth: float,
    callbacks: Sequence[Callback],
) -> list[float]:
    """Return the losses of the steps, and leave the model as it was."""
    parameters = trainable_parameters(model)
    weights = copies(parameters)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if owner(name)}
    found = _Losses()
    job = Job(replace(data, validation=None), config)
    try:
        run_jobs(
            model,
            {None: job},
            tokenizer,
            None,
            {None: None},
            {None: (found, *callbacks)},
            resume=False,
            delete_checkpoints=True,
            make_job=partial(_RangeTestJob, growth=growth),
        )
    except _DivergedError:
        pass
    finally:
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        assign(parameters, weights)
        for parameter in parameters.values():
            parameter.grad = None
    return found.losses


def _has_diverged(losses: Sequence[float]) -> bool:
    settled, last = losses[:_SETTLED], losses[-_SETTLED // 2 :]
    return sum(last) / len(last) > _DIVERGED * sum(settled) / len(settled)


def _smoothed(losses: Sequence[float], decades_per_step: float) -> tuple[float, ...]:
    """Return the mean of each loss and of its neighbours within half a window of learning rates on both sides."""
    half = max(1, round(_WINDOW / 2 / decades_per_step))
    spans = [losses[max(0, index - half) : index + half + 1] for index in range(len(losses))]
    return tuple(sum(span) / len(span) for span in spans)
