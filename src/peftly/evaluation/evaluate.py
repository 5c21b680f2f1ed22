"""Evaluation of a model on held-out examples: loss and the metrics of its task. See `Evaluation` for the metrics."""

from typing import TYPE_CHECKING

from peftly.data import RowFormat, Split
from peftly.errors import DataError
from peftly.evaluation.metrics import Evaluation, Prediction
from peftly.evaluation.tasks import scoring_for
from peftly.inference import check_adapters, score_labels
from peftly.injection import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Evaluation", "Prediction", "evaluate", "score_labels"]


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    split: Split,
    row_format: RowFormat,
    *,
    batch_size: int = 32,
) -> Evaluation:
    """Evaluate a model on a split.

    Args:
        model: model with the head of a task, with or without adapters. Its modes are restored afterwards.
        tokenizer: tokenizer of the model.
        split: examples, encoded for the task, with at least one target each. `split.adapters` has the active adapters
            of each example; None: the model's active adapters for all examples.
        row_format: format of the examples; the kind "label" adds the metrics over labels.
        batch_size: number of examples per forward pass.

    Returns:
        Loss, metrics, and one prediction per example with labels or tags.

    Raises:
        DataError: the split is empty, its examples are encoded for another task, or a label of an example is not one of
            the format's labels.
        ConfigError: `split.adapters` does not have one entry per example.
    """
    if not split.encoded:
        raise DataError("there is nothing to evaluate: the split has no examples")
    check_adapters(split.adapters, len(split.encoded), "example")
    with evaluation_mode(model):
        return scoring_for(model, split, row_format).evaluate(model, tokenizer, split, row_format, batch_size)
