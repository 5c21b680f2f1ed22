"""Inputs of the functions of this package: the values that a caller may give for a text or a prompt."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftly.data import EncodedExample, Example, check_characters
from peftly.errors import DataError
from peftly.settings import shortened

__all__ = ["Conversation", "Prompt", "TextInput", "prompts_of", "texts_of", "words_of"]

Conversation = Sequence[Mapping[str, Any]]
"""Messages with `role` and `content`, as chat templates read them."""

Prompt = str | Example | EncodedExample | Conversation
"""A text, an example of `RowFormat.format_prompt` (with the positions of virtual tokens), tokens, or a conversation."""

TextInput = str | Example | Sequence[str] | Mapping[str, str]
"""A text, an example of `RowFormat.format_prompt`, or a pair of texts: a tuple, or a mapping with the keys `text` and
`text_pair` as pipelines of transformers take."""

_KEYS = {"text", "text_pair"}


def prompts_of(prompts: Any) -> list[Prompt]:
    """Return one prompt or several as a list of prompts.

    Raises:
        DataError: a prompt is no text, no example and no conversation, or has half of a character.
    """
    if isinstance(prompts, Mapping):
        raise DataError(f"a conversation is a list of messages; got one message alone, {shortened(dict(prompts))}")
    listed = _listed(prompts, "prompts")
    if listed and all(isinstance(message, Mapping) for message in listed):
        listed = [listed]
    for number, prompt in enumerate(listed, start=1):
        location = "the prompt" if len(listed) == 1 else f"prompt {number}"
        if isinstance(prompt, EncodedExample):
            continue
        if not isinstance(prompt, str | Example) and not _is_conversation(prompt):
            raise DataError(
                f"{location} is {shortened(prompt)}; give a text, a list of messages with 'role' and 'content', or an "
                "example of RowFormat.format_prompt"
            )
        text = (prompt.prompt, prompt.messages) if isinstance(prompt, Example) else prompt
        check_characters(location, {"text": text})
    return listed


def texts_of(texts: Any) -> list[Example]:
    """Return one text for a classifier, or several, as a list of examples.

    Raises:
        DataError: a text is no `TextInput`, or has half of a character.
    """
    examples = []
    for number, text in enumerate(_listed(texts, "texts"), start=1):
        match text:
            case str():
                example = Example(text)
            case Example():
                example = text
            case [str() as first, str() as second]:
                example = Example(first, pair=second)
            case {"text": str() as first, "text_pair": str() as second} if set(text) == _KEYS:
                example = Example(first, pair=second)
            case {"text": str() as first} if set(text) == {"text"}:
                example = Example(first)
            case _:
                raise DataError(
                    f"text {number} is {shortened(text)}; give a text, a pair of texts as a tuple or as "
                    "{'text': ..., 'text_pair': ...}, or an example of RowFormat.format_prompt"
                )
        check_characters(f"text {number}", {"text": example.prompt, "pair": example.pair})
        examples.append(example)
    return examples


def words_of(texts: Any) -> list[list[str]]:
    """Return the words of each text.

    Raises:
        DataError: a text is no list of words and no example with words, or has half of a character.
    """
    found = []
    for number, text in enumerate(_listed(texts, "texts"), start=1):
        if isinstance(text, str):
            raise DataError(f"texts is a list of texts, each a list of words; got the string {shortened(text)}")
        words = list(text.words) if isinstance(text, Example) else text
        if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise DataError(f"text {number} is {shortened(text)}; give a list of words")
        check_characters(f"text {number}", {"words": list(words)})
        found.append(list(words))
    return found


def _listed(given: Any, noun: str) -> list[Any]:
    """Return one input or several as a list."""
    if isinstance(given, str | Example | EncodedExample | Mapping):
        return [given]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise DataError(f"{noun} is a text or a list; got {shortened(given)}")
    return list(given)


def _is_conversation(prompt: object) -> bool:
    return (
        isinstance(prompt, Sequence)
        and bool(prompt)
        and all(isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in prompt)
    )
