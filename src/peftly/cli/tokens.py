"""The tokens of an example, printed with a mark on the trained tokens."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftly.data import EncodedExample

__all__ = ["example_text"]


def example_text(
    encoded: "EncodedExample", tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str], *, brackets: bool
) -> Text:
    """Return the tokens of an example with bars between them. Trained tokens are green, or in double brackets.

    Args:
        encoded: example.
        tokenizer: tokenizer of the base.
        labels: names of classes and tags, by index.
        brackets: whether to mark trained tokens with brackets, for output without colours.
    """
    tokens = [_token_text(token_id, tokenizer) for token_id in encoded.input_ids]
    if encoded.tags is not None:
        tagged = zip(tokens, encoded.trained, encoded.tags, strict=True)
        tokens = [f"{token}/{labels[tag]}" if trained else token for token, trained, tag in tagged]
    text = _joined(*_with_virtual_tokens(tokens, encoded), brackets=brackets)
    answer = [labels[encoded.label]] if encoded.label is not None else []
    answer += [_token_text(token_id, tokenizer) for token_id in encoded.answer or ()]
    if answer:
        text.append(" → ", style="dim")
        text.append_text(_joined(answer, [True] * len(answer), brackets=brackets))
    return text


def _with_virtual_tokens(tokens: Sequence[str], encoded: "EncodedExample") -> tuple[list[str], list[bool]]:
    """Return tokens and whether each is trained, with `{prompt:n}` where a template marks n virtual tokens."""
    counts = Counter(encoded.prompt_positions)
    shown: list[tuple[str, bool]] = []
    for position in range(len(tokens) + 1):
        if counts[position]:
            shown.append((f"{{prompt:{counts[position]}}}", False))
        if position < len(tokens):
            shown.append((tokens[position], encoded.trained[position]))
    return [token for token, _ in shown], [trained for _, trained in shown]


def _joined(tokens: Sequence[str], trained: Sequence[bool], *, brackets: bool) -> Text:
    """Return tokens with bars between them, with sequences of trained tokens marked."""
    text = Text()
    was_trained = False
    for position, (token, is_trained) in enumerate(zip(tokens, trained, strict=True)):
        if brackets and was_trained and not is_trained:
            text.append("⟧")
        text.append("│" if position else "", style="dim")
        if brackets and is_trained and not was_trained:
            text.append("⟦")
        text.append(token, style="bold green" if is_trained else "dim")
        was_trained = is_trained
    return text.append("⟧") if brackets and was_trained else text


def _token_text(token_id: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a token, or its name in the vocabulary if it is only a part of a character."""
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if "\ufffd" in text or not text:
        text = str(tokenizer.convert_ids_to_tokens(token_id))
    return text.replace("\n", "⏎\n").replace("\t", "⇥")
