"""Classifiers of whole texts and of words: how good they are on held-out rows, and what they say of a new text."""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peftly.adapt import use_places
from peftly.data import Encoded, Example, Shape, Split, collate
from peftly.data.task_encoding import encode_sources, encode_words
from peftly.entities import entity_f1, has_entities
from peftly.errors import DataError
from peftly.modes import evaluation_mode
from peftly.objective import class_logits, read_by, row_losses, tag_logits
from peftly.scores import (
    Evaluation,
    Prediction,
    batches,
    by_length,
    evaluate_predictions,
    on_device,
    pad_id,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["classify", "evaluate_classes", "evaluate_tags", "labels_of", "tag_words"]


def labels_of(model: Any) -> list[str]:
    """Return the names of what a classifier tells apart, by number."""
    names = model.config.id2label
    return [str(names[number]) for number in sorted(names)]


def evaluate_classes(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    """Score a classifier of texts by accuracy, macro-F1 and the mean loss over rows."""
    labels = shape.labels
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
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, shape: Shape, batch_size: int
) -> Evaluation:
    """Score a classifier of words by the loss and the share of right tags, and by the F1 of entities or of tags.

    Words that were cut off a long row are not scored.
    """
    labels = shape.labels
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


def classify(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[Example],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
) -> list[dict[str, float]]:
    """Return the probability of every label for every text; the model is left as it was found.

    Args:
        model: a sequence classifier.
        tokenizer: the model's own.
        examples: texts, as `Shape.question` makes them.
        max_length: tokens that a longer text is cut to; None: none is cut.
        batch_size: texts that go through the model at once.
    """
    labels, rows = labels_of(model), encode_sources(examples, tokenizer, max_length)
    empty = next((example for example, row in zip(examples, rows, strict=True) if not row.input_ids), None)
    if empty is not None:
        raise DataError(f"the text {empty.prompt!r} has no tokens; give at least one word")
    found: list[dict[str, float]] = [{} for _ in rows]
    with evaluation_mode(model):
        for chosen in by_length([len(row.input_ids) for row in rows], batch_size):
            logits = _logits(model, tokenizer, [rows[index] for index in chosen])
            for index, row in zip(chosen, logits.softmax(-1).tolist(), strict=True):
                found[index] = dict(zip(labels, row, strict=True))
    return found


def tag_words(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    words: Sequence[str],
    *,
    max_length: int | None = None,
) -> list[tuple[str, str | None]]:
    """Return every word of a text with its likeliest tag, None for one past `max_length` or without a token.

    Args:
        model: a token classifier; left as it was found.
        tokenizer: the model's own.
        words: of one text.
        max_length: tokens that a longer text is cut to; None: it is not.
    """
    labels = labels_of(model)
    tags: list[str | None] = [None] * len(words)
    encoded, firsts = encode_words([words], tokenizer, max_length)[0]
    if any(encoded.trained):
        with evaluation_mode(model):
            logits = _logits(model, tokenizer, [encoded])[0]
        for word, number in zip(firsts, logits.argmax(-1).tolist(), strict=True):
            if word is not None:
                tags[word] = labels[number]
    return list(zip(words, tags, strict=True))


def _logits(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Encoded]) -> Tensor:
    batch = on_device(collate(rows, pad_id=pad_id(tokenizer)), model)
    with use_places(model, batch.get("places")):
        logits: Tensor = model(**read_by(model, batch)).logits.double().cpu()
    return logits


def _tags_of(row: Encoded) -> list[int]:
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
