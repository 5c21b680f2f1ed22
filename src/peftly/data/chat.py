"""Conversations as token ids of the tokenizer's chat template; only the turns of the assistant are trained.

A chat template can mark the turns of the assistant with `{% generation %}`. Otherwise a turn is found by rendering
prefixes of the conversation: the turn is the difference between the conversation that ends with the turn and the prompt
that generation starts from. In both cases this prompt must be a prefix of the training sequence, token by token.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftly.data.chat_template import chat_text, has_generation_marks, render_chat
from peftly.data.chat_tokens import ChatTokens
from peftly.data.truncation import largest_fit
from peftly.data.types import EncodedExample
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_messages", "prompt_ids"]

Messages = Sequence[Mapping[str, Any]]


def prompt_ids(messages: Messages, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the token ids from which the assistant's next turn is generated.

    Args:
        messages: conversation so far, as mappings with `role` and `content`.
        tokenizer: tokenizer of the base.

    Raises:
        DataError: the tokenizer has no chat template, or the chat template refuses the messages or exceeds its limits.
    """
    return render_chat(messages, tokenizer, add_generation_prompt=True)[0]


def encode_messages(
    messages: Messages, vocabulary: Vocabulary, max_length: int, location: str = ""
) -> EncodedExample | None:
    """Encode a conversation.

    Messages after the assistant's last turn are left out: none of their tokens is trained, and no trained token depends
    on them.

    Args:
        messages: conversation from `messages_field`.
        vocabulary: vocabulary of the base's tokenizer.
        max_length: maximum number of tokens; see `encode` for the order of truncation.
        location: prefix of error messages, such as "rows.jsonl: line 3: ".

    Returns:
        The encoded conversation, or None if no token of the assistant is left.

    Raises:
        DataError: there is no chat template, the chat template refuses the messages or exceeds its limits, or
            generation would start from tokens that training does not show.
    """
    last_turn = max((index for index, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    if last_turn < 0:
        return None
    remaining = list(messages[: last_turn + 1])
    try:
        full_length = _num_tokens(remaining, vocabulary)
        if full_length > max_length:
            remaining = _newest_exchanges(remaining, vocabulary, max_length)
        ids, trained = _encode_turns(remaining, vocabulary)
        if len(ids) > max_length:
            ids, trained = _encode_turns(_shorten_contents(remaining, vocabulary, max_length), vocabulary)
    except DataError as error:
        raise DataError(f"{location}{error}") from error.__cause__
    ids, trained = ids[:max_length], trained[:max_length]
    return EncodedExample(ids, trained, full_length - len(ids)) if any(trained) else None


def _newest_exchanges(
    messages: list[Mapping[str, Any]], vocabulary: Vocabulary, max_length: int
) -> list[Mapping[str, Any]]:
    """Return the messages without as many of the oldest exchanges as needed; system messages and the last one stay."""
    first = next((index for index, message in enumerate(messages) if message["role"] != "system"), 0)
    later_questions = [index for index in range(first + 1, len(messages)) if messages[index]["role"] == "user"]
    starts = [*reversed(later_questions), first]

    def from_start(number: int) -> list[Mapping[str, Any]]:
        return [*messages[:first], *messages[starts[number] :]]

    def fits(number: int) -> bool:
        return _num_tokens(from_start(number), vocabulary) <= max_length

    return from_start(largest_fit(len(starts) - 1, fits) or 0)


def _num_tokens(messages: Messages, vocabulary: Vocabulary) -> int:
    return len(render_chat(messages, vocabulary.tokenizer)[0])


def _shorten_contents(messages: list[Mapping[str, Any]], vocabulary: Vocabulary, max_length: int) -> Messages:
    """Return the messages with every content that is not the assistant's cut to the same number of characters."""

    def cut_to(max_characters: int) -> Messages:
        return [m if m["role"] == "assistant" else {**m, "content": m["content"][:max_characters]} for m in messages]

    def fits(max_characters: int) -> bool:
        return _num_tokens(cut_to(max_characters), vocabulary) <= max_length

    longest = max((len(m["content"]) for m in messages if m["role"] != "assistant"), default=0)
    return cut_to(largest_fit(longest, fits) or 0)


def _encode_turns(messages: Messages, vocabulary: Vocabulary) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation, and whether each token is in a trained turn of the assistant.

    A turn that opens the conversation is not trained, since there is no prompt to generate the turn from.
    """
    tokenizer = vocabulary.tokenizer
    has_marks = has_generation_marks(tokenizer)
    tokens = ChatTokens(*chat_text(messages, tokenizer), tokenizer)
    ids = tokens.ids
    trained = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or index == 0:
            continue
        prompt, _ = chat_text(messages[:index], tokenizer, add_generation_prompt=True)
        start = tokens.prefix_length(prompt)
        turn = f"the assistant's turn in message {index + 1}"
        if start is None:
            raise DataError(
                f"the prompt that the chat template makes for {turn} is not how the whole conversation begins, so "
                "training would show other tokens than generation; use another template, or one turn a row"
            )
        if has_marks:
            end = _end_of_marked_turn(tokens.marked, start, turn)
            if end < len(ids) and ids[end] == vocabulary.end:
                end += 1  # a turn without the end token would not teach the model to stop
        else:
            end = _end_of_rendered_turn(messages[: index + 1], tokens, tokenizer, turn)
        end = _without_blank_tail(ids, start, end, vocabulary)
        trained[start:end] = [True] * (end - start)
    return ids, trained


def _end_of_marked_turn(marked: Sequence[bool], start: int, turn: str) -> int:
    """Return the end of a turn by the chat template's generation marks."""
    if start >= len(marked) or not marked[start] or (start and marked[start - 1]):
        raise DataError(
            f"the chat template's generation marks do not begin where its generation prompt ends, for {turn}; "
            "mend the template's {% generation %} marks, or take them out"
        )
    return next((index for index in range(start, len(marked)) if not marked[index]), len(marked))


def _end_of_rendered_turn(
    messages: Messages, tokens: ChatTokens, tokenizer: "PreTrainedTokenizerBase", turn: str
) -> int:
    """Return the end of a turn as the length of the conversation that ends with the turn."""
    end = tokens.prefix_length(chat_text(messages, tokenizer)[0])
    if end is None:
        raise DataError(
            f"the conversation up to {turn} is not how the chat template renders the whole, so the turn cannot be "
            "found in it; use a template with {% generation %} marks, or one turn a row"
        )
    return end


def _without_blank_tail(ids: list[int], start: int, end: int, vocabulary: Vocabulary) -> int:
    """Return the end of a turn without the blanks that follow its end token."""
    stop = next((index + 1 for index in range(end - 1, start - 1, -1) if ids[index] in vocabulary.special), end)
    return end if vocabulary.tokenizer.decode(ids[stop:end]).strip() else stop
