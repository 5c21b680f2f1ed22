"""Evaluation of sequence classifiers and token classifiers."""

from itertools import chain, islice
from typing import TYPE_CHECKING

import torch

from peftly.data import EncodedExample, Example, RowFormat, Split, collate, encode_words, input_lengths
from peftly.evaluation.entities import TagScheme, entity_f1
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

    A word without a token, and a word past the maximum length of an example, get no tag. They do not count in loss,
    accuracy and F1 of tags. The F1 of entities is that of the whole texts, in which they are outside of all entities.

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
    true = list(chain(*(_tags_of(encoded) for encoded in split.encoded)))
    guessed = list(chain(*predicted))
    scheme = TagScheme.of(labels)
    true_tags = [example.tags for example in split.examples]
    no_tag = "—" if scheme is None else "O"
    predicted_tags = [
        _tags_of_words(example, encoded, [labels[tag] for tag in tags], tokenizer, no_tag)
        for example, encoded, tags in zip(split.examples, split.encoded, predicted, strict=True)
    ]
    return Evaluation(
        rows=len(true_tags),
        tokens=len(true),
        loss=loss / len(true),
        token_accuracy=sum(a == b for a, b in zip(true, guessed, strict=True)) / len(true),
        entity_f1=None if scheme is None else entity_f1(true_tags, predicted_tags, scheme),
        macro_f1=macro_f1(true, guessed) if scheme is None else None,
        words_without_tag=sum(map(len, true_tags)) - len(true),
        predictions=tuple(
            Prediction(example.prompt, " ".join(example.tags), " ".join(tags), {})
            for example, tags in zip(split.examples, predicted_tags, strict=True)
        ),
    )


def _tags_of(example: EncodedExample) -> list[int]:
    """Return the tag indices of an example's words that have a token."""
    return [tag for tag, counts in zip(example.targets, example.trained, strict=True) if counts]


def _tags_of_words(
    example: Example, encoded: EncodedExample, tags: list[str], tokenizer: "PreTrainedTokenizerBase", no_tag: str
) -> list[str]:
    """Return one tag for every word of a text.

    Args:
        example: the text as words.
        encoded: the text as tokens.
        tags: tags of the words that have a token in `encoded`.
        tokenizer: tokenizer of the model.
        no_tag: tag for words that the model does not tag.
    """
    if len(tags) == len(example.words):
        return tags
    _, first_tokens = encode_words([example.words], tokenizer)[0]
    with_tokens = [word for word in first_tokens if word is not None]
    tag_of_word = dict(zip(with_tokens, tags, strict=False))  # not strict: the last words can be cut off
    return [tag_of_word.get(index, no_tag) for index in range(len(example.words))]


def _text(example: Example) -> str:
    """Return the text of an example, or both texts of a pair."""
    return example.prompt if example.pair is None else f"{example.prompt}\n{example.pair}"
