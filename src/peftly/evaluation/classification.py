"""Scores of classifiers of texts and of tokens."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from peftly.data import EncodedExample, Example, RowFormat, Split, collate
from peftly.evaluation.entities import entity_f1, has_entities
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions
from peftly.inference import batches, class_logits, on_device, pad_id, tag_logits
from peftly.kernels import row_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate_classes", "evaluate_tags"]


def evaluate_classes(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Score a classifier of texts by accuracy, macro-F1 and the mean loss over rows."""
    labels = row_format.labels
    golds = [row.targets[0] for row in split.encoded]
    scores = torch.zeros(len(golds), len(labels), dtype=torch.double)
    for chosen in batches(model, split, [len(row.input_ids) for row in split.encoded], batch_size):
        batch = collate([split.encoded[index] for index in chosen], pad_id=pad_id(tokenizer))
        logits, _ = class_logits(model, on_device(batch, model))
        scores[chosen] = logits.double().log_softmax(-1).cpu()
    taken = scores.argmax(1).tolist()
    return evaluate_predictions(
        [
            Prediction(_text(example), labels[gold], labels[guess], dict(zip(labels, row, strict=True)))
            for example, gold, guess, row in zip(split.examples, golds, taken, scores.tolist(), strict=True)
        ],
        labels,
    )


def evaluate_tags(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Score a classifier of words by the loss and the share of right tags, and by the F1 of entities or of tags.

    Words that were cut off a long row are not scored.
    """
    labels = row_format.labels
    loss = 0.0
    taken: list[list[int]] = [[] for _ in split.encoded]
    for chosen in batches(model, split, [len(row.input_ids) for row in split.encoded], batch_size):
        rows = [split.encoded[index] for index in chosen]
        logits, targets = tag_logits(model, on_device(collate(rows, pad_id=pad_id(tokenizer)), model))
        loss += row_losses(logits, targets).double().sum().item()
        guesses = iter(logits.argmax(-1).tolist())
        for index, row in zip(chosen, rows, strict=True):
            taken[index] = list(islice(guesses, row.num_targets))
    golds = [_tags_of(row) for row in split.encoded]
    pairs = [pair for own, guess in zip(golds, taken, strict=True) for pair in zip(own, guess, strict=True)]
    named = [[[labels[tag] for tag in row] for row in rows] for rows in (golds, taken)]
    return Evaluation(
        rows=len(golds),
        tokens=len(pairs),
        loss=loss / len(pairs),
        token_accuracy=sum(own == guess for own, guess in pairs) / len(pairs),
        **_tag_scores(labels, pairs, named),
        predictions=tuple(
            Prediction(example.prompt, " ".join(own), " ".join(guess), {})
            for example, own, guess in zip(split.examples, *named, strict=True)
        ),
    )


def _tags_of(row: EncodedExample) -> list[int]:
    return [tag for tag, counted in zip(row.targets, row.trained, strict=True) if counted]


def _tag_scores(
    labels: Sequence[str], pairs: Sequence[tuple[int, int]], named: Sequence[list[list[str]]]
) -> dict[str, Any]:
    if has_entities(labels):
        return {"entity_f1": entity_f1(*named)}
    from sklearn.metrics import f1_score

    golds, taken = zip(*pairs, strict=True)
    return {"macro_f1": float(f1_score(golds, taken, average="macro", zero_division=0))}


def _text(example: Example) -> str:
    return example.prompt if example.pair is None else f"{example.prompt}\n{example.pair}"
