"""Evaluation of a model on held-out examples: loss and the metrics of its task. See `Evaluation` for the metrics."""

from dataclasses import replace
from typing import TYPE_CHECKING

from peftly.data import DataSource, RowFormat, Split
from peftly.errors import DataError
from peftly.evaluation.generation import check_answers, generate_answers
from peftly.evaluation.metrics import Evaluation, Prediction
from peftly.evaluation.rows import split_of
from peftly.evaluation.tasks import scoring_for
from peftly.evaluation.text_scores import text_scores
from peftly.inference import check_adapters, score_labels
from peftly.injection import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Evaluation", "Prediction", "evaluate", "score_labels"]


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    split: "Split | DataSource",
    row_format: RowFormat,
    *,
    batch_size: int = 32,
    generate: int = 0,
) -> Evaluation:
    """Evaluate a model on a split.

    Args:
        model: model with the head of a task, with or without adapters. Its modes are restored afterwards.
        tokenizer: tokenizer of the model.
        split: examples, encoded for the task, with at least one target each. `split.adapters` has the active adapters
            of each example; None: the model's active adapters for all examples. Or rows, as `load_data` takes them: a
            list, a `datasets.Dataset`, a pandas frame, a file; of several splits the test split is used.
        row_format: format of the examples; the kind "label" adds the metrics over labels. The format of the training is
            `TrainResult.data.row_format`, or the row format of `open_run`.
        batch_size: number of examples per forward pass.
        generate: number of examples whose answers are generated, too, and compared with the expected ones. It is for
            completions and conversations, and takes much longer than the loss of the same examples.

    Returns:
        Loss, metrics, and one prediction per example with labels, tags or a generated answer.

    Raises:
        DataError: the split is empty, its examples are encoded for another task, or a label of an example is not one of
            the format's labels.
        ConfigError: `split.adapters` does not have one entry per example; or answers are to be generated for examples
            that have none.
    """
    split = split_of(model, split, tokenizer, row_format)
    if not split.encoded:
        raise DataError("there is nothing to evaluate: the split has no examples")
    check_adapters(split.adapters, len(split.encoded), "example")
    if generate:
        check_answers(row_format)
    with evaluation_mode(model):
        scores = scoring_for(model, split, row_format).evaluate(model, tokenizer, split, row_format, batch_size)
    if not generate:
        return scores
    answers = generate_answers(model, tokenizer, split, generate, batch_size=batch_size)
    expected, generated = [answer.label for answer in answers], [answer.predicted for answer in answers]
    return replace(scores, predictions=tuple(answers), generated=len(answers), **text_scores(expected, generated))
