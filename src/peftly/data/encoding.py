"""Examples as token ids, for a causal language model: prompt, completion and end token.

The untrained tokens at the start of a training sequence are exactly `encode_prompt(prompt)`, the tokens that generation
starts from. Therefore prompt and completion are tokenized separately where a joint tokenization would change the tokens
of the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from peftly.data.chat import ChatEncoder
from peftly.data.formats import RowFormat
from peftly.data.templates import move_space
from peftly.data.truncation import largest_fit
from peftly.data.types import EncodedExample, Example
from peftly.data.vocabulary import Vocabulary, is_proper_prefix
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["check_distinct", "encode", "encode_all", "encode_example_prompt", "encode_prompt", "label_ids"]


def encode(example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EncodedExample | None:
    """Encode one example for a causal language model.

    An example that is too long loses tokens of its prompt first. The values of the fields are shortened from their
    ends, all to the same length if several are long, so that the text of the template stays: the instruction before
    the fields and the cue after them ("Label:"). A prompt that is one field alone, or a template that is too long
    itself, is cut from the left, after the special tokens at the start. A conversation loses its oldest exchanges, then
    the ends of messages that are not the assistant's. The completion is cut, at its end, only if it does not fit
    without any prompt; the end token is then left out.

    Args:
        example: an example of `RowFormat.examples`.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens.

    Returns:
        The encoded example, or None if none of its tokens would be trained. A chat template that renders earlier turns
        in another way gives a conversation several training sequences: `others` has those besides the one returned.

    Raises:
        DataError: the tokenizer has no end token, or its chat template does not fit a conversation.
    """
    encoded = encode_all([example], tokenizer, max_length)[0]
    return encoded if encoded is not None and any(encoded.trained) else None


def encode_all(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    completion_room: int = 0,
    location: Callable[[int], str] | None = None,
) -> list[EncodedExample | None]:
    """Encode several examples in one call of the tokenizer, which is faster than one call per example.

    Args:
        examples: examples of `RowFormat.examples`.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens of an example.
        completion_room: minimum number of tokens left for the completion. With the length of the longest label, every
            label leaves the same part of a long prompt, so that the length of the prompt does not reveal the label.
        location: function that returns the location of an example by its index, for error messages.

    Returns:
        One result per example, as of `encode`. A conversation without a trained token can be an encoded example without
        tokens, which has findings.

    Raises:
        DataError: as for `encode`.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if any(example.messages for example in examples):
        encoder = ChatEncoder(vocabulary)
        return [
            encoder.encode(example, max_length, f"{location(index)}: " if location else "")
            for index, example in enumerate(examples)
        ]
    pairs = [move_space(example.prompt, example.completion) for example in examples]
    prompts = vocabulary.bodies([prompt for prompt, _ in pairs])
    joints = iter(
        vocabulary.bodies(
            [
                prompt + completion
                for example, (prompt, completion) in zip(examples, pairs, strict=True)
                if completion.strip() and example.label is None  # the tokens of a label do not depend on the prompt
            ]
        )
    )
    ids_of_label: dict[str, list[int]] = {}
    encoded = []
    for example, (prompt, completion), prompt_body in zip(examples, pairs, prompts, strict=True):
        if not completion.strip():
            answer = []  # a blank that moved over from the prompt is no completion
        elif example.label is not None:  # the same tokens in every row, so that labels can be compared
            if completion not in ids_of_label:
                ids_of_label[completion] = vocabulary.continuation(completion)
            answer = ids_of_label[completion]
        elif is_proper_prefix(prompt_body, joint := next(joints)):
            answer = joint[len(prompt_body) :]
        else:
            answer = vocabulary.continuation(completion)
        if prompt != example.prompt:
            example = replace(example, prompt=prompt)
        encoded.append(_fit(vocabulary, example, prompt_body, answer, max_length, completion_room))
    return encoded


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the token ids that generation starts from: the ids that `encode` puts before the first trained token.

    Special tokens that the tokenizer puts before a text are included, special tokens after a text are not. Spaces at
    the end of the prompt are left for the model to generate; see `move_space`.

    Args:
        prompt: text of the prompt.
        tokenizer: tokenizer of the base.
    """
    return encode_example_prompt(Example(prompt), tokenizer).input_ids


def encode_example_prompt(example: Example, tokenizer: "PreTrainedTokenizerBase") -> EncodedExample:
    """Encode the prompt of an example for generation, with the positions of its virtual tokens.

    Args:
        example: an example of `RowFormat.format_prompt`.
        tokenizer: tokenizer of the base.

    Returns:
        An encoded example without trained tokens. Its `input_ids` are those of `encode_prompt`.

    Raises:
        DataError: the template marks virtual tokens, and the tokenizer does not report character offsets.
    """
    vocabulary, prompt = Vocabulary.of(tokenizer), move_space(example.prompt, "")[0]
    ids = vocabulary.front + vocabulary.body(prompt)
    positions = vocabulary.token_positions(prompt, example.virtual_token_offsets)
    return EncodedExample(ids, [False] * len(ids), prompt_positions=_after(vocabulary.front, positions))


def label_ids(row_format: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[int]]:
    """Return the token ids of every label, end token included, as `encode` puts them after a prompt.

    Args:
        row_format: row format with labels.
        tokenizer: tokenizer of the base.

    Raises:
        DataError: the tokenizer gives two labels the same tokens, or a label no token.
    """
    vocabulary = Vocabulary.of(tokenizer)
    end = vocabulary.required_end()
    ids = {label: vocabulary.continuation(row_format.completion(label)) for label in row_format.labels}
    empty = next((label for label, tokens in ids.items() if not tokens), None)
    if empty is not None:
        raise DataError(f"the tokenizer makes no token of the label {empty!r}; rename the label")
    ids = {label: [*tokens, end] for label, tokens in ids.items()}
    check_distinct(ids)
    return ids


def check_distinct(ids_of_label: dict[str, list[int]]) -> None:
    """Raise DataError if two labels have the same token ids.

    Args:
        ids_of_label: token ids of each label.
    """
    label_of_ids: dict[tuple[int, ...], str] = {}
    for label, ids in ids_of_label.items():
        other = label_of_ids.setdefault(tuple(ids), label)
        if other != label:
            raise DataError(
                f"the tokenizer makes the same tokens of the labels {other!r} and {label!r}; rename one of them"
            )


def _fit(
    vocabulary: Vocabulary,
    example: Example,
    prompt_body: list[int],
    answer: list[int],
    max_length: int,
    completion_room: int,
) -> EncodedExample | None:
    """Join prompt and completion and truncate them to `max_length`; see `encode`."""
    if not answer:
        return None
    positions = vocabulary.token_positions(example.prompt, example.virtual_token_offsets)
    prompt, completion = vocabulary.front + prompt_body, [*answer, vocabulary.required_end()]
    full_length = len(prompt) + len(completion)
    prompt_room = max_length - max(len(completion), completion_room)
    if len(prompt) > prompt_room:
        body_room = max(0, prompt_room - len(vocabulary.front))
        prompt_body, positions = _shorten_prompt(vocabulary, example, prompt_body, positions, body_room)
        prompt = vocabulary.front + prompt_body
        completion = completion[: max(0, max_length - len(prompt))]
    ids = prompt + completion
    trained = [False] * len(prompt) + [True] * len(completion)
    trained[:1] = [False]
    if not any(trained):
        return None
    return EncodedExample(ids, trained, full_length - len(ids), prompt_positions=_after(vocabulary.front, positions))


def _shorten_prompt(
    vocabulary: Vocabulary, example: Example, body: list[int], positions: list[int], room: int
) -> tuple[list[int], list[int]]:
    """Return at most `room` tokens of a prompt, and the positions of its virtual tokens among them."""

    def fits(max_characters: int) -> bool:
        return len(vocabulary.body(example.truncate_fields(max_characters).prompt)) <= room

    longest = max((end - start for start, end in example.spans), default=0)
    max_characters = largest_fit(longest, fits) if room else None
    if max_characters is not None:
        shorter = example.truncate_fields(max_characters)
        return (
            vocabulary.body(shorter.prompt),
            vocabulary.token_positions(shorter.prompt, shorter.virtual_token_offsets),
        )
    num_removed = len(body) - room
    return body[num_removed:], [max(0, position - num_removed) for position in positions]


def _after(front: Sequence[int], positions: Sequence[int]) -> tuple[int, ...]:
    return tuple(len(front) + position for position in positions)
