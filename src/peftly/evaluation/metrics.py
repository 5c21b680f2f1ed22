"""Results of an evaluation, and the metrics that they consist of."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.data import RowFormat, Split, collate, token_counts
from peftly.errors import DataError
from peftly.evaluation.entities import has_entities
from peftly.inference import Logits, batches, on_device, pad_id
from peftly.kernels import token_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Evaluation",
    "Prediction",
    "confusion_matrix",
    "evaluate_predictions",
    "evaluate_tokens",
    "label_index",
    "macro_f1",
    "metrics_of",
    "perplexity_of",
]


@dataclass(frozen=True)
class Prediction:
    """Prediction for one example: its label, its tags, or the answer that the model generates.

    Attributes:
        prompt: text in front of the label or of the answer; for tags the words, separated by spaces.
        label: true label, or expected answer; for tags the true tags, separated by spaces.
        predicted: most likely label, most likely tags, or generated answer.
        log_probabilities: log-probability of every label, by label; empty for tags and answers.
        tokens: number of tokens of the true label, for a model that generates labels; None for other models.
        hits: number of these tokens that are the most likely token at their position.
    """

    prompt: str
    label: str
    predicted: str
    log_probabilities: dict[str, float]
    tokens: int | None = None
    hits: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    The field names are keys of `evaluation.json`.

    Attributes:
        rows: number of examples.
        tokens: number of targets: trained tokens (completion and end token), tagged words, or examples.
        loss: mean of -log p over the targets.
        perplexity: exp(loss); None if the targets are not tokens.
        token_accuracy: fraction of tokens or tags that are the most likely choice; None for labels of whole examples.
        accuracy: fraction of examples whose true label is the most likely one; None without labels.
        macro_f1: mean F1 over the labels (or tags without entities) that occur as true or predicted labels.
        labels: labels in order.
        confusion: number of examples with true label i (outer index) and predicted label j (inner index).
        predictions: one prediction per example, in the order of the split; for answers, of the first examples.
        entity_f1: F1 of entities, correct if type and boundaries are, for tags of entities in any scheme; see
            `TagScheme`.
        words_without_tag: number of words that the model gave no tag, as they have no token or were cut off.
        generated: number of examples whose answers were generated, for the scores that follow.
        exact_match: fraction of generated answers that are the expected ones, without spaces at both ends.
        rouge_1, rouge_2, rouge_l: ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 of common words, pairs of words and longest
            common sequences of words.
        chrf, bleu: chrF and BLEU of sacrebleu over all answers, from 0 to 100.
        bleu_tokenizer: tokenizer of BLEU in sacrebleu.
    """

    rows: int
    tokens: int
    loss: float
    perplexity: float | None = None
    token_accuracy: float | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    labels: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] | None = None
    predictions: tuple[Prediction, ...] = ()
    entity_f1: float | None = None
    words_without_tag: int = 0
    generated: int = 0
    exact_match: float | None = None
    rouge_1: float | None = None
    rouge_2: float | None = None
    rouge_l: float | None = None
    chrf: float | None = None
    bleu: float | None = None
    bleu_tokenizer: str | None = None


def evaluate_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, batch_size: int, logits_of: Logits
) -> Evaluation:
    """Evaluate a language model on the tokens of its completions.

    Args:
        model: language model, in evaluation mode.
        tokenizer: tokenizer of the model.
        split: encoded examples.
        batch_size: number of examples per forward pass.
        logits_of: function that returns logits and targets of a batch.
    """
    loss, hits, tokens = 0.0, 0, 0
    for chosen in batches(model, split, token_counts(split.encoded), batch_size):
        batch = collate([split.encoded[index] for index in chosen], pad_id=pad_id(tokenizer))
        logits, targets = logits_of(model, on_device(batch, model))
        loss += token_cross_entropy(logits, targets).double().sum().item()
        hits += int((logits.argmax(-1) == targets.to(logits.device)).sum())
        tokens += targets.numel()
        del logits  # the next batch has its own, which can be as large as the base
    return Evaluation(rows=len(split.encoded), tokens=tokens, **_token_metrics(loss, hits, tokens))


def evaluate_predictions(predictions: Sequence[Prediction], labels: Sequence[str]) -> Evaluation:
    """Return the evaluation over labels that follows from predictions.

    Args:
        predictions: predictions for at least one example.
        labels: all labels, in order.
    """
    true = [labels.index(prediction.label) for prediction in predictions]
    predicted = [labels.index(prediction.predicted) for prediction in predictions]
    loss = 0.0 - math.fsum(prediction.log_probabilities[prediction.label] for prediction in predictions)  # no -0.0
    # The completion of an example is the text of its label, so this is also the loss over the tokens of completions.
    tokens = sum(prediction.tokens or 0 for prediction in predictions)
    hits = sum(prediction.hits or 0 for prediction in predictions)
    return Evaluation(
        rows=len(predictions),
        tokens=tokens or len(predictions),
        **(_token_metrics(loss, hits, tokens) if tokens else {"loss": loss / len(predictions)}),
        accuracy=sum(a == b for a, b in zip(true, predicted, strict=True)) / len(true),
        macro_f1=macro_f1(true, predicted),
        confusion=confusion_matrix(true, predicted, len(labels)),
        labels=tuple(labels),
        predictions=tuple(predictions),
    )


def perplexity_of(loss: float | None) -> float | None:
    """Return exp(loss), infinity where it overflows a float; None and NaN stay as they are."""
    return None if loss is None else math.inf if loss > 700 else math.exp(loss)


def metrics_of(row_format: RowFormat) -> tuple[str, ...]:
    """Return the metrics that rank evaluations on examples of a format; the default metric is the first."""
    if row_format.kind == "tags":
        return ("loss", "entity_f1" if has_entities(row_format.labels) else "macro_f1")
    return ("loss", "accuracy", "macro_f1") if row_format.kind == "label" else ("loss",)


def label_index(labels: Sequence[str], label: str | None) -> int:
    """Return the index of an example's label.

    Raises:
        DataError: the label is not one of `labels`.
    """
    if label is None or label not in labels:
        raise DataError(f"an example has the label {label!r}; the labels are {', '.join(map(repr, labels))}")
    return labels.index(label)


def macro_f1(true: Sequence[Any], predicted: Sequence[Any]) -> float:
    """Return the unweighted mean of the F1 of every label that occurs, as scikit-learn's `f1_score` computes it.

    The F1 of a label is 2 hits / (true + predicted), where hits counts the examples with this label as true and as
    predicted label.

    Args:
        true: true label of each example.
        predicted: predicted label of each example.
    """
    true_counts, predicted_counts = Counter(true), Counter(predicted)
    hits = Counter(a for a, b in zip(true, predicted, strict=True) if a == b)
    labels = dict.fromkeys([*true, *predicted])
    return sum(2 * hits[label] / (true_counts[label] + predicted_counts[label]) for label in labels) / len(labels)


def confusion_matrix(true: Sequence[int], predicted: Sequence[int], count: int) -> tuple[tuple[int, ...], ...]:
    """Return the number of examples for every true label (outer index) and predicted label (inner index).

    Args:
        true: index of each example's true label.
        predicted: index of each example's predicted label.
        count: number of labels.
    """
    pairs = Counter(zip(true, predicted, strict=True))
    return tuple(tuple(pairs[row, column] for column in range(count)) for row in range(count))


def _token_metrics(loss: float, hits: int, tokens: int) -> dict[str, Any]:
    """Return loss, perplexity and token accuracy from sums over tokens."""
    mean = loss / tokens
    return {"loss": mean, "perplexity": perplexity_of(mean), "token_accuracy": hits / tokens}
