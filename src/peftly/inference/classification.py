"""Labels of texts and tags of words by a classifier, for new texts."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from peftly.adapters import AdapterChoice
from peftly.data import EncodedExample, Example, TaskName, collate, encode_sources, encode_words
from peftly.errors import ConfigError, DataError
from peftly.inference.batches import by_length, check_adapters, on_device, pad_id, use_batch
from peftly.inference.inputs import TextInput, texts_of, words_of
from peftly.inference.logits import check_finite, model_inputs
from peftly.injection import evaluation_mode
from peftly.models import OutputKind, labels_of, max_input_tokens, output_kind, reads_padding, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SCORES", "classify", "tag_words"]

_FUNCTIONS = {
    "sequence_classification": "classify",
    "token_classification": "tag_words",
    "causal_lm": "generate",
    "seq2seq_lm": "generate",
}
"""Function of this package for a model of each task."""

SCORES: dict[OutputKind, Callable[[Tensor], Tensor]] = {
    "class": partial(torch.softmax, dim=-1),
    "labels": torch.sigmoid,
    "numbers": torch.clone,
}
"""Functions of the logits of a text, (batch, labels), by the meaning of the outputs."""


def classify(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: TextInput | Sequence[TextInput],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    adapters: Sequence[AdapterChoice] | None = None,
) -> list[dict[str, float]]:
    """Return the probability of every label for every text; of a model that predicts numbers, its numbers.

    The probabilities of a text have the sum 1, unless the config of the model says that several labels may be right
    (`problem_type="multi_label_classification"`): then each label has a probability of its own. A model with one output
    or with `problem_type="regression"`, such as a reward model, predicts numbers.

    Args:
        model: sequence classifier. Its modes are restored afterwards.
        tokenizer: tokenizer of the model.
        texts: one text or several. A pair of texts is a tuple inside of the list, or a mapping with the keys `text`
            and `text_pair`. A model that was trained with a template needs the result of `RowFormat.format_prompt`.
        max_length: maximum number of tokens, to which longer texts are cut; None: no maximum.
        batch_size: number of texts per forward pass.
        adapters: active adapters of each text: a name, several names, or None for no adapter; None instead of a list:
            the model's active adapters for all texts.

    Returns:
        For each text a probability per label, or a number per label.

    Raises:
        DataError: a text has no tokens, more tokens than the model has positions, half of a character, or another type.
        ConfigError: `adapters` does not have one entry per text, or the model does not classify texts.
        AdapterError: the model computes values that are not numbers.
    """
    examples = texts_of(texts)
    check_adapters(adapters, len(examples), "text")
    _check_task(model, "sequence_classification")
    labels, scores_of = labels_of(model), SCORES[output_kind(model.config)]
    encoded = encode_sources(examples, tokenizer, max_length)
    empty = next((index for index, example in enumerate(encoded) if not example.input_ids), None)
    if empty is not None:
        raise DataError(f"the text {examples[empty].prompt!r} has no tokens; give at least one word")
    _check_lengths(model, encoded)
    probabilities: list[dict[str, float]] = [{} for _ in encoded]
    with evaluation_mode(model):
        for chosen, logits in _logits(model, tokenizer, encoded, batch_size, adapters):
            check_finite(logits)
            for index, values in zip(chosen, scores_of(logits).tolist(), strict=True):
                probabilities[index] = dict(zip(labels, values, strict=True))
    return probabilities


def tag_words(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[Sequence[str] | Example],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    adapters: Sequence[AdapterChoice] | None = None,
) -> list[list[tuple[str, str | None]]]:
    """Return every word of every text with its most likely tag.

    Args:
        model: token classifier. Its modes are restored afterwards.
        tokenizer: tokenizer of the model.
        texts: words of each text: a list, or an example of `RowFormat.format_prompt`.
        max_length: maximum number of tokens, to which longer texts are cut; None: no maximum.
        batch_size: number of texts per forward pass.
        adapters: active adapters of each text: a name, several names, or None for no adapter; None instead of a list:
            the model's active adapters for all texts.

    Returns:
        For each text its words with their tags; None is the tag of a word past `max_length` or without a token.

    Raises:
        DataError: a text is a string instead of a list of words, has more tokens than the model has positions, or has
            half of a character.
        ConfigError: `adapters` does not have one entry per text, or the model does not tag words.
        AdapterError: the model computes values that are not numbers.
    """
    listed = words_of(texts)
    check_adapters(adapters, len(listed), "text")
    _check_task(model, "token_classification")
    labels = labels_of(model)
    encodings = encode_words(listed, tokenizer, max_length)
    with_words = [index for index, (example, _) in enumerate(encodings) if any(example.trained)]
    tags: list[list[str | None]] = [[None] * len(text) for text in listed]
    chosen_adapters = None if adapters is None else [adapters[index] for index in with_words]
    encoded = [encodings[index][0] for index in with_words]
    _check_lengths(model, encoded)
    with evaluation_mode(model):
        for chosen, logits in _logits(model, tokenizer, encoded, batch_size, chosen_adapters):
            check_finite(*(row[: len(encoded[number].input_ids)] for number, row in zip(chosen, logits, strict=True)))
            for number, guesses in zip(chosen, logits.argmax(-1).tolist(), strict=True):
                index = with_words[number]
                # Not strict: the guesses at the padding on the right have no word.
                for word, guess in zip(encodings[index][1], guesses, strict=False):
                    if word is not None:
                        tags[index][word] = labels[guess]
    return [list(zip(text, guesses, strict=True)) for text, guesses in zip(listed, tags, strict=True)]


def _check_task(model: "PreTrainedModel", task: TaskName) -> None:
    """Raise ConfigError for a model of another task."""
    if (found := task_of(model)) != task:
        function = _FUNCTIONS.get(found or "")
        advice = f"; use peftly.{function}" if function else ""
        raise ConfigError(f"a {type(model).__name__} is not for {task}{advice}")


def _check_lengths(model: "PreTrainedModel", encoded: Sequence[EncodedExample]) -> None:
    """Raise DataError for a text with more tokens than the model has positions."""
    limit, longest = max_input_tokens(model), max((len(example.input_ids) for example in encoded), default=0)
    if limit is not None and longest > limit:
        raise DataError(f"a text has {longest} tokens, and the model has positions for {limit}; set max_length={limit}")


def _logits(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Sequence[EncodedExample],
    batch_size: int,
    adapters: Sequence[AdapterChoice] | None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the indices of each batch's examples and their logits in fp64 on the CPU."""
    lengths = [len(example.input_ids) for example in encoded]
    for chosen in by_length(lengths, batch_size, equal_lengths=reads_padding(model)):
        examples = [encoded[index] for index in chosen]
        chosen_adapters = None if adapters is None else [adapters[index] for index in chosen]
        batch = on_device(collate(examples, pad_id=pad_id(tokenizer)), model)
        with use_batch(model, examples, chosen_adapters):
            logits: Tensor = model(**model_inputs(model, batch)).logits.double().cpu()
        yield chosen, logits
