"""Messages in the spelling that a chat template reads: roles, calls of tools, and the special tokens in texts."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.data.chat_template import chat_text, template_for
from peftly.data.messages import ROLES
from peftly.data.rows import quoted
from peftly.data.tools import tool_calls, tool_names
from peftly.data.turn_ends import TurnEnds
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatMessages", "Rendered"]

Message = dict[str, Any]
Messages = Sequence[Mapping[str, Any]]

_TOOL_ROLES = ("tool", "tool_response", "observation", "ipython", "function")
_PROBE_NAME = "look_up_zone"
_PROBE = (
    {"role": "user", "content": "Hello"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": tool_calls({"id": "abcdefghi", "name": _PROBE_NAME, "arguments": {"zone": "CET"}}, "the call"),
    },
    {"role": "tool", "name": _PROBE_NAME, "tool_call_id": "abcdefghi", "content": "12:30"},
    {"role": "assistant", "content": "Certainly"},
)


class _CallSpelling(NamedTuple):
    """Spelling of the calls of tools.

    Attributes:
        as_objects: whether arguments are objects, for templates that serialise them; else they are JSON text.
        empty: content of a message that has calls and no text.
    """

    as_objects: bool
    empty: str | None


_CALL_SPELLINGS = tuple(_CallSpelling(as_objects, empty) for as_objects in (True, False) for empty in ("", None))


class Rendered(NamedTuple):
    """A conversation as a chat template reads and renders it.

    Attributes:
        messages: the messages.
        is_trained: whether each message is a turn that is trained.
        text: text of the conversation.
        marks: start and end of each part inside of `{% generation %}` marks.
        num_messages: for each message, the number of messages of the original conversation up to it.
        findings: defects, as of `EncodedExample`.
    """

    messages: list[Message]
    is_trained: list[bool]
    text: str
    marks: list[tuple[int, int]]
    num_messages: list[int]
    findings: list[tuple[str, str]]


class ChatMessages:
    """Renders conversations with the chat template of a tokenizer, in the spelling that this template reads.

    Attributes:
        ends: ends of the assistant's turns.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self.ends = TurnEnds(tokenizer)
        self._call_spellings: dict[str, _CallSpelling] = {}
        self._shows_tools: dict[str, bool] = {}

    def render(
        self, messages: Messages, is_trained: Sequence[bool], tools: Messages, *, add_generation_prompt: bool = False
    ) -> Rendered:
        """Return a conversation as the chat template reads and renders it.

        Consecutive messages of a user, of the assistant or of the system are joined if the template refuses them.

        Args:
            messages: messages from `read_messages`.
            is_trained: whether each message is a turn that is trained.
            tools: tools in OpenAI's spelling.
            add_generation_prompt: whether the assistant's next turn is opened at the end.

        Raises:
            DataError: as for `chat_text`, or a message has a role that the template does not name.
        """
        template = template_for(self._tokenizer, tools)
        spelled, findings = self._without_special_tokens(messages)
        spelled = self._with_roles(spelled, template)
        if any("tool_calls" in message for message in spelled):
            spelling = self._call_spelling(template, tools)
            spelled = [_with_calls(message, spelling) for message in spelled]
            if spelling.as_objects and (detail := _text_arguments(spelled)):
                findings.append(("text_arguments", detail))
        trained, counts = list(is_trained), list(range(1, len(spelled) + 1))
        try:
            text, marks = chat_text(spelled, self._tokenizer, tools, add_generation_prompt=add_generation_prompt)
        except DataError:
            joined = _joined(spelled, trained)
            if joined is None:
                raise
            spelled, trained, counts = joined
            text, marks = chat_text(spelled, self._tokenizer, tools, add_generation_prompt=add_generation_prompt)
            findings.append(("joined_messages", ""))
        if tools and template not in self._shows_tools:
            self._shows_tools[template] = self._is_other_text(text, spelled)
        if tools and not self._shows_tools[template]:
            findings.append(("hidden_tools", tool_names(tools)[0]))
        return Rendered(spelled, trained, text, marks, counts, findings)

    def _is_other_text(self, text: str, messages: Messages) -> bool:
        """Return whether a text differs from that of the messages without tools."""
        try:
            return chat_text(messages, self._tokenizer)[0] != text
        except DataError:
            return True

    def _with_roles(self, messages: list[Message], template: str) -> list[Message]:
        """Return the messages with the template's own names of roles."""
        if all(message["role"] in ("system", "user", "assistant") for message in messages):
            return messages

        def is_named(role: str) -> bool:
            return f"'{role}'" in template or f'"{role}"' in template or f"<|{role}|>" in self.ends.special

        tool = next(filter(is_named, _TOOL_ROLES), "tool")
        roles = {"tool": tool, "developer": "developer" if is_named("developer") else "system"}
        for index, message in enumerate(messages):
            role = message["role"]
            if role not in ROLES and not is_named(role):
                raise DataError(
                    f"message {index + 1} has the role {role!r}, which the chat template does not name; known are "
                    f"{quoted(ROLES)}"
                )
        return [{**message, "role": roles.get(message["role"], message["role"])} for message in messages]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.ends.special, key=len, reverse=True))) or r"(?!)")

    def _without_special_tokens(self, messages: Messages) -> tuple[list[Message], list[tuple[str, str]]]:
        """Return the messages without a start token in front of a text and end tokens behind it, and findings."""
        cleaned: list[Message] = []
        findings: list[tuple[str, str]] = []
        search = self._special_pattern.search
        for index, message in enumerate(messages):
            content = message["content"]
            if content is None or search(content) is None:
                cleaned.append(dict(message))
                continue
            start = self._tokenizer.bos_token
            ends = tuple(filter(None, (self._tokenizer.eos_token, self.ends.text)))
            text = content
            while start and text.lstrip().startswith(start):
                text = text.lstrip()[len(start) :]
            while ends and text.rstrip().endswith(ends):
                text = text.rstrip()
                text = text[: -max(len(end) for end in ends if text.endswith(end))]
            if text != content:
                findings.append(("special_tokens_removed", f"message {index + 1}"))
            if found := search(text):
                findings.append(("special_tokens_in_text", f"message {index + 1}: {found[0]}"))
            cleaned.append({**message, "content": text})
        return cleaned, findings

    def _call_spelling(self, template: str, tools: Messages) -> _CallSpelling:
        """Return the first spelling of calls that the template shows as JSON, found with a sample conversation."""
        if template not in self._call_spellings:
            probe = self._with_roles([dict(message) for message in _PROBE], template)
            known = (spelling for spelling in _CALL_SPELLINGS if self._shows_call(probe, spelling, tools))
            self._call_spellings[template] = next(known, _CALL_SPELLINGS[0])
        return self._call_spellings[template]

    def _shows_call(self, probe: list[Message], spelling: _CallSpelling, tools: Messages) -> bool:
        try:
            text, _ = chat_text([_with_calls(message, spelling) for message in probe], self._tokenizer, tools)
        except DataError:
            return False
        shown = text.partition(_PROBE_NAME)[2]
        return "CET" in shown and "'zone'" not in shown and '\\"zone' not in shown


