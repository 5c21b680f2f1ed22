"""What a classifier says of one text, on the screen."""

from typing import TYPE_CHECKING

import typer

from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import OpenRun

__all__ = ["print_answer"]


def print_answer(opened: "OpenRun", text: str, pair: str | None = None) -> None:
    """Print the labels of a text with their probabilities, the likeliest first, or every word with its tag.

    Args:
        opened: a classifier.
        text: read as in training where the adapter says how, else as it is.
        pair: a second text, for a classifier of two.

    Raises:
        ConfigError: a second text for a classifier of words.
    """
    from peftly.data import DataConfig, Example
    from peftly.inference import classify, tag_words
    from peftly.models import task_of

    data = opened.config.data if opened.config else DataConfig(train="unused")
    if task_of(opened.model) == "token_classification":
        if pair is not None:
            raise ConfigError("--pair is for a classifier of two texts; this one tags the words of one")
        for word, tag in tag_words(opened.model, opened.tokenizer, text.split(), max_length=data.max_length):
            typer.echo(f"{word}\t{tag or f'(past {data.max_length} tokens)'}")
        return
    example = Example(text, pair=pair) if opened.row_format is None else opened.row_format.format_prompt(text, pair)
    found = classify(opened.model, opened.tokenizer, [example], max_length=data.max_length)[0]
    for label, probability in sorted(found.items(), key=lambda item: -item[1]):
        typer.echo(f"{label}\t{probability:.1%}")
