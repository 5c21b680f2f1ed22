"""The loss and the scores of each task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.data import RowFormat, Split, TaskName
from peftly.errors import DataError
from peftly.evaluation.classification import evaluate_classes, evaluate_tags
from peftly.evaluation.label_scores import evaluate_answers, evaluate_labels
from peftly.evaluation.metrics import Evaluation, evaluate_tokens
from peftly.inference import Logits, class_logits, decoder_logits, labelled_logits, tag_logits
from peftly.models import TASKS, labels_of, max_input_tokens, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SCORINGS", "Scoring", "scoring_for"]

Evaluate = Callable[["PreTrainedModel", "PreTrainedTokenizerBase", Split, RowFormat, int], Evaluation]


@dataclass(frozen=True)
class Scoring:
    """The loss and the scores of one task.

    Attributes:
        logits: logits and targets of a batch, from which the loss is computed; see `target_losses`.
        evaluate: scores of a model, from the model, the tokenizer, a split, its row format and the batch size.
        learns: attribute of `EncodedExample` that holds the targets; "trained" where they are tokens of the text itself.
    """

    logits: Logits
    evaluate: Evaluate
    learns: str


def _evaluate_causal(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    if row_format.kind == "label":
        return evaluate_labels(model, tokenizer, split, row_format, batch_size)
    return evaluate_tokens(model, tokenizer, split, batch_size, labelled_logits)


def _evaluate_seq2seq(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    if row_format.kind == "label":
        return evaluate_answers(model, tokenizer, split, row_format, batch_size)
    return evaluate_tokens(model, tokenizer, split, batch_size, decoder_logits)


SCORINGS: dict[TaskName, Scoring] = {
    "causal_lm": Scoring(labelled_logits, _evaluate_causal, "trained"),
    "seq2seq_lm": Scoring(decoder_logits, _evaluate_seq2seq, "answer"),
    "sequence_classification": Scoring(class_logits, evaluate_classes, "label"),
    "token_classification": Scoring(tag_logits, evaluate_tags, "tags"),
}


def scoring_for(model: Any, split: Split, row_format: RowFormat) -> Scoring:
    """Return the loss and the scores of a model's task, after a check that the examples are encoded for this task.

    Raises:
        DataError: they are encoded for another, have other labels than the model's head, or are too long for it.
    """
    name = task_of(model) or "causal_lm"
    own = next(task for task in reversed(SCORINGS) if getattr(split.encoded[0], SCORINGS[task].learns) is not None)
    if own != name:
        raise DataError(
            f"the model is for {name} and the rows were encoded for {own}; load the data with task={name!r}"
        )
    if TASKS[name].is_classification and len(labels_of(model)) != len(row_format.labels):
        raise DataError(
            f"the model tells {len(labels_of(model))} labels apart and the rows have {len(row_format.labels)}; "
            "open its base with the labels of the rows"
        )
    longest, most = max(len(row.input_ids) for row in split.encoded), max_input_tokens(model)
    if most is not None and longest > most:
        raise DataError(f"a row has {longest} tokens and the model reads {most} at most; set data.max_length to {most}")
    return SCORINGS[name]
