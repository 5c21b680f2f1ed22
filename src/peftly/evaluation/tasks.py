"""Loss and evaluation of each task.

A new task needs one entry in `peftly.models.TASKS` (its class of transformers), one entry in `SCORINGS` here, and one
function that evaluates a model on the task. Its targets must have an attribute in `EncodedExample`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.data import RowFormat, Split, TaskName, input_lengths, token_counts
from peftly.errors import DataError
from peftly.evaluation.classification import evaluate_classes, evaluate_tags
from peftly.evaluation.label_scores import evaluate_answers, evaluate_labels
from peftly.evaluation.metrics import Evaluation, evaluate_tokens
from peftly.inference import Logits, class_logits, decoder_logits, labelled_logits, tag_logits
from peftly.models import TASKS, labels_of, max_answer_tokens, max_input_tokens, output_kind, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SCORINGS", "Scoring", "check_lengths", "scoring_for"]

Evaluate = Callable[["PreTrainedModel", "PreTrainedTokenizerBase", Split, RowFormat, int], Evaluation]
"""Function that evaluates a model, from the model, its tokenizer, a split, its row format and the batch size."""


@dataclass(frozen=True)
class Scoring:
    """Loss and evaluation of one task.

    Attributes:
        logits: function that returns the logits and targets of a batch, which define the loss; see `target_losses`.
        evaluate: function that evaluates a model on a split.
        targets: attribute of `EncodedExample` that holds the targets; "trained" if they are tokens of the text itself.
    """

    logits: Logits
    evaluate: Evaluate
    targets: str


def _evaluate_causal(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Evaluate a causal language model on labels, or on completions without labels."""
    if row_format.kind == "label":
        return evaluate_labels(model, tokenizer, split, row_format, batch_size)
    return evaluate_tokens(model, tokenizer, split, batch_size, labelled_logits)


def _evaluate_seq2seq(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Evaluate an encoder-decoder on labels, or on completions without labels."""
    if row_format.kind == "label":
        return evaluate_answers(model, tokenizer, split, row_format, batch_size)
    return evaluate_tokens(model, tokenizer, split, batch_size, decoder_logits)


SCORINGS: dict[TaskName, Scoring] = {
    "causal_lm": Scoring(labelled_logits, _evaluate_causal, "trained"),
    "seq2seq_lm": Scoring(decoder_logits, _evaluate_seq2seq, "answer"),
    "sequence_classification": Scoring(class_logits, evaluate_classes, "label"),
    "token_classification": Scoring(tag_logits, evaluate_tags, "tags"),
}
"""Loss and evaluation by task."""


def scoring_for(model: Any, split: Split, row_format: RowFormat) -> Scoring:
    """Return loss and evaluation of a model's task, after a check that the examples are encoded for this task.

    Args:
        model: model with the head of a task.
        split: encoded examples, at least one.
        row_format: format of the examples.

    Raises:
        DataError: the examples are encoded for another task, have other labels than the model's head, or have more
            tokens than the model has positions; or the model predicts numbers or several labels for a text.
    """
    name = task_of(model) or "causal_lm"
    first = split.encoded[0]
    # Every example has "trained", so the tasks with other targets, which come later in the table, are asked first.
    encoded_for = next(task for task in reversed(SCORINGS) if getattr(first, SCORINGS[task].targets) is not None)
    if encoded_for != name:
        raise DataError(
            f"the model is for {name} and the examples were encoded for {encoded_for}; load the data with task={name!r}"
        )
    if TASKS[name].is_classification and len(labels_of(model)) != len(row_format.labels):
        raise DataError(
            f"the model has {len(labels_of(model))} labels and the examples have {len(row_format.labels)}; "
            "open its base with the labels of the examples"
        )
    if name == "sequence_classification" and (kind := output_kind(model.config)) != "class":
        raise DataError(
            f"the model predicts {'numbers' if kind == 'numbers' else 'any number of labels'} for a text, by its "
            "config's problem_type or its one output, and the examples have one label each; train and evaluate it with "
            "transformers' Trainer, which takes the adapted model"
        )
    check_lengths(model, split)
    return SCORINGS[name]


def check_lengths(model: Any, split: Split) -> None:
    """Check that a model has a position for every token of its examples, with the virtual tokens of its adapters.

    Args:
        model: model with its adapters.
        split: encoded examples.

    Raises:
        DataError: an example has more tokens.
    """
    inputs = input_lengths(split.encoded)
    lengths = [(max(inputs, default=0), max_input_tokens(model), "reads")]
    if model.config.is_encoder_decoder:
        answers = (total - length for total, length in zip(token_counts(split.encoded), inputs, strict=True))
        lengths.append((max(answers, default=0), max_answer_tokens(model), "writes"))
    for longest, limit, verb in lengths:
        if limit is not None and longest > limit:
            raise DataError(
                f"an example has {longest} tokens and the model {verb} at most {limit}; set data.max_length to {limit}"
            )
