"""The answers of a classifier, printed."""

from typing import TYPE_CHECKING

from peftly.cli.console import echo
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import OpenRun

__all__ = ["print_answer"]


def print_answer(opened: "OpenRun", text: str, pair: str | None = None) -> None:
    """Print the labels of a text with their probabilities, the most likely first, or each word with its tag.

    Args:
        opened: classifier.
        text: text to classify, formatted as in training if the adapter records its row format.
        pair: second text, for a classifier of text pairs.

    Raises:
        ConfigError: `pair` is given for a token classifier.
    """
    from peftly.data import DataConfig, Example
    from peftly.inference import classify, tag_words
    from peftly.models import task_of

    max_length = (opened.config.data if opened.config else DataConfig(train="unused")).max_length
    if task_of(opened.model) == "token_classification":
        if pair is not None:
            raise ConfigError("--pair is for a classifier of two texts; this model tags the words of one text")
        for word, tag in tag_words(opened.model, opened.tokenizer, [text.split()], max_length=max_length)[0]:
            echo(f"{word}\t{tag or f'(past {max_length} tokens)'}")
        return
    example = Example(text, pair=pair) if opened.row_format is None else opened.row_format.format_prompt(text, pair)
    probabilities = classify(opened.model, opened.tokenizer, [example], max_length=max_length)[0]
    for label, probability in sorted(probabilities.items(), key=lambda item: -item[1]):
        echo(f"{label}\t{probability:.1%}")
