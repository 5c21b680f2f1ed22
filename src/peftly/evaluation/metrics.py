"""What an evaluation says, and the sums that every task's is made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftly.data import RowFormat, Split, collate
from peftly.errors import DataError
from peftly.evaluation.entities import has_entities
from peftly.inference import Logits, batches, on_device, pad_id
from peftly.kernels import row_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Evaluation",
    "Prediction",
    "evaluate_predictions",
    "evaluate_tokens",
    "label_scores",
    "metrics_of",
    "place",
    "token_scores",
]


@dataclass(frozen=True)
class Prediction:
    """What the model makes of one labelled row.

    Attributes:
        prompt: the text that the label follows; for tags the words, parted by spaces.
        label: the row's own label; for tags those of all words, parted by spaces.
        predicted: the likeliest label, or tags.
        log_probabilities: of every label, by label; empty for tags.
        tokens: of the row's own label, where the model writes it.
        hits: how many of those the model would have chosen itself.
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

    Attributes:
        rows: how many rows were read.
        tokens: how many targets the scores are over: trained tokens (completion and end), tagged words, or rows.
        loss: mean of -log p over those.
        perplexity: exp(loss); None where the targets are no text.
        token_accuracy: share of the tokens or tags that the model would have chosen itself; None for whole rows.
        accuracy: share of rows whose own label is the likeliest; None without labels, like all that follows.
        macro_f1: F1 averaged over the labels (or tags without entities) that occur as true or as predicted ones.
        labels: the label texts, in order.
        confusion: how often label i (outer) was taken for label j (inner).
        predictions: one a row, in the order of the split.
        entity_f1: F1 of whole entities, kind and boundaries, for tags that begin with B- and I-.
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


def evaluate_tokens(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, batch_size: int, logits_of: Logits
) -> Evaluation:
    """Score a language model by the tokens that it is to write."""
    loss, hits, tokens = 0.0, 0, 0
    for chosen in batches(model, split, [encoded.num_tokens for encoded in split.encoded], batch_size):
        batch = collate([split.encoded[index] for index in chosen], pad_id=pad_id(tokenizer))
        logits, targets = logits_of(model, on_device(batch, model))
        loss += row_losses(logits, targets).double().sum().item()
        hits += int((logits.argmax(-1) == targets.to(logits.device)).sum())
        tokens += targets.numel()
    return Evaluation(rows=len(split.encoded), tokens=tokens, **token_scores(loss, hits, tokens))


def evaluate_predictions(predictions: Sequence[Prediction], labels: Sequence[str]) -> Evaluation:
    """Return the scores over labels of rows whose predictions are known: of all that a model read, or of some."""
    golds = [labels.index(row.label) for row in predictions]
    taken = [labels.index(row.predicted) for row in predictions]
    loss = -math.fsum(row.log_probabilities[row.label] for row in predictions)
    # What a model that writes would lose on the rows as they are, since a row's completion is its label's text.
    tokens = sum(row.tokens or 0 for row in predictions)
    hits = sum(row.hits or 0 for row in predictions)
    return Evaluation(
        rows=len(predictions),
        tokens=tokens or len(predictions),
        **(token_scores(loss, hits, tokens) if tokens else {"loss": loss / len(predictions)}),
        **label_scores(golds, taken, len(labels)),
        labels=tuple(labels),
        predictions=tuple(predictions),
    )


def metrics_of(row_format: RowFormat) -> tuple[str, ...]:
    """Return the scores by which the best of several evaluations on rows of this shape can be chosen."""
    if row_format.kind == "tags":
        return ("loss", "entity_f1" if has_entities(row_format.labels) else "macro_f1")
    return ("loss", "accuracy", "macro_f1") if row_format.kind == "label" else ("loss",)


def place(labels: Sequence[str], label: str | None) -> int:
    """Return the number of a row's label.

    Raises:
        DataError: it is none of `labels`.
    """
    if label is None or label not in labels:
        raise DataError(f"a row has the label {label!r}; the labels are {', '.join(map(repr, labels))}")
    return labels.index(label)


def token_scores(loss: float, hits: int, tokens: int) -> dict[str, Any]:
    """Return loss, perplexity and token accuracy from their sums."""
    mean = loss / tokens
    # Beyond this a float overflows; NaN stays NaN.
    perplexity = math.inf if mean > 700 else math.exp(mean)
    return {"loss": mean, "perplexity": perplexity, "token_accuracy": hits / tokens}


def label_scores(golds: list[int], taken: list[int], labels: int) -> dict[str, Any]:
    """Return accuracy, macro-F1 and confusion of rows' own labels and the likeliest ones."""
    from sklearn.metrics import confusion_matrix, f1_score

    confusion = confusion_matrix(golds, taken, labels=list(range(labels)))
    return {
        "accuracy": sum(gold == guess for gold, guess in zip(golds, taken, strict=True)) / len(golds),
        "macro_f1": float(f1_score(golds, taken, average="macro", zero_division=0)),
        "confusion": tuple(tuple(int(count) for count in row) for row in confusion),
    }
