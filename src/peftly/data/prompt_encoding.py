"""Prompts without their targets as token ids, cut as training cuts them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from peftly.data.chat import prompt_ids
from peftly.data.chat_truncation import newest_exchanges
from peftly.data.encoding import encode_all, label_ids
from peftly.data.formats import RowFormat
from peftly.data.types import EncodedExample, Example
from peftly.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_conversation", "encode_label_prompts", "encode_prompts"]

_NO_MAXIMUM = 2**62
_PLACEHOLDER = " x"
"""Text in place of a completion. The tokens of a prompt do not depend on the completion."""


def encode_prompts(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> list[EncodedExample]:
    """Encode the prompts from which a causal language model goes on.

    Args:
        examples: examples of `RowFormat.format_prompt`.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens of a prompt. A longer one loses tokens as in training: at the ends of its
            fields, or at the start of a prompt without a template. None: no maximum.

    Returns:
        One encoded example without trained tokens per example.

    Raises:
        DataError: the tokenizer has no end token.
    """
    return _encode_in_front_of(_PLACEHOLDER, examples, tokenizer, max_length, room=0)


def encode_label_prompts(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample]:
    """Encode the prompts of rows with labels for a causal language model, with the tokens that evaluation reads.

    Args:
        examples: examples of `RowFormat.format_prompt`.
        tokenizer: tokenizer of the base.
        row_format: format of the rows, with labels.
        max_length: maximum number of tokens of a prompt with the longest label.

    Returns:
        One encoded example without trained tokens per example.

    Raises:
        DataError: the tokenizer has no end token, or makes no token or the same tokens of labels.
    """
    room = max(map(len, label_ids(row_format, tokenizer).values()))
    completion = row_format.completion(row_format.labels[0])
    return _encode_in_front_of(completion, examples, tokenizer, max_length, room=room)


def encode_conversation(
    example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> EncodedExample | None:
    """Encode a conversation whose next turn the assistant writes.

    Args:
        example: example with messages.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens. A longer conversation loses its oldest exchanges; None: no maximum.

    Returns:
        The encoded conversation; None if its last exchange alone is too long.

    Raises:
        DataError: there is no chat template, or it refuses the messages.
    """

    def ids_of(messages: Sequence[dict[str, object]]) -> list[int]:
        return prompt_ids(messages, tokenizer, example.tools)

    ids = whole = ids_of(example.messages)
    if max_length is not None and len(ids) > max_length:
        kept = newest_exchanges(example.messages, lambda messages: len(ids_of(list(map(dict, messages)))) <= max_length)
        ids = ids_of([example.messages[index] for index in kept])
        if len(ids) > max_length:
            return None
    return EncodedExample(ids, [False] * len(ids), len(whole) - len(ids))


def _encode_in_front_of(
    completion: str,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
    *,
    room: int,
) -> list[EncodedExample]:
    vocabulary = Vocabulary.of(tokenizer)
    target = len(vocabulary.continuation(completion)) + 1  # the end token
    limit = _NO_MAXIMUM if max_length is None else max_length + (0 if room else target)
    # With a label, the tokens of the completion are not searched for again behind every prompt.
    complete = [replace(example, completion=completion, label="") for example in examples]
    encoded = encode_all(complete, tokenizer, limit, completion_room=room)
    return [_prompt_of(*pair, vocabulary) for pair in zip(examples, encoded, strict=True)]


def _prompt_of(example: Example, encoded: EncodedExample | None, vocabulary: Vocabulary) -> EncodedExample:
    """Return the prompt of an encoded example, which is empty if nothing but the target was left."""
    if encoded is None or True not in encoded.trained:
        return EncodedExample([], [])
    end = encoded.trained.index(True)
    if end == 1 and not vocabulary.front and not vocabulary.body(example.prompt):
        end = 0  # the first token of a sequence is never trained, though it belongs to the target here
    cut = encoded.num_truncated
    return EncodedExample(encoded.input_ids[:end], [False] * end, cut, prompt_positions=encoded.prompt_positions)
