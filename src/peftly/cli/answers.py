"""The answers of a classifier, printed."""

from typing import TYPE_CHECKING

from peftly.cli.console import echo

if TYPE_CHECKING:
    from peftly.data import Example
    from peftly.runs import OpenRun

__all__ = ["print_answer"]


def print_answer(opened: "OpenRun", example: "Example") -> None:
    """Print the labels of a text with their probabilities, the most likely first, or each word with its tag.

    Args:
        opened: classifier.
        example: text to classify, or text whose words are tagged.
    """
    from peftly.data import DataConfig
    from peftly.inference import classify, tag_words
    from peftly.models import task_of

    max_length = (opened.config.data if opened.config else DataConfig(train="unused")).max_length
    if task_of(opened.model) == "token_classification":
        words = example.words or tuple(example.prompt.split())
        for word, tag in tag_words(opened.model, opened.tokenizer, [words], max_length=max_length)[0]:
            echo(f"{word}\t{tag or f'(past {max_length} tokens)'}")
        return
    probabilities = classify(opened.model, opened.tokenizer, [example], max_length=max_length)[0]
    for label, probability in sorted(probabilities.items(), key=lambda item: -item[1]):
        echo(f"{label}\t{probability:.1%}")
