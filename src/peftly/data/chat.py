"""Conversations as token ids of the tokenizer's chat template; only the turns of the assistant are trained.

Each turn is trained as generation writes it: after the prompt that generation starts from, token by token, up to the
end of the turn. Turns share a training sequence if the template renders the earlier ones as it did when they were last.
A template that rewrites earlier turns, or writes no end of a turn, gives a conversation several sequences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftly.data.chat_messages import ChatMessages
from peftly.data.chat_sequence import TurnSequence
from peftly.data.chat_shown import hidden_context
from peftly.data.chat_template import chat_text
from peftly.data.chat_tokens import ChatTokens
from peftly.data.chat_truncation import newest_exchanges, shorten_contents
from peftly.data.chat_turns import ChatTurns
from peftly.data.messages import read_messages
from peftly.data.types import EncodedExample, Example
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatEncoder", "prompt_ids"]

Messages = Sequence[Mapping[str, Any]]
Findings = list[tuple[str, str]]


def prompt_ids(messages: Messages, tokenizer: "PreTrainedTokenizerBase", tools: Messages = ()) -> list[int]:
    """Return the token ids from which the assistant's next turn is generated.

    Args:
        messages: conversation so far, as mappings with `role` and `content`, in any spelling that training reads.
        tokenizer: tokenizer of the base.
        tools: tools that the assistant can call, in OpenAI's spelling.

    Raises:
        DataError: the tokenizer has no chat template, a message cannot be read, or the chat template refuses the
            messages or exceeds its limits.
    """
    read, _, _ = read_messages(messages, "")
    rendered = ChatMessages(tokenizer).render(read, [False] * len(read), tools, add_generation_prompt=True)
    return ChatTokens(rendered.text, tokenizer).ids


class ChatEncoder:
    """Encodes conversations for training."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Prepare the encoding.

        Args:
            vocabulary: vocabulary of the base's tokenizer.
        """
        self._vocabulary, self._tokenizer = vocabulary, vocabulary.tokenizer
        self._messages = ChatMessages(vocabulary.tokenizer)

    def encode(self, example: Example, max_length: int, location: str = "") -> EncodedExample | None:
        """Encode a conversation.

        A turn that opens the conversation is not trained, since there is no prompt to generate the turn from.

        Args:
            example: example with `messages`.
            max_length: maximum number of tokens; see `encode` for the order of truncation.
            location: prefix of error messages, such as "rows.jsonl: line 3: ".

        Returns:
            The sequence with the assistant's last turn; its attribute `others` has the sequences of turns that are not
            in it. None if no token of the assistant is left and nothing is to be said about it.

        Raises:
            DataError: there is no chat template, the chat template refuses the messages or exceeds its limits, or
                generation would start from tokens that training does not show.
        """
        try:
            sequences, findings = self._encode(example, max_length)
        except DataError as error:
            raise DataError(f"{location}{error}") from error.__cause__
        sequences = [sequence for sequence in sequences if any(sequence.trained)]
        if not sequences:
            return EncodedExample([], [], findings=tuple(findings)) if findings else None
        if len(sequences) > 1:
            findings.append(("several_sequences", f"{len(sequences)} sequences"))
        return replace(sequences[0], others=tuple(sequences[1:]), findings=tuple(findings))

    def _encode(self, example: Example, max_length: int) -> tuple[list[EncodedExample], Findings]:
        untrained = set(example.untrained)
        is_trained = [m["role"] == "assistant" and i not in untrained for i, m in enumerate(example.messages)]
        if not any(is_trained):
            return [], []
        rendered = self._messages.render(example.messages, is_trained, example.tools)
        findings = [*rendered.findings, *hidden_context(rendered.messages, rendered.is_trained, rendered.text)]
        turns = ChatTurns(rendered.messages, example.tools, self._tokenizer, self._messages.ends)
        turns.set_last(rendered.text, rendered.marks)
        waiting = [index for index, trained in enumerate(rendered.is_trained) if trained and index]
        if rendered.is_trained[0]:
            findings.append(("opening_turns", "message 1"))
        sequences = []
        while waiting:
            if turns.turn(waiting[-1]).is_hidden:
                waiting.pop()
                continue
            sequence, done = self._sequence(turns, waiting, max_length)
            sequences.append(replace(sequence, num_messages=rendered.num_messages[waiting[-1]]))
            waiting = [index for index in waiting if index not in done]
        return sequences, [*findings, *turns.findings]

    def _sequence(self, turns: ChatTurns, waiting: list[int], max_length: int) -> tuple[EncodedExample, set[int]]:
        """Return a sequence with the last of the waiting turns, and the turns that need no sequence of their own."""
        last = waiting[-1]
        sequence = TurnSequence(turns.turn(last), self._vocabulary)
        full_length = len(sequence.ids)
        kept, removed = list(range(last + 1)), list[int]()
        if full_length > max_length:
            kept, turns_kept = self._shortened(turns, last, max_length)
            removed = [index for index in waiting if index not in kept]
            sequence = TurnSequence(turns_kept.turn(len(kept) - 1), self._vocabulary)
        else:
            turns_kept = turns
        numbers = {index: number for number, index in enumerate(kept)}
        done = {last}
        for index in waiting[:-1]:
            if index in numbers:
                turn = turns_kept.turn(numbers[index])
                if turn.is_hidden or sequence.add(turn):
                    done.add(index)
        if removed and turns.turn(last).text.startswith(turns.turn(removed[-1]).text):
            done.update(removed)  # the conversation shows these turns as they are, and is too long
        ids, trained = sequence.ids[:max_length], sequence.trained[:max_length]
        return EncodedExample(ids, trained, full_length - len(ids)), done

    def _shortened(self, turns: ChatTurns, last: int, max_length: int) -> tuple[list[int], ChatTurns]:
        """Return the indices of the messages that stay, and these messages, shortened if needed."""
        num_added = not turns.turn(last).has_end

        def fits(messages: Messages) -> bool:
            text, _ = chat_text(messages, self._tokenizer, turns.tools)
            return len(ChatTokens(text, self._tokenizer).ids) + num_added <= max_length

        messages = turns.messages[: last + 1]
        kept = newest_exchanges(messages, fits)
        remaining: Messages = [messages[index] for index in kept]
        if not fits(remaining):
            remaining = shorten_contents(remaining, fits)
        return kept, turns.select(kept, remaining)
