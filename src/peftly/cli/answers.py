"""The answers of a classifier, printed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftly.cli.console import echo
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import OpenRun

__all__ = ["print_answer"]


def print_answer(opened: "OpenRun", text: str | Mapping[str, str], pair: str | None = None) -> None:
    """Print the labels of a text with their probabilities, the most likely first, or each word with its tag.

    Args:
        opened: classifier.
        text: text to classify, or texts by the fields of the template, formatted as in training if the adapter records
            its row format.
        pair: second text, for a classifier of text pairs.

    Raises:
        ConfigError: `pair` is given for a token classifier, or fields where there is no template for them.
    """
    from peftly.data import DataConfig, Example
    from peftly.inference import classify, tag_words
    from peftly.models import task_of

    max_length = (opened.config.data if opened.config else DataConfig(train="unused")).max_length
    is_tagger = task_of(opened.model) == "token_classification"
    if not isinstance(text, str) and (is_tagger or opened.row_format is None):
        raise ConfigError("--field is for a template, and this model has none; use --text")
    if is_tagger:
        if pair is not None:
            raise ConfigError("--pair is for a classifier of two texts; this model tags the words of one text")
        for word, tag in tag_words(opened.model, opened.tokenizer, [str(text).split()], max_length=max_length)[0]:
            echo(f"{word}\t{tag or f'(past {max_length} tokens)'}")
        return
    row_format = opened.row_format
    example = Example(str(text), pair=pair) if row_format is None else row_format.format_prompt(text, pair)
    probabilities = classify(opened.model, opened.tokenizer, [example], max_length=max_length)[0]
    for label, probability in sorted(probabilities.items(), key=lambda item: -item[1]):
        echo(f"{label}\t{probability:.1%}")
