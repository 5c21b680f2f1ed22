"""From text to tokens: what generation will start from, then what is trained, then the end.

The untrained head of a training sequence is `encode_prompt(prompt)`, token by token. So the completion is never
tokenised together with the prompt when that would change the prompt's own tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftly.data.chat import encode_messages, prompt_ids
from peftly.data.formats import RowFormat
from peftly.data.messages import messages_of
from peftly.data.templates import spaced
from peftly.data.truncation import largest_fit
from peftly.data.types import EncodedExample, Example
from peftly.data.vocabulary import Vocabulary, goes_on
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode", "encode_all", "encode_prompt", "encode_prompt_of", "label_ids", "told_apart"]


def encode(example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> EncodedExample | None:
    """Return an example as at most `max_length` tokens, or None if none of them would be trained.

    What is too long loses the prompt first. The row's own texts in it are shortened from their ends, all to the same
    length if several are long, so that the template's words stay: the instruction before them and the cue ("Label:")
    after them. A prompt that is the row's text alone, or a template that is too long itself, is cut from the left,
    after the tokenizer's leading special tokens. A conversation loses its oldest exchanges, then the ends of what is
    not the assistant's. The completion is cut, at its end, only if it does not fit alone; then it does not teach to
    stop, either: no end token follows.
    """
    return encode_all([example], tokenizer, max_length)[0]


def encode_all(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    room: int = 0,
    places: Sequence[str] | None = None,
) -> list[EncodedExample | None]:
    """Encode many examples at once, which is faster than one by one.

    Args:
        examples: from `RowFormat.examples`.
        tokenizer: the base's own.
        max_length: tokens of an example, at most.
        room: tokens to keep for the completion, at least: with that of the longest label, how much of a prompt is cut
            does not tell which label follows.
        places: where each example comes from, for messages.
    """
    vocabulary = Vocabulary.of(tokenizer)
    if any(example.messages for example in examples):
        return [
            encode_messages(example.messages, vocabulary, max_length, f"{places[index]}: " if places else "")
            for index, example in enumerate(examples)
        ]
    pairs = [spaced(example.prompt, example.completion) for example in examples]
    heads = vocabulary.bodies([prompt for prompt, _ in pairs])
    joints = vocabulary.bodies([prompt + completion for prompt, completion in pairs])
    of_label: dict[str, list[int]] = {}
    encoded = []
    for example, (prompt, completion), head, joint in zip(examples, pairs, heads, joints, strict=True):
        if not completion.strip():
            answer = []  # a blank, perhaps moved over from the prompt, is nothing to learn
        elif example.label is not None:  # the same tokens in every row, so that labels can be compared
            if completion not in of_label:
                of_label[completion] = vocabulary.continuation(completion)
            answer = of_label[completion]
        elif goes_on(head, joint):
            answer = joint[len(head) :]
        else:
            answer = vocabulary.continuation(completion)
        encoded.append(_fitted(vocabulary, replace(example, prompt=prompt), head, answer, max_length, room))
    return encoded


def encode_prompt(prompt: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens that generation starts from: exactly those that `encode` puts before the first trained one.

    Special tokens that the tokenizer puts in front of a text are there, those that it puts at the end are not, and a
    space at the prompt's end is left for the model to say (see `spaced`).
    """
    return encode_prompt_of(Example(prompt), tokenizer).input_ids


def encode_prompt_of(example: Example, tokenizer: "PreTrainedTokenizerBase") -> EncodedExample:
    """Return what `encode_prompt` does of an example's prompt, with the places that are marked in it."""
    vocabulary, prompt = Vocabulary.of(tokenizer), spaced(example.prompt, "")[0]
    ids = vocabulary.front + vocabulary.body(prompt)
    return EncodedExample(
        ids, [False] * len(ids), prompt_positions=_behind(vocabulary.front, vocabulary.places(prompt, example.marks))
    )


def _behind(front: Sequence[int], places: Sequence[int]) -> tuple[int, ...]:
    return tuple(len(front) + place for place in places)


def prompt_ids_of_row(
    row_format: RowFormat, row: Mapping[str, Any] | str, tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    """Return the token ids from which the model generates an answer to a row, for every row format.

    Args:
        row_format: format of the rows.
        row: as `RowFormat.prompt` takes it. For a conversation: the fields of a row, of which a closing assistant turn is
            left out, or the text of one user turn.
        tokenizer: tokenizer of the base.

    Raises:
        DataError: fields are missing, or the tokenizer has no chat template.
    """
    if row_format.kind != "chat":
        return encode_prompt(row_format.prompt(row), tokenizer)
    if isinstance(row, str):
        row = {row_format.target: [{"role": "user", "content": row}]}
    messages = messages_of(row, row_format.target, "the prompt")
    return prompt_ids(messages[:-1] if messages[-1]["role"] == "assistant" else messages, tokenizer)


def label_ids(row_format: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[int]]:
    """Return the tokens of every label's completion, end token included, as `encode` puts them after any prompt.

    Raises:
        DataError: the tokenizer makes the same tokens of two labels, or none of one.
    """
    vocabulary = Vocabulary.of(tokenizer)
    end = vocabulary.required_end()
    made = {label: vocabulary.continuation(row_format.completion(label)) for label in row_format.labels}
    empty = next((label for label, ids in made.items() if not ids), None)
    if empty is not None:
        raise DataError(f"the tokenizer makes no token of the label {empty!r}; name it otherwise")
    return told_apart({label: [*ids, end] for label, ids in made.items()})


def told_apart(labels: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the tokens of every label as they are.

    Raises:
        DataError: those of two labels are the same.
    """
    found: dict[tuple[int, ...], str] = {}
    for label, ids in labels.items():
        twin = found.setdefault(tuple(ids), label)
        if twin != label:
            raise DataError(
                f"the tokenizer makes the same tokens of the labels {twin!r} and {label!r}; name one otherwise"
            )
    return labels


def _fitted(
    vocabulary: Vocabulary, example: Example, body: list[int], answer: list[int], max_length: int, room: int
) -> EncodedExample | None:
    if not answer:
        return None
    places = vocabulary.places(example.prompt, example.marks)
    head, tail = vocabulary.front + body, [*answer, vocabulary.required_end()]
    whole = len(head) + len(tail)
    space = max_length - max(len(tail), room)
    if len(head) > space:
        body, places = _shortened(vocabulary, example, body, places, max(0, space - len(vocabulary.front)))
        head = vocabulary.front + body
        if len(head) + len(tail) > max_length:
            tail = tail[: max(0, max_length - len(head))]
    ids = head + tail
    trained = [False] * len(head) + [True] * len(tail)
    trained[:1] = [False]
    if not any(trained):
        return None
    return EncodedExample(ids, trained, whole - len(ids), prompt_positions=_behind(vocabulary.front, places))


def _shortened(
    vocabulary: Vocabulary, example: Example, body: list[int], places: list[int], space: int
) -> tuple[list[int], list[int]]:
    """Return the tokens of a prompt that fit, and the places among them."""

    def fits(cap: int) -> bool:
        return len(vocabulary.body(example.capped(cap).prompt)) <= space

    longest = max((end - start for start, end in example.spans), default=0)
    kept = largest_fit(longest, fits) if space else None
    if kept is not None:
        shorter = example.capped(kept)
        return vocabulary.body(shorter.prompt), vocabulary.places(shorter.prompt, shorter.marks)
    lost = len(body) - space
    return body[lost:], [max(0, place - lost) for place in places]