def _with_calls(message: Message, spelling: _CallSpelling) -> Message:
    """Return a message with its calls in a spelling."""
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        arguments = call["function"]["arguments"]
        if spelling.as_objects and isinstance(arguments, str):
            arguments = _object_in(arguments)
        elif not spelling.as_objects and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not spelling.as_objects and not arguments.strip():
            arguments = "{}"
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {
        **message,
        "content": message["content"] if (message["content"] or "").strip() else spelling.empty,
        "tool_calls": calls,
    }


def _object_in(text: str) -> object:
    """Return the object of a JSON text, or the text if it holds none."""
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _text_arguments(messages: Sequence[Message]) -> str:
    """Return the location of the first arguments that are no JSON object; an empty text if there are none."""
    return next(
        (
            f"message {index + 1}"
            for index, message in enumerate(messages)
            for call in message.get("tool_calls", ())
            if isinstance(call["function"]["arguments"], str)
        ),
        "",
    )


def _joined(
    messages: Sequence[Message], is_trained: Sequence[bool]
) -> tuple[list[Message], list[bool], list[int]] | None:
    """Return the messages with consecutive ones of one role joined, and the values of `Rendered` for them.

    None if there are no such messages, or if only some of those to join are trained.
    """
    joined: list[Message] = []
    trained: list[bool] = []
    counts: list[int] = []
    for count, (message, one) in enumerate(zip(messages, is_trained, strict=True), start=1):
        last = joined[-1] if joined else None
        if last is None or message["role"] != last["role"] or message["role"] not in ("system", "user", "assistant"):
            joined.append(message)
            trained.append(one)
            counts.append(count)
            continue
        texts = [text for text in (last["content"], message["content"]) if text and text.strip()]
        if len(texts) == 2 and one != trained[-1]:
            return None
        calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
        joined[-1] = {**message, **last, "content": "\n\n".join(texts), **({"tool_calls": calls} if calls else {})}
        trained[-1] = trained[-1] or one
        counts[-1] = count
    return (joined, trained, counts) if len(joined) < len(messages) else None
