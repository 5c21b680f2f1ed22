"""Evaluation of sequence classifiers and token classifiers."""

from itertools import chain, islice
from typing import TYPE_CHECKING

import torch

from peftly.data import EncodedExample, Example, RowFormat, Split, collate, input_lengths
from peftly.evaluation.entities import entity_f1, has_entities
from peftly.evaluation.metrics import Evaluation, Prediction, evaluate_predictions, macro_f1
from peftly.inference import batches, class_logits, on_device, pad_id, tag_logits
from peftly.kernels import token_cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["evaluate_classes", "evaluate_tags"]


def evaluate_classes(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Evaluate a sequence classifier: accuracy, macro-F1 and the mean loss over examples.

    Args:
        model: sequence classifier, in evaluation mode.
        tokenizer: tokenizer of the model.
        split: encoded examples with labels.
        row_format: format of the examples.
        batch_size: number of examples per forward pass.
    """
    labels = row_format.labels
    true = [example.targets[0] for example in split.encoded]
    scores = torch.zeros(len(true), len(labels), dtype=torch.double)
    for chosen in batches(model, split, input_lengths(split.encoded), batch_size):
        batch = collate([split.encoded[index] for index in chosen], pad_id=pad_id(tokenizer))
        logits, _ = class_logits(model, on_device(batch, model))
        scores[chosen] = logits.double().log_softmax(-1).cpu()
    predicted = scores.argmax(1).tolist()
    return evaluate_predictions(
        [
            Prediction(_text(example), labels[gold], labels[guess], dict(zip(labels, values, strict=True)))
            for example, gold, guess, values in zip(split.examples, true, predicted, scores.tolist(), strict=True)
        ],
        labels,
    )


def evaluate_tags(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", split: Split, row_format: RowFormat, batch_size: int
) -> Evaluation:
    """Evaluate a token classifier: loss, accuracy of tags, and F1 of entities or of tags.

    Words past the maximum length of an example do not count.

    Args:
        model: token classifier, in evaluation mode.
        tokenizer: tokenizer of the model.
        split: encoded examples with tags.
        row_format: format of the examples.
        batch_size: number of examples per forward pass.
    """
    labels = row_format.labels
    loss = 0.0
    predicted: list[list[int]] = [[] for _ in split.encoded]
    for chosen in batches(model, split, input_lengths(split.encoded), batch_size):
        examples = [split.encoded[index] for index in chosen]
        logits, targets = tag_logits(model, on_device(collate(examples, pad_id=pad_id(tokenizer)), model))
        loss += token_cross_entropy(logits, targets).double().sum().item()
        guesses = iter(logits.argmax(-1).tolist())
        for index, example in zip(chosen, examples, strict=True):
            predicted[index] = list(islice(guesses, example.num_targets))
    true_tags = [[labels[tag] for tag in _tags_of(example)] for example in split.encoded]
    predicted_tags = [[labels[tag] for tag in tags] for tags in predicted]
    true_words, predicted_words = list(chain(*true_tags)), list(chain(*predicted_tags))
    is_bio = has_entities(labels)
    return Evaluation(
        rows=len(true_tags),
        tokens=len(true_words),
        loss=loss / len(true_words),
        token_accuracy=sum(a == b for a, b in zip(true_words, predicted_words, strict=True)) / len(true_words),
        entity_f1=entity_f1(true_tags, predicted_tags) if is_bio else None,
        macro_f1=None if is_bio else macro_f1(true_words, predicted_words),
        predictions=tuple(
            Prediction(example.prompt, " ".join(true), " ".join(guess), {})
            for example, true, guess in zip(split.examples, true_tags, predicted_tags, strict=True)
        ),
    )


def _tags_of(example: EncodedExample) -> list[int]:
    """Return the tag indices of an example's words."""
    return [tag for tag, counts in zip(example.targets, example.trained, strict=True) if counts]


def _text(example: Example) -> str:
    """Return the text of an example, or both texts of a pair."""
    return example.prompt if example.pair is None else f"{example.prompt}\n{example.pair}"
