"""The answers of a classifier, printed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from peftly.cli.console import echo, without_cut_character

if TYPE_CHECKING:
    from peftly.data import Example
    from peftly.inference import Answer
    from peftly.runs import OpenRun

__all__ = ["answer_text", "print_answer"]


def print_answer(opened: "OpenRun", example: "Example") -> None:
    """Print the labels of a text with their probabilities or numbers, the highest first, or each word with its tag.

    Args:
        opened: classifier.
        example: text to classify, or text whose words are tagged.
    """
    from peftly.data import DataConfig, encode_sources
    from peftly.inference import classify
    from peftly.models import max_input_tokens, output_kind, task_of

    max_length = (opened.config.data if opened.config else DataConfig(train="unused")).max_length
    max_length = min(max_length, max_input_tokens(opened.model) or max_length)
    if task_of(opened.model) == "token_classification":
        _print_tags(opened, example.words or tuple(example.prompt.split()), max_length)
        return
    length = len(encode_sources([example], opened.tokenizer)[0].input_ids)
    if length > max_length:
        typer.echo(f"warning: the text has {length} tokens and is cut to {max_length}, as in training", err=True)
    scores = classify(opened.model, opened.tokenizer, [example], max_length=max_length)[0]
    form = ".4g" if output_kind(opened.model.config) == "numbers" else ".1%"
    for label, score in sorted(scores.items(), key=lambda item: -item[1]):
        echo(f"{label}\t{score:{form}}")


def answer_text(answer: "Answer") -> str:
    """Return the answer for one of several rows as text: labels with probabilities, tags, a number, or a text."""
    if answer.prediction is None:
        return "(nothing to read)"
    if answer.probabilities is not None:
        scores = sorted(answer.probabilities.items(), key=lambda item: -item[1])
        return "\n".join(f"{label}\t{score:.1%}" for label, score in scores)
    if isinstance(answer.prediction, list):
        return " ".join(tag or "(no tag)" for tag in answer.prediction)
    return without_cut_character(str(answer.prediction))


def _print_tags(opened: "OpenRun", words: Sequence[str], max_length: int) -> None:
    """Print each word with its tag, or with the reason why it has none."""
    from peftly.data import encode_words
    from peftly.inference import tag_words

    with_token = set(encode_words([words], opened.tokenizer)[0][1])
    for index, (word, tag) in enumerate(tag_words(opened.model, opened.tokenizer, [words], max_length=max_length)[0]):
        reason = f"(past {max_length} tokens)" if index in with_token else "(the tokenizer has no token for it)"
        echo(f"{word}\t{tag or reason}")
