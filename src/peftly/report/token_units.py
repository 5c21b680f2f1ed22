"""Token ids of an example as readable units: a unit is a token, or several tokens that are one character together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import regex

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import EncodedExample, Example

__all__ = ["TokenUnit", "answer_units", "example_units", "raw_units", "visible"]

_MAX_TOKENS = 16
"""Number of tokens that are joined at most until they are complete characters."""

_REPLACEMENT = "\ufffd"

_MARKS = {" ": "·", "\t": "⇥\t", "\n": "⏎\n", "\r": "␍"}

_INVISIBLE = regex.compile(
    r"(?<=\s) | (?=\s)| $|^ $|[\t\n\r]"  # spaces in a row, at the end or alone, and other blanks
    r"|[\p{Cc}\p{Co}\p{Cs}\p{Zl}\p{Zp}\u00a0\u00ad\u061c\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]"
)


_BYTE = regex.compile(r"<0x[0-9A-F]{2}>")
"""Name of a token that is one byte of a character."""


@dataclass(frozen=True)
class TokenUnit:
    """Tokens that are readable together only, or one token.

    Attributes:
        text: text of the tokens; see `visible`.
        ids: token ids; empty for virtual tokens.
        kind: "text"; "special" for a special token, with its name as text; "virtual" for virtual tokens of a template;
            "label" for a label instead of tokens.
        trained: whether the loss counts the tokens.
        tag: tag of the word that begins with the unit.
    """

    text: str
    ids: tuple[int, ...] = ()
    kind: Literal["text", "special", "virtual", "label"] = "text"
    trained: bool = False
    tag: str | None = None


def example_units(
    encoded: "EncodedExample", tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str] = ()
) -> list[TokenUnit]:
    """Return the tokens that a model reads as units, with `{prompt:n}` where a template marks n virtual tokens.

    Args:
        encoded: the example.
        tokenizer: tokenizer of the base.
        labels: names of tags, by index.
    """
    ids, trained, tags = encoded.input_ids, encoded.trained, encoded.tags
    num_virtual = Counter(encoded.prompt_positions)
    has_tag = [False] * len(ids) if tags is None else trained
    borders = {
        index
        for index in range(1, len(ids))
        if trained[index] != trained[index - 1] or has_tag[index] or has_tag[index - 1] or num_virtual[index]
    }
    units: list[TokenUnit] = []

    def add_virtual(index: int) -> None:
        if num_virtual[index]:
            units.append(TokenUnit(f"{{prompt:{num_virtual[index]}}}", kind="virtual"))

    for start, end, text, is_special in _groups(ids, tokenizer, borders):
        add_virtual(start)
        tag = labels[tags[start]] if tags is not None and trained[start] else None
        kind: Literal["text", "special"] = "special" if is_special else "text"
        units.append(TokenUnit(text, tuple(ids[start:end]), kind, trained[start], tag))
    add_virtual(len(ids))
    return units


def answer_units(
    encoded: "EncodedExample", tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str] = ()
) -> list[TokenUnit]:
    """Return the target that is not part of the input: a class, or the answer of a decoder.

    Args:
        encoded: the example.
        tokenizer: tokenizer of the base.
        labels: names of classes, by index.
    """
    if encoded.label is not None:
        return [TokenUnit(labels[encoded.label], kind="label", trained=True)]
    ids = encoded.answer or []
    return [
        TokenUnit(text, tuple(ids[start:end]), "special" if is_special else "text", trained=True)
        for start, end, text, is_special in _groups(ids, tokenizer, set())
    ]


def raw_units(example: "Example") -> list[TokenUnit]:
    """Return the text of an example that training leaves out, as units without tokens."""
    if example.messages:
        return [
            TokenUnit(f"{message['role']}: {message.get('content') or ''}\n", trained=False)
            for message in example.messages
        ]
    texts = [example.prompt, example.pair or "", example.completion]
    return [TokenUnit(text) for text in texts if text]


def visible(text: str) -> str:
    """Return a text with marks for characters that cannot be seen.

    A single space between words stays a space. Other spaces, tabs and line breaks get a mark, and a character without
    a picture, such as a mark of the writing direction, becomes its number: ⟨200B⟩.
    """
    return str(regex.sub(_INVISIBLE, _mark, text))


def _mark(match: "regex.Match[str]") -> str:
    character = match[0]
    return _MARKS.get(character, f"⟨{ord(character):04X}⟩")


def _groups(
    ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase", borders: set[int]
) -> Iterator[tuple[int, int, str, bool]]:
    """Yield start, end, text, and whether it is a special token, for each group of tokens that are readable together.

    Args:
        ids: token ids.
        tokenizer: tokenizer of the base.
        borders: indices that begin a new group.
    """
    names = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    names = {number: name for number, name in names.items() if not _BYTE.fullmatch(name)}
    group: tuple[int, int, str] | None = None
    before: Sequence[int] = ()
    index = 0
    while index < len(ids):
        if ids[index] in names:
            if group:
                yield *group, False
            yield index, index + 1, names[ids[index]], True
            group, before = None, ids[index : index + 1]
            index += 1
            continue
        last = min(len(ids), index + _MAX_TOKENS)
        stop = next((end for end in range(index + 1, last) if ids[end] in names or end in borders), last)
        size, text = _complete(ids[index:stop], before, tokenizer)
        before = ids[index : index + size]
        if group and index not in borders and _is_one_character(group[2], text):
            group = group[0], index + size, group[2] + text
        else:
            if group:
                yield *group, False
            group = index, index + size, text
        index += size
    if group:
        yield *group, False


def _complete(ids: Sequence[int], before: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[int, str]:
    """Return the smallest number of tokens that are complete characters, and their text."""
    for size in range(1, len(ids) + 1):
        text = _text_after(before, ids[:size], tokenizer)
        if _REPLACEMENT not in text:
            return size, text or str(tokenizer.convert_ids_to_tokens(ids[0]))
    return 1, _REPLACEMENT


def _text_after(before: Sequence[int], ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of tokens as they follow others: a decoder may strip the space in front of the first token."""
    if before:
        head, whole = (
            str(tokenizer.decode(part, clean_up_tokenization_spaces=False)) for part in ([*before], [*before, *ids])
        )
        if whole.startswith(head) and _REPLACEMENT not in head:
            return whole[len(head) :]
    return str(tokenizer.decode([*ids], clean_up_tokenization_spaces=False))


def _is_one_character(text: str, following: str) -> bool:
    """Return whether the end of a text and the start of the following one are one character on a screen."""
    last = regex.findall(r"\X", text)[-1]
    return len(regex.match(r"\X", last + following)[0]) > len(last) and not following.isspace()
