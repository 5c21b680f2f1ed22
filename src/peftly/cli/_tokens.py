"""The exact tokens of an example on the screen, and what is learned of them."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["example_text"]


def example_text(
    encoded: "EncodedExample", tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str], *, marked: bool
) -> Text:
    """Return what a model reads, a bar between its tokens, with what it learns of it: green, or in double brackets.

    Args:
        encoded: the example.
        tokenizer: the base's own.
        labels: names of classes and tags, by number.
        marked: whether to use brackets, where there are no colours.
    """
    tokens = [_token_text(token_id, tokenizer) for token_id in encoded.input_ids]
    if encoded.tags is not None:
        named = zip(tokens, encoded.trained, encoded.tags, strict=True)
        tokens = [f"{token}/{labels[tag]}" if trained else token for token, trained, tag in named]
    text = _runs(*_with_places(tokens, encoded), marked=marked)
    answer = [labels[encoded.label]] if encoded.label is not None else []
    answer += [_token_text(token_id, tokenizer) for token_id in encoded.answer or ()]
    if answer:
        text.append(" → ", style="dim")
        text.append_text(_runs(answer, [True] * len(answer), marked=marked))
    return text


def _with_places(tokens: Sequence[str], encoded: "EncodedExample") -> tuple[list[str], list[bool]]:
    """Return tokens and whether they are trained, with what a template has for virtual tokens where these stand."""
    counts = Counter(encoded.prompt_positions)
    shown: list[tuple[str, bool]] = []
    for place in range(len(tokens) + 1):
        if counts[place]:
            shown.append((f"{{prompt:{counts[place]}}}", False))
        if place < len(tokens):
            shown.append((tokens[place], encoded.trained[place]))
    return [token for token, _ in shown], [trained for _, trained in shown]


def _runs(tokens: Sequence[str], trained: Sequence[bool], *, marked: bool) -> Text:
    """Return tokens with a bar between them; runs of trained ones stand out."""
    text = Text()
    before = False
    for place, (token, is_trained) in enumerate(zip(tokens, trained, strict=True)):
        if marked and before and not is_trained:
            text.append("⟧")
        text.append("│" if place else "", style="dim")
        if marked and is_trained and not before:
            text.append("⟦")
        text.append(token, style="bold green" if is_trained else "dim")
        before = is_trained
    return text.append("⟧") if marked and before else text


def _token_text(token_id: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a token as it reads; one that is part of a character is shown by its name in the vocabulary."""
    words = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if "\ufffd" in words or not words:
        words = str(tokenizer.convert_ids_to_tokens(token_id))
    return words.replace("\n", "⏎\n").replace("\t", "⇥")
