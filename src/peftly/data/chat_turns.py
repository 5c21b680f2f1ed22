"""Turns of the assistant in the text of a conversation: where the words begin that the model generates, and end."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data.chat_shown import hidden_parts
from peftly.data.chat_template import chat_text, has_generation_marks
from peftly.data.tools import tool_names
from peftly.data.turn_ends import TurnEnds
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTurns", "Turn"]

Messages = Sequence[Mapping[str, Any]]


class Turn(NamedTuple):
    """A turn of the assistant, rendered as the last turn of its conversation.

    Attributes:
        prompt: text that generation starts from.
        text: text of the conversation up to the end of the turn. It begins with `prompt`.
        rest: text that the template writes after the end.
        has_end: whether the template ends the turn; otherwise the end token of the base follows.
        is_hidden: whether the turn cannot be trained, since nothing of it or not its calls of tools are shown, or
            nothing in front of it.
    """

    prompt: str
    text: str
    rest: str
    has_end: bool
    is_hidden: bool


class ChatTurns:
    """The turns of one conversation, each rendered once.

    Attributes:
        messages: the conversation as the chat template reads it.
        tools: tools in OpenAI's spelling.
        findings: findings of the turns that were rendered.
    """

    def __init__(
        self,
        messages: Messages,
        tools: Messages,
        tokenizer: "PreTrainedTokenizerBase",
        ends: TurnEnds,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Prepare the turns.

        Args:
            messages, tools: see the attributes.
            tokenizer: tokenizer of the base.
            ends: ends of turns in the chat template.
            numbers: number of each message, for messages about it; None: 1, 2 and so on.
        """
        self.messages, self.tools, self._tokenizer, self._ends = messages, tools, tokenizer, ends
        self._numbers = range(1, len(messages) + 1) if numbers is None else numbers
        self._has_marks = has_generation_marks(tokenizer, tools)
        self._turns: dict[int, Turn] = {}
        self._whole: tuple[str, list[tuple[int, int]]] | None = None
        self.findings: list[tuple[str, str]] = []

    def set_last(self, text: str, marks: list[tuple[int, int]]) -> None:
        """Give the text of the whole conversation and its marks, as of `chat_text`, if they are known."""
        self._whole = text, marks

    def select(self, indices: Sequence[int], messages: Messages) -> "ChatTurns":
        """Return the turns of a part of the conversation, whose findings are this conversation's.

        Args:
            indices: indices of the messages of the part.
            messages: these messages, or shortened ones.
        """
        numbers = [self._numbers[index] for index in indices]
        part = ChatTurns(messages, self.tools, self._tokenizer, self._ends, numbers)
        part.findings = self.findings
        return part

    def turn(self, index: int) -> Turn:
        """Return the turn in a message.

        Args:
            index: index of the message.

        Raises:
            DataError: the template refuses a part of the conversation, generation would start from text that training
                does not show, or the template marks another text than the turn.
        """
        if index not in self._turns:
            turn, finding = self._turn(index)
            self._turns[index] = turn
            self.findings += [finding] if finding else []
            if not (turn.has_end or turn.is_hidden):
                self.findings.append(("unended_turns", f"message {self._numbers[index]}"))
        return self._turns[index]

    def _turn(self, index: int) -> tuple[Turn, tuple[str, str] | None]:
        prompt, _ = chat_text(self.messages[:index], self._tokenizer, self.tools, add_generation_prompt=True)
        whole = self._whole if index == len(self.messages) - 1 else None
        full, marks = whole or chat_text(self.messages[: index + 1], self._tokenizer, self.tools)
        name = f"the assistant's turn in message {self._numbers[index]}"
        if not full.startswith(prompt):
            raise DataError(_no_prefix(prompt, full, name))
        end = self._ends.offset(full)
        if self._has_marks:
            marked_end = _end_of_marks(marks, len(prompt), name)
            if end is None or full[marked_end:end].strip() not in ("", self._ends.in_text(full)):
                end = None
                full = full[:marked_end]
        if end is not None and end <= len(prompt):
            end = None
        text = full[:end] if end is not None else self._ends.without_blanks(full)
        words = self._ends.without_end(text)[len(prompt) :]
        if not prompt:
            return Turn("", text, "", True, True), ("opening_turns", f"message {self._numbers[index]}")
        finding = _hidden(self.messages[index], words, f"message {self._numbers[index]}")
        is_hidden = finding is not None and finding[0] != "hidden_parts"
        return Turn(prompt, text, full[len(text) :], end is not None, is_hidden), finding


def _hidden(message: Mapping[str, Any], words: str, location: str) -> tuple[str, str] | None:
    """Return a finding about a turn that its words do not show as a whole."""
    unseen = next((name for name in tool_names(message.get("tool_calls", ())) if name not in words), None)
    if unseen is not None:
        return "hidden_calls", f"{location}: {unseen}"
    if not words.strip():
        return "hidden_turns", location
    parts = hidden_parts(message, words)
    return ("hidden_parts", f"{location}: {' and '.join(parts)}") if parts else None


def _no_prefix(prompt: str, full: str, turn: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full)))
    return (
        f"the prompt that the chat template makes for {turn} is not how the whole conversation begins, so training "
        f"would show other tokens than generation: the prompt goes on with {prompt[same:][:40]!r}, and the turn with "
        f"{full[same:][:40]!r}; set data.chat_template to a template whose turns begin as its generation prompt"
    )


def _end_of_marks(marks: Sequence[tuple[int, int]], start: int, turn: str) -> int:
    """Return the end of a turn by the chat template's generation marks."""
    if not any(first <= start < end for first, end in marks):
        raise DataError(
            f"the chat template's generation marks do not begin where its generation prompt ends, for {turn}; "
            "mend the template's {% generation %} marks, or take them out"
        )
    return max(end for _, end in marks)
