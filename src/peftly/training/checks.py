"""Checks of a training run's settings against its data and model, before anything is written."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import nn

from peftly.adapters import attached, use_adapters
from peftly.data import Data
from peftly.errors import ConfigError, DataError, TrainingError
from peftly.evaluation import check_lengths, metrics_of
from peftly.injection import layers_without_gradient, some_paths
from peftly.methods import MethodConfig
from peftly.training.config import TrainConfig
from peftly.training.optimizer import parameter_groups
from peftly.utils import count_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["adapters_of_job", "check_trainable", "first_gradients_note"]


def check_trainable(
    model: "PreTrainedModel",
    data: Data,
    config: TrainConfig,
    *,
    adapter: str | None = None,
    learning_rate: float | None = None,
) -> None:
    """Check the arguments of an `AdapterJob` before anything is written.

    Args:
        model: adapted model.
        data: training and validation examples.
        config: training settings.
        adapter: name of the adapter to train; None: all trainable parameters.
        learning_rate: learning rate if `config` sets none.

    Raises:
        ConfigError: settings that the data or the adapters cannot serve.
        DataError: an example has more tokens than the model has positions, or the tokenizer does not know most of the
            text of most training examples.
    """
    _check(config, data)
    _check_tokens(data)
    with adapters_of_job(model, adapter):
        for split in filter(None, [data.train, data.validation]):
            check_lengths(model, split)
    methods = [attached_adapter.config for name, attached_adapter in attached(model).items() if adapter in (None, name)]
    _check_marks([method for method in methods if method.num_marked_tokens], data.row_format.num_marked_tokens)
    parameter_groups(model, config, learning_rate)


def adapters_of_job(model: "PreTrainedModel", adapter: str | None) -> AbstractContextManager[None]:
    """Activate the adapter of one job inside a block. The virtual tokens of other jobs take no positions of its texts.

    Args:
        model: adapted model.
        adapter: name of the adapter; None: the adapters that are active.
    """
    return nullcontext() if adapter is None else use_adapters(model, adapter)


def first_gradients_note(parameters: Mapping[str, nn.Parameter]) -> str | None:
    """Return a line that names the layers which got no gradient in the first step; None if all layers got one.

    Args:
        parameters: trained parameters by their names in the model, after the backward pass.

    Raises:
        TrainingError: no parameter got a gradient.
    """
    paths, layers = layers_without_gradient(parameters)
    if all(parameter.grad is None for parameter in parameters.values()):
        raise TrainingError(
            f"no trained parameter gets a gradient, so nothing would be learnt: the loss does not depend on "
            f"{some_paths(paths)}; name other layers in method.target_modules"
        )
    if not paths:
        return None
    return (
        f"{count_text(len(paths))} of {count_text(layers)} trained layers got no gradient in the first step, because "
        f"the model did not use them: {some_paths(paths)}"
    )


def _check(config: TrainConfig, data: Data) -> None:
    if not data.train.encoded:
        raise ConfigError("there is nothing to train on: data.train has no examples left")
    metric = config.metric_for_best_model
    if data.validation is None:
        settings = [name for name in ("eval_steps", "early_stopping_patience") if getattr(config, name) is not None]
        settings += ["metric_for_best_model"] * (metric not in ("auto", "loss"))
        if settings:
            raise ConfigError(
                f"train.{settings[0]} needs validation examples; set data.validation, or data.validation_fraction "
                "above 0"
            )
    metrics = metrics_of(data.row_format)
    if metric not in ("auto", *metrics):
        raise ConfigError(
            f"train.metric_for_best_model {metric} is no score of examples of kind "
            f"{data.row_format.kind!r}; they have {', '.join(metrics)}"
        )


def _check_tokens(data: Data) -> None:
    """Refuse texts in a language that the tokenizer does not know: the model would see unknown tokens only."""
    findings = data.report.findings if data.report else []
    found = next((f for split, f in findings if (split, f.kind) == ("train", "mostly_unknown")), None)
    total = len(data.train.encoded)
    if found is not None and 2 * found.count >= total:
        raise DataError(
            f"the tokenizer of this base does not know most of the text in {found.count:,} of {total:,} training "
            f"examples (first: {found.samples[0]}): choose a base for this language"
        )


def _check_marks(methods: Sequence[MethodConfig], marks: int) -> None:
    """Refuse a template that marks another number of virtual tokens than a method has."""
    if marks and not methods:
        raise ConfigError(
            f"data.template marks {marks} virtual tokens, and no method inserts any there: remove the marks, or "
            f"set method.position to template and method.num_virtual_tokens to {marks} (prompt_tuning, p_tuning)"
        )
    for method in methods:
        if method.num_marked_tokens != marks:
            raise ConfigError(
                f"{method.name} has {method.num_marked_tokens} virtual tokens with position: template, and "
                f"data.template marks {marks}; mark all of them, as {{prompt:{method.num_marked_tokens}}} does, "
                "or change method.num_virtual_tokens"
            )
