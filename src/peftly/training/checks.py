"""What a training run refuses before anything is written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftly.adapters import attached
from peftly.data import Data
from peftly.errors import ConfigError
from peftly.evaluation import metrics_of
from peftly.methods import MethodConfig
from peftly.training.config import TrainConfig
from peftly.training.optimizer import parameter_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_trainable"]


def check_trainable(
    model: "PreTrainedModel",
    data: Data,
    config: TrainConfig,
    *,
    adapter: str | None = None,
    learning_rate: float | None = None,
) -> None:
    """Refuse what a `AdapterJob` of the same arguments would refuse, before anything is written.

    Raises:
        ConfigError: settings that the data or the adapters cannot serve.
    """
    _check(config, data)
    methods = [one.config for name, one in attached(model).items() if adapter in (None, name)]
    _check_marks([method for method in methods if method.marked_tokens], data.row_format.marked_tokens)
    parameter_groups(model, config, learning_rate)


def _check(config: TrainConfig, data: Data) -> None:
    if not data.train.encoded:
        raise ConfigError("there is nothing to train on: data.train has no rows left")
    if data.validation is None:
        needs = [name for name in ("eval_steps", "early_stopping_patience") if getattr(config, name) is not None]
        needs += ["metric_for_best_model"] * (config.metric_for_best_model != "loss")
        if needs:
            raise ConfigError(
                f"train.{needs[0]} needs validation rows; give data.validation or a data.validation_fraction above 0"
            )
    metrics = metrics_of(data.row_format)
    if config.metric_for_best_model not in metrics:
        raise ConfigError(
            f"train.metric_for_best_model {config.metric_for_best_model} is no score of rows of kind {data.row_format.kind!r}; "
            f"they have {', '.join(metrics)}"
        )


def _check_marks(methods: Sequence[MethodConfig], marks: int) -> None:
    """Refuse a template whose marks are not those of the methods that have virtual tokens at marks."""
    if marks and not methods:
        raise ConfigError(
            f"data.template marks places for {marks} virtual tokens, and no method puts any there: take the marks out, "
            f"or set method.position to template and method.num_virtual_tokens to {marks} (prompt_tuning, p_tuning)"
        )
    for method in methods:
        if method.marked_tokens != marks:
            raise ConfigError(
                f"{method.name} has {method.marked_tokens} virtual tokens with position: template, and data.template "
                f"marks places for {marks}; mark all of them, as {{prompt:{method.marked_tokens}}} does, "
                "or change method.num_virtual_tokens"
            )
