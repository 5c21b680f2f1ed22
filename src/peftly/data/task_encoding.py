"""Examples as token ids, for classifiers and encoder-decoders: the input text and a separate target.

The target is a class index, a tag index for each word, or the token ids that the decoder learns to generate. For a
causal language model the target is a part of the text; see `encoding`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from peftly.data.encoder_inputs import encode_sources, encode_words
from peftly.data.encoding import check_distinct, encode_all, label_ids
from peftly.data.formats import RowFormat
from peftly.data.text_findings import TextChecks, without_end
from peftly.data.types import UNTRAINED, EncodedExample, Example, TaskName
from peftly.data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_ids", "encode_for", "label_answers"]


def encode_for(
    task: TaskName,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    row_format: RowFormat,
    max_length: int,
    *,
    location: Callable[[int], str] | None = None,
) -> list[EncodedExample | None]:
    """Encode examples with the target of a task.

    Args:
        task: task of the model.
        examples: examples of `row_format.examples`.
        tokenizer: tokenizer of the base.
        row_format: format of the rows; the index of a label in `row_format.labels` is its class index.
        max_length: maximum number of tokens of a text; also the maximum number of tokens of a decoder's answer.
        location: function that returns the location of an example by its index, for error messages.

    Returns:
        One encoded example per example; None for an example without a target.

    Raises:
        DataError: the tokenizer does not support the task, or `max_length` leaves no room for a text.
    """
    if task == "causal_lm":
        room = max(map(len, label_ids(row_format, tokenizer).values()), default=0)
        return encode_all(examples, tokenizer, max_length, completion_room=room, location=location)
    return _ENCODERS[task](examples, tokenizer, row_format, max_length)


def answer_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the token ids of each text as a decoder generates it, end token included.

    Args:
        texts: answers.
        tokenizer: tokenizer of the base.

    Raises:
        DataError: the tokenizer has no end token.
    """
    if not texts:
        return []
    vocabulary = Vocabulary.of(tokenizer)
    end = vocabulary.required_end()
    bare = [without_end(text, vocabulary.end_text)[0].strip() for text in texts]
    answers = tokenizer(text_target=bare, verbose=False)["input_ids"]
    return [[*ids] if ids and ids[-1] == end else [*ids, end] for ids in answers]


def label_answers(row_format: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[int]]:
    """Return the token ids of every label as a decoder generates it; `label_ids` is for causal language models.

    Args:
        row_format: row format with labels.
        tokenizer: tokenizer of the base.

    Raises:
        DataError: the tokenizer gives two labels the same tokens.
    """
    texts = [row_format.completion(label) for label in row_format.labels]
    ids = dict(zip(row_format.labels, answer_ids(texts, tokenizer), strict=True))
    check_distinct(ids)
    return ids


def _encode_classes(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample | None]:
    index_of_label = {label: index for index, label in enumerate(row_format.labels)}
    return [
        replace(source, label=index_of_label[example.label or ""]) if source.input_ids else None
        for example, source in zip(examples, encode_sources(examples, tokenizer, max_length), strict=True)
    ]


def _encode_tags(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample | None]:
    index_of_tag = {tag: index for index, tag in enumerate(row_format.labels)}
    encoded: list[EncodedExample | None] = []
    sources = encode_words([example.words for example in examples], tokenizer, max_length)
    for example, (source, first_tokens) in zip(examples, sources, strict=True):
        tags = [UNTRAINED if word is None else index_of_tag[example.tags[word]] for word in first_tokens]
        encoded.append(replace(source, tags=tags) if any(source.trained) else None)
    return encoded


def _encode_answers(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample | None]:
    if row_format.kind == "label":
        label_answers(row_format, tokenizer)  # raises for labels with the same tokens
    answers = answer_ids([example.completion for example in examples], tokenizer)
    sources = encode_sources(examples, tokenizer, max_length)
    vocabulary = Vocabulary.of(tokenizer)
    checks = TextChecks(vocabulary)
    encoded: list[EncodedExample | None] = []
    for example, source, full_answer in zip(examples, sources, answers, strict=True):
        answer = full_answer[:max_length]
        completion, findings = without_end(example.completion, vocabulary.end_text)
        if not source.input_ids or not completion.strip():
            encoded.append(None)
            continue
        num_truncated = source.num_truncated + len(full_answer) - len(answer)
        findings = (*source.findings, *findings, *checks.target_findings(completion, full_answer))
        encoded.append(replace(source, answer=answer, num_truncated=num_truncated, findings=findings))
    return encoded


_ENCODERS: dict[str, Callable[..., list[EncodedExample | None]]] = {
    "sequence_classification": _encode_classes,
    "token_classification": _encode_tags,
    "seq2seq_lm": _encode_answers,
}
