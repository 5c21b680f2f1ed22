"""Examples as token ids, for a causal language model: prompt, completion and end token.

The untrained tokens at the start of a training sequence are exactly `encode_prompt(prompt)`, the tokens that generation
starts from. Therefore prompt and completion are tokenized separately where a joint tokenization would change the tokens
of the prompt. A text that already has the start or end token of the tokenizer gets no second one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from peftly.data.chat import ChatEncoder
from peftly.data.formats import RowFormat
from peftly.data.templates import move_space
from peftly.data.text_findings import Findings, TextChecks, without_end, without_start
from peftly.data.truncation import fitting_characters
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
        One result per example, as of `encode`. A conversation without a trained token, or a completion of end tokens
        alone, can be an encoded example without tokens, which has findings.

    Raises:
        DataError: as for `encode`.
    """
    if not examples:
        return []
    vocabulary = Vocabulary.of(tokenizer)
    checks = TextChecks(vocabulary)
    encoded: list[EncodedExample | None] = []
    if any(example.messages for example in examples):
        encoder = ChatEncoder(vocabulary)
        for index, example in enumerate(examples):
            conversation = encoder.encode(example, max_length, f"{location(index)}: " if location else "")
            encoded.append(_with_findings(conversation, example, vocabulary, checks))
        return encoded
    bare, findings = _bare_examples(examples, vocabulary)
    encoding = vocabulary.encoding([example.prompt for example in bare])
    prompts = encoding["input_ids"]
    answers = _answers(vocabulary, bare, prompts)
    for index, (example, prompt, answer) in enumerate(zip(bare, prompts, answers, strict=True)):
        result = _fit(vocabulary, example, prompt, answer, max_length, completion_room, (encoding, index))
        if not answer and examples[index].completion.strip():  # nothing but end tokens
            result = EncodedExample([], [], findings=(("empty_answer", ""),))
        found = findings.get(index, ()) + checks.causal_findings(example, prompt, answer)
        encoded.append(replace(result, findings=result.findings + found) if found and result is not None else result)
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
    vocabulary = Vocabulary.of(tokenizer)
    (example,), _ = _bare_examples([replace(example, completion="")], vocabulary)
    ids = vocabulary.front + vocabulary.body(example.prompt)
    positions = vocabulary.token_positions(example.prompt, example.virtual_token_offsets)
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
    completions = {
        label: without_end(row_format.completion(label), vocabulary.end_text)[0] for label in row_format.labels
    }
    ids = {label: vocabulary.continuation(completion) for label, completion in completions.items()}
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


def _bare_examples(examples: Sequence[Example], vocabulary: Vocabulary) -> tuple[list[Example], dict[int, Findings]]:
    """Return examples without the special tokens that they get again, and without spaces at the end of their prompts.

    Returns:
        The examples, and the findings of the examples that had such special tokens, by the index of the example.
    """
    front_text, end_text = vocabulary.front_text, vocabulary.end_text
    bare, findings = [], {}
    for index, original in enumerate(examples):
        example, found = without_start(original, front_text) if front_text else (original, ())
        prompt, completion = move_space(example.prompt, example.completion)
        found_end: Findings = ()
        if end_text in completion:
            completion, found_end = without_end(completion, end_text)
        if prompt != example.prompt or completion != example.completion:
            example = replace(example, prompt=prompt, completion=completion)
        if found or found_end:
            findings[index] = found + found_end
        bare.append(example)
    return bare, findings


_LONG_PROMPT = 4096
_CONTEXT = 1024
"""A completion after a prompt of more characters is tokenized with only this number of characters in front."""


