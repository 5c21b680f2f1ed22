"""Classifiers of whole texts and of words: how good they are on held-out rows, and what they say of a new text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from peftly.adapters import use_prompt_positions
from peftly.data import EncodedExample, Example, collate, encode_sources, encode_words
from peftly.errors import DataError
from peftly.inference.batches import by_length, on_device, pad_id
from peftly.inference.logits import read_by
from peftly.injection import evaluation_mode
from peftly.models import labels_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["classify", "tag_words"]


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
        examples: texts, as `RowFormat.format_prompt` makes them.
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


def _logits(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: Sequence[EncodedExample]) -> Tensor:
    batch = on_device(collate(rows, pad_id=pad_id(tokenizer)), model)
    with use_prompt_positions(model, batch.get("prompt_positions")):
        logits: Tensor = model(**read_by(model, batch)).logits.double().cpu()
    return logits
