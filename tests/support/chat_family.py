"""What a test knows of a model family: its chat template, and the texts that it should give.

Each expected text is written by hand. `[[` and `]]` enclose what is trained. A family whose template rewrites earlier
turns, or ends no turn, gives a tuple of texts: one for each training sequence, the last turn first.
"""

from dataclasses import dataclass

TOOL = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
TOOL_JSON = (
    '{"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": '
    '{"city": {"type": "string"}}}}}'
)
_ONE = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"})
_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}}
    ],
}
CONVERSATIONS = {
    "one": {"messages": [*_ONE]},
    "two": {
        "messages": [
            *_ONE,
            {"role": "user", "content": "the train was late"},
            {"role": "assistant", "content": "no, never"},
        ]
    },
    "system": {"messages": [{"role": "system", "content": "say it in one word"}, *_ONE]},
    "tools": {
        "messages": [
            {"role": "user", "content": "what time is it?"},
            _CALL,
            {"role": "tool", "name": "get_time", "tool_call_id": "abcdefghi", "content": "12:30"},
            {"role": "assistant", "content": "It is half past."},
        ],
        "tools": [TOOL],
    },
}

Expected = str | tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """A conversation that the template refuses; `reason` is in the message."""

    reason: str


@dataclass(frozen=True)
class Family:
    """A model family: its chat template, its special tokens, and the texts of `CONVERSATIONS`.

    `added` are tokens that are not special. `findings` are those of the conversation with tools, and `system_findings`
    those of the conversation with a system message.
    """

    template: str | dict[str, str]
    special: tuple[str, ...]
    one: Expected | Refused
    two: Expected | Refused
    system: Expected | Refused
    tools: Expected | Refused
    bos: str | None = None
    eos: str = "<|im_end|>"
    added: tuple[str, ...] = ()
    stop_ids: tuple[str, ...] = ()
    stop_texts: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    system_findings: tuple[str, ...] = ()


def lines(text: str) -> str:
    """Return a template without the line breaks and the indentation of its source."""
    return "".join(line.strip() for line in text.splitlines())


NOT_SHOWN = ("hidden_calls", "hidden_tools")
NOTHING_SHOWN = ("hidden_calls", "hidden_messages", "hidden_tools")
PAIR = (
    "{%% for m in messages %%}{%% if m.role == 'user' %%}%s{%% elif m.role == 'assistant' %%}%s{%% endif %%}"
    "{%% endfor %%}%s"
)
ALTERNATE = "Conversation roles must alternate user and assistant"
ALTERNATING = lines(
    """{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('""" + ALTERNATE + """') }}{% endif %}"""
)