def _answers(vocabulary: Vocabulary, examples: Sequence[Example], prompts: Sequence[list[int]]) -> list[list[int]]:
    """Return the token ids of each completion after its prompt, without the end token; empty without a completion.

    Args:
        vocabulary: vocabulary of the base's tokenizer.
        examples: the examples.
        prompts: token ids of the prompts.
    """
    # The tokens of a label do not depend on the prompt.
    joint = [index for index, example in enumerate(examples) if example.label is None and example.completion.strip()]
    contexts = {index: _end_of(examples[index].prompt) for index in joint}
    long = [index for index in joint if len(contexts[index]) < len(examples[index].prompt)]
    heads = dict(zip(long, vocabulary.bodies([contexts[index] for index in long]), strict=True))
    joint_ids = vocabulary.bodies([contexts[index] + examples[index].completion for index in joint])
    ids_after_prompt = dict(zip(joint, joint_ids, strict=True))
    ids_of_label: dict[str, list[int]] = {}
    answers: list[list[int]] = []
    for index, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        completion = example.completion
        if index in ids_after_prompt:
            head, ids = heads.get(index, prompt), ids_after_prompt[index]
            answers.append(ids[len(head) :] if is_proper_prefix(head, ids) else vocabulary.continuation(completion))
        elif not completion.strip():  # a blank that moved over from the prompt is no completion
            answers.append([])
        else:  # the same tokens in every row, so that labels can be compared
            if completion not in ids_of_label:
                ids_of_label[completion] = vocabulary.continuation(completion)
            answers.append(ids_of_label[completion])
    return answers


def _end_of(prompt: str) -> str:
    """Return the end of a long prompt, from a blank on if there is one; a short prompt as it is."""
    if len(prompt) <= _LONG_PROMPT:
        return prompt
    blank = re.search(r"\s", prompt[-2 * _CONTEXT : -_CONTEXT])
    return prompt[(-2 * _CONTEXT + blank.start()) if blank else -_CONTEXT :]


def _with_findings(
    encoded: EncodedExample | None, example: Example, vocabulary: Vocabulary, checks: TextChecks
) -> EncodedExample | None:
    """Return an encoded conversation with the findings of unknown characters in its messages."""
    if encoded is None or vocabulary.unknown not in encoded.input_ids:
        return encoded
    texts = {True: "", False: ""}
    tokens: dict[bool, list[int]] = {True: [], False: []}
    for message in example.messages:
        if isinstance(content := message.get("content"), str):
            texts[message["role"] == "assistant"] += f"{content}\n"
    for token, is_trained in zip(encoded.input_ids, encoded.trained, strict=True):
        tokens[is_trained].append(token)
    findings = checks.input_findings(texts[False], tokens[False]) + checks.unknown_target(texts[True], tokens[True])
    return replace(encoded, findings=encoded.findings + findings)


def _fit(
    vocabulary: Vocabulary,
    example: Example,
    prompt_body: list[int],
    answer: list[int],
    max_length: int,
    completion_room: int,
    tokens: tuple[Any, int],
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
        prompt_body, positions = _shorten_prompt(vocabulary, example, prompt_body, positions, body_room, tokens)
        prompt = vocabulary.front + prompt_body
        completion = completion[: max(0, max_length - len(prompt))]
    ids = prompt + completion
    trained = [False] * len(prompt) + [True] * len(completion)
    trained[:1] = [False]
    if not any(trained):
        return None
    return EncodedExample(ids, trained, full_length - len(ids), prompt_positions=_after(vocabulary.front, positions))


def _shorten_prompt(
    vocabulary: Vocabulary,
    example: Example,
    body: list[int],
    positions: list[int],
    room: int,
    tokens: tuple[Any, int],
) -> tuple[list[int], list[int]]:
    """Return at most `room` tokens of a prompt, and the positions of its virtual tokens among them.

    `tokens` are the encoding of all prompts of the batch, and the index of this prompt.
    """
    char_to_token = partial(tokens[0].char_to_token, tokens[1]) if vocabulary.tokenizer.is_fast else None

    def count(max_characters: int) -> int:
        return len(vocabulary.body(example.truncate_fields(max_characters).prompt))

    max_characters = fitting_characters(example.spans, len(body), room, char_to_token, count) if room else None
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
