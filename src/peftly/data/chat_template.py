"""The chat template of a tokenizer, which is code of a stranger: it runs in jinja's sandbox and within limits."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftly.data.chat_tokens import ChatTokens
from peftly.data.rows import first_line
from peftly.errors import DataError
from peftly.limits import limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["chat_text", "has_generation_marks", "render_chat"]

_MAX_SECONDS = 10.0
"""Time of one rendering."""
_MAX_BYTES = 2**30
"""Memory of one rendering."""
_MAX_ADDED_CHARACTERS = 1000
"""Mean number of characters that a template may add to a message; a conversation counts as 1000 messages or more."""


def has_generation_marks(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the chat template marks the turns of the assistant with `{% generation %}`.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    return re.search(r"\{%-?\s*generation\b", _chat_template(tokenizer)) is not None


def render_chat(
    messages: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation, as the tokenizer's `apply_chat_template` does.

    Args:
        messages: mappings with `role` and `content`.
        tokenizer: tokenizer with a chat template.
        add_generation_prompt: whether the assistant's next turn is opened at the end.

    Returns:
        The token ids, and whether each token is inside of `{% generation %}` marks.

    Raises:
        DataError: as for `chat_text`.
    """
    tokens = ChatTokens(*chat_text(messages, tokenizer, add_generation_prompt=add_generation_prompt), tokenizer)
    return tokens.ids, tokens.marked


def chat_text(
    messages: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", *, add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and start and end of each part inside of `{% generation %}` marks.

    Args:
        messages, tokenizer, add_generation_prompt: as for `render_chat`.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the messages, fails or exceeds a limit.
    """
    from jinja2 import TemplateError

    template = _chat_template(tokenizer)
    owner = f"the chat template of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the chat template"
    try:
        text, spans = _render(messages, tokenizer, template, add_generation_prompt=add_generation_prompt)
        _check_length(text, messages)
        text.encode()  # no tokenizer takes half of a character
    except TemplateError as error:
        raise DataError(f"{owner} refuses the messages ({first_line(error)})") from error
    except MemoryError as error:
        raise DataError(f"{owner} needs more than {_MAX_BYTES >> 30} GiB of memory for the messages") from error
    except Exception as error:  # a template can raise the errors of all the Python functions that it calls
        raise DataError(f"{owner} fails ({type(error).__name__}: {first_line(error)})") from error
    return text, spans


def _render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    *,
    add_generation_prompt: bool,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and the start and end of each marked turn in characters."""
    from transformers.utils.chat_template_utils import render_jinja_template

    # Without the tokenizer: its Rust library ends the process where memory is short.
    with limited(_MAX_SECONDS, _MAX_BYTES):
        texts, spans = render_jinja_template(
            [[dict(message) for message in messages]],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=has_generation_marks(tokenizer),
            **tokenizer.special_tokens_map,
        )
    return texts[0], spans[0] if spans else []


def _check_length(text: str, messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a text that is far longer than its messages, before minutes are spent on its tokens."""
    added = len(text) - sum(len(str(value)) for message in messages for value in message.values())
    limit = _MAX_ADDED_CHARACTERS * max(1000, len(messages))
    if added > limit:
        raise OverflowError(f"it adds {added:,} characters to the messages, and {limit:,} is the limit")


def _chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template; use a base that is tuned for chat, "
            "or rows with 'prompt' and 'completion'"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:  # several templates, none of them the default
        raise DataError(f"the chat template cannot be chosen ({first_line(error)})") from error
