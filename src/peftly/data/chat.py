"""Conversations, through the tokenizer's own chat template: the loss is on what the assistant says, and only there.

A template may mark the assistant's part itself (`{% generation %}`). Otherwise prefixes are rendered: an assistant's
turn is what the conversation up to and with it has more than the prompt that generation would start from. Either way
that prompt has to be a prefix of the training sequence, token by token, or training is refused.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftly.data.truncation import largest_fit
from peftly.data.types import EncodedExample
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_messages", "prompt_ids"]

Messages = Sequence[Mapping[str, Any]]


def prompt_ids(messages: Messages, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the tokens from which the assistant's next turn is generated.

    Raises:
        DataError: the tokenizer has no chat template, or its template refuses the messages.
    """
    return list(_render(messages, tokenizer, add_generation_prompt=True)["input_ids"])


def encode_messages(
    messages: Messages, vocabulary: Vocabulary, max_length: int, place: str = ""
) -> EncodedExample | None:
    """Return a conversation as at most `max_length` tokens, or None if the assistant says nothing in it.

    Turns after the assistant's last are left out: nothing in them is trained, and nothing trained depends on them.

    Args:
        messages: from `messages_of`.
        vocabulary: of the base's tokenizer.
        max_length: tokens, at most. See `encode` for what is cut.
        place: put before every message of an error.

    Raises:
        DataError: there is no chat template, it refuses the messages, or generation would not start from tokens that
            training shows.
    """
    last = max((at for at, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last < 0:
        return None
    kept = list(messages[: last + 1])
    try:
        ids, trained = _marked(kept, vocabulary)
        whole = len(ids)
        while len(ids) > max_length and (shorter := _without_oldest(kept)):
            kept = shorter
            ids, trained = _marked(kept, vocabulary)
        if len(ids) > max_length:
            ids, trained = _marked(_shortened(kept, vocabulary, max_length), vocabulary)
    except DataError as error:
        raise DataError(f"{place}{error}") from error.__cause__
    ids, trained = ids[:max_length], trained[:max_length]
    return EncodedExample(ids, trained, whole - len(ids)) if any(trained) else None


def _without_oldest(messages: list[Mapping[str, Any]]) -> list[Mapping[str, Any]] | None:
    """Return the messages without the oldest exchange, or None if only one is left; what comes first for all stays."""
    first = next((at for at, message in enumerate(messages) if message["role"] != "system"), 0)
    following = (at for at in range(first + 1, len(messages)) if messages[at]["role"] == "user")
    second = next(following, None)
    return None if second is None else [*messages[:first], *messages[second:]]


def _shortened(messages: list[Mapping[str, Any]], vocabulary: Vocabulary, max_length: int) -> Messages:
    def capped(cap: int) -> Messages:
        return [m if m["role"] == "assistant" else {**m, "content": m["content"][:cap]} for m in messages]

    def fits(cap: int) -> bool:
        return len(_render(capped(cap), vocabulary.tokenizer)["input_ids"]) <= max_length

    longest = max((len(m["content"]) for m in messages if m["role"] != "assistant"), default=0)
    return capped(largest_fit(longest, fits) or 0)


def _marked(messages: Messages, vocabulary: Vocabulary) -> tuple[list[int], list[bool]]:
    """Return a conversation's tokens and which of them are the assistant's.

    A turn that opens the conversation is not trained: there is no prompt that generation could start it from.
    """
    tokenizer = vocabulary.tokenizer
    marks = _marks_generation(tokenizer)
    rendered = _render(messages, tokenizer, return_assistant_tokens_mask=marks)
    ids = list(rendered["input_ids"])
    trained = [False] * len(ids)
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or at == 0:
            continue
        prompt = prompt_ids(messages[:at], tokenizer)
        turn = f"the assistant's turn in message {at + 1}"
        if ids[: len(prompt)] != prompt:
            raise DataError(
                f"the prompt that the chat template makes for {turn} is not how the whole conversation begins, so "
                "training would show other tokens than generation; use another template, or one turn a row"
            )
        if marks:
            end = _end_of_run(rendered["assistant_masks"], len(prompt), turn)
            if end < len(ids) and ids[end] == vocabulary.end:
                end += 1  # marks that stop short of the end token would never teach to stop
        else:
            end = _end_by_prefix(messages[: at + 1], ids, vocabulary, turn)
        stop = _without_blank_tail(ids, len(prompt), end, vocabulary)
        trained[len(prompt) : stop] = [True] * (stop - len(prompt))
    return ids, trained


def _end_of_run(marked: Sequence[int], start: int, turn: str) -> int:
    if start >= len(marked) or not marked[start] or (start and marked[start - 1]):
        raise DataError(
            f"the chat template's generation marks do not begin where its generation prompt ends, for {turn}; "
            "mend the template's {% generation %} marks, or take them out"
        )
    return next((at for at in range(start, len(marked)) if not marked[at]), len(marked))


def _end_by_prefix(messages: Messages, ids: list[int], vocabulary: Vocabulary, turn: str) -> int:
    part = _render(messages, vocabulary.tokenizer)["input_ids"]
    if ids[: len(part)] != part:
        raise DataError(
            f"the conversation up to {turn} is not how the chat template renders the whole, so the turn cannot be "
            "found in it; use a template with {% generation %} marks, or one turn a row"
        )
    return len(part)


def _without_blank_tail(ids: list[int], start: int, end: int, vocabulary: Vocabulary) -> int:
    """Return where a turn ends that is followed by nothing but blanks after its end token."""
    stop = next((at + 1 for at in range(end - 1, start - 1, -1) if ids[at] in vocabulary.special), end)
    return end if vocabulary.tokenizer.decode(ids[stop:end]).strip() else stop


def _marks_generation(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return re.search(r"\{%-?\s*generation\b", _template(tokenizer)) is not None


def _template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template; use a base that is tuned for chat, "
            "or rows with 'prompt' and 'completion'"
        )
    return str(tokenizer.get_chat_template())


def _render(messages: Messages, tokenizer: "PreTrainedTokenizerBase", **options: bool) -> Any:
    from jinja2 import TemplateError

    _template(tokenizer)
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], return_dict=True, **options)
    except TemplateError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"the chat template refuses the messages ({reason})") from error
