"""How good a model is on held-out rows: loss, and what its task makes of them. See `Evaluation` for the scores."""

from typing import TYPE_CHECKING

from peftly.data import RowFormat, Split
from peftly.errors import DataError
from peftly.evaluation.metrics import Evaluation, Prediction
from peftly.evaluation.tasks import scoring_for
from peftly.inference import score_labels
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
    """Score `model` on a split; the model is left as it was found.

    Args:
        model: a model with the head of a task, adapted or not.
        tokenizer: the model's own.
        split: rows, encoded for that task, that hold at least one target each.
        row_format: how the rows became text; one of kind "label" adds the scores over labels.
        batch_size: rows that go through the model at once.

    Raises:
        DataError: the split is empty, its rows are encoded for another task, or a row's label is none of the shape's.
    """
    if not split.encoded:
        raise DataError("there is nothing to evaluate: the split has no rows")
    with evaluation_mode(model):
        return scoring_for(model, split, row_format).evaluate(model, tokenizer, split, row_format, batch_size)
