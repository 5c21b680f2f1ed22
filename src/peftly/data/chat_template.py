"""The chat template of a tokenizer, which is code of a stranger: it runs in jinja's sandbox and within limits."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftly.data.rows import first_line
from peftly.errors import DataError
from peftly.limits import limited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["chat_text", "has_generation_marks", "read_chat_template", "template_for"]

_MAX_SECONDS = 10.0
"""Time of one rendering."""
_MAX_BYTES = 2**30
"""Memory of one rendering."""
_MAX_FILE_BYTES = 10**7
_MAX_ADDED_CHARACTERS = 1000
"""Mean number of characters that a template may add to a message; a conversation counts as 1000 messages or more."""


Tools = Sequence[Mapping[str, Any]]


def read_chat_template(setting: str) -> str:
    """Return the text of a chat template.

    Args:
        setting: the text itself, or the path of a file with it: jinja, or a `tokenizer_config.json`.

    Raises:
        ValueError: the setting is neither a text with `{{` or `{%` nor a file with such a text.
    """
    if _is_template(setting):
        return setting
    path = Path(setting)
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode("utf-8-sig")
        content = json.loads(text)["chat_template"] if path.suffix == ".json" else text
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{setting!r} is neither the text of a chat template (no {{{{ and no {{%) nor a file with one "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None
    if not isinstance(content, str) or not _is_template(content):
        raise ValueError(f"{setting!r} holds no chat template: there is no {{{{ and no {{% in it")
    return content


def _is_template(text: str) -> bool:
    return "{{" in text or "{%" in text


def has_generation_marks(tokenizer: "PreTrainedTokenizerBase", tools: Tools = ()) -> bool:
    """Return whether the chat template marks the turns of the assistant with `{% generation %}`.

    Args:
        tokenizer: tokenizer with a chat template.
        tools: as for `template_for`.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    return re.search(r"\{%-?\s*generation\b", template_for(tokenizer, tools)) is not None


def chat_text(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    tools: Tools = (),
    *,
    add_generation_prompt: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and start and end of each part inside of `{% generation %}` marks.

    Args:
        messages: mappings with `role` and `content`.
        tokenizer: tokenizer with a chat template.
        tools: tools in OpenAI's spelling.
        add_generation_prompt: whether the assistant's next turn is opened at the end.

    Raises:
        DataError: the tokenizer has no chat template, or the template refuses the messages, fails or exceeds a limit.
    """
    from jinja2 import TemplateError

    template = template_for(tokenizer, tools)
    owner = f"the chat template of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the chat template"
    try:
        text, spans = _render(messages, tokenizer, tools, template, add_generation_prompt=add_generation_prompt)
        _check_length(text, messages, tools)
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
    tools: Tools,
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
            tools=[dict(tool) for tool in tools] or None,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            return_assistant_tokens_mask=has_generation_marks(tokenizer, tools),
            **tokenizer.special_tokens_map,
        )
    return texts[0], spans[0] if spans else []


def _check_length(text: str, messages: Sequence[Mapping[str, Any]], tools: Tools) -> None:
    """Refuse a text that is far longer than its messages, before minutes are spent on its tokens."""
    added = len(text) - sum(len(str(value)) for message in (*messages, *tools) for value in message.values())
    limit = _MAX_ADDED_CHARACTERS * max(1000, len(messages))
    if added > limit:
        raise OverflowError(f"it adds {added:,} characters to the messages, and {limit:,} is the limit")


def template_for(tokenizer: "PreTrainedTokenizerBase", tools: Tools = ()) -> str:
    """Return the chat template of a tokenizer.

    Args:
        tokenizer: tokenizer with one chat template or with several by name.
        tools: tools of the conversation: of several templates, the one for tools is returned.

    Raises:
        DataError: the tokenizer has no chat template, or several without a default.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "the tokenizer has no chat template; use a base that is tuned for chat, set data.chat_template to a "
            "template (a file or its text), or give rows with 'prompt' and 'completion'"
        )
    try:
        return str(tokenizer.get_chat_template(tools=list(tools) or None))
    except ValueError as error:  # several templates, none of them the default
        raise DataError(f"the chat template cannot be chosen ({first_line(error)})") from error
