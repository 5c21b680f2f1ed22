"""Examples as token ids, for classifiers and encoder-decoders: the input text and a separate target.

The target is a class index, a tag index for each word, or the token ids that the decoder learns to generate. For a
causal language model the target is a part of the text; see `encoding`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftly.data.encoding import check_distinct, encode_all, label_ids
from peftly.data.formats import RowFormat
from peftly.data.truncation import largest_fit
from peftly.data.types import UNTRAINED, EncodedExample, Example, TaskName
from peftly.data.vocabulary import Vocabulary, check_has_offsets, token_positions
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_ids", "encode_for", "encode_sources", "encode_words", "label_answers"]


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


def encode_sources(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> list[EncodedExample]:
    """Encode the input of an encoder: the prompt of each example with the special tokens of the tokenizer.

    If a prompt is too long, the values of its fields are shortened from their ends, so that the text of the template
    stays. A prompt without a template is cut at its end; of a text pair the longer text is cut.

    Args:
        examples: examples with `prompt`, and with `pair` for text pairs. The second text follows on a new line if the
            tokenizer puts no special token between two texts.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens, special tokens included; None: no maximum.

    Returns:
        One encoded example per example, without a target.

    Raises:
        DataError: `max_length` leaves no room for text, or the template marks virtual tokens and the tokenizer does not
            report character offsets.
    """
    is_pair = any(example.pair is not None for example in examples)
    num_special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    if is_pair and num_special == tokenizer.num_special_tokens_to_add(pair=False):
        examples = [replace(example, prompt=f"{example.prompt}\n{example.pair}", pair=None) for example in examples]
        is_pair = False
    has_marks = any(example.virtual_token_offsets for example in examples)
    if has_marks:
        check_has_offsets(tokenizer)
    if max_length is not None and max_length <= num_special:
        raise DataError(
            f"max_length={max_length} has no room for text besides {num_special} special tokens; raise max_length"
        )

    def tokenize(batch: Sequence[Example], **options: Any) -> Any:
        pairs = [example.pair or "" for example in batch] if is_pair else None
        options["return_offsets_mapping"] = has_marks
        return tokenizer([example.prompt for example in batch], pairs, verbose=False, **options)

    def encoded(encoding: Any, index: int, full_length: int, example: Example) -> EncodedExample:
        ids = encoding["input_ids"][index]
        return EncodedExample(
            ids,
            [False] * len(ids),
            full_length - len(ids),
            token_type_ids=encoding["token_type_ids"][index] if "token_type_ids" in encoding else None,
            prompt_positions=_prompt_positions(encoding, index, example.virtual_token_offsets, tokenizer),
        )

    full = tokenize(examples) if examples else {"input_ids": []}
    sources = []
    for index, (example, ids) in enumerate(zip(examples, full["input_ids"], strict=True)):
        if max_length is None or len(ids) <= max_length:
            sources.append(encoded(full, index, len(ids), example))
            continue
        shorter = example if is_pair else _shorten(example, lambda e: len(tokenize([e])["input_ids"][0]), max_length)
        truncated = tokenize([shorter], truncation=True, max_length=max_length)
        sources.append(encoded(truncated, 0, len(ids), shorter))
    return sources


def encode_words(
    texts: Sequence[Sequence[str]], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> list[tuple[EncodedExample, list[int | None]]]:
    """Encode texts that are given as words.

    Args:
        texts: words of each text.
        tokenizer: tokenizer of the base.
        max_length: maximum number of tokens, special tokens included; None: no maximum.

    Returns:
        For each text the encoded example, and for each of its tokens the index of the word that begins with this token
        (None for other tokens). `trained` is true for the tokens that begin a word.

    Raises:
        DataError: the tokenizer does not report the word of a token.
    """
    if not tokenizer.is_fast:
        raise DataError("token classification needs a fast tokenizer (tokenizer.json), which knows each token's word")
    needs_spaces = _needs_spaces(tokenizer)
    encoded = []
    for text in texts:
        words = [f" {word}" if needs_spaces and index else word for index, word in enumerate(text)]
        encoding = tokenizer(words, is_split_into_words=True, verbose=False)
        full_length = len(encoding["input_ids"])
        if max_length is not None and full_length > max_length:
            encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        ids, word_of_token = encoding["input_ids"], encoding.word_ids()
        previous = [None, *word_of_token]
        first_tokens = [word if word != before else None for before, word in zip(previous, word_of_token, strict=False)]
        example = EncodedExample(
            ids,
            [word is not None for word in first_tokens],
            full_length - len(ids),
            token_type_ids=encoding.get("token_type_ids"),
        )
        encoded.append((example, first_tokens))
    return encoded


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
    end = Vocabulary.of(tokenizer).required_end()
    answers = tokenizer(text_target=[text.strip() for text in texts], verbose=False)["input_ids"]
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
    encoded: list[EncodedExample | None] = []
    for example, source, full_answer in zip(examples, sources, answers, strict=True):
        answer = full_answer[:max_length]
        if not source.input_ids or not example.completion.strip():
            encoded.append(None)
            continue
        num_truncated = source.num_truncated + len(full_answer) - len(answer)
        encoded.append(replace(source, answer=answer, num_truncated=num_truncated))
    return encoded


_ENCODERS: dict[str, Callable[..., list[EncodedExample | None]]] = {
    "sequence_classification": _encode_classes,
    "token_classification": _encode_tags,
    "seq2seq_lm": _encode_answers,
}


def _prompt_positions(
    encoding: Any, index: int, offsets: Sequence[int], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, ...]:
    """Return the positions of an example's virtual tokens, which are never before or after the special tokens."""
    if not offsets:
        return ()
    prompt_tokens = [token for token, text in enumerate(encoding.sequence_ids(index)) if text == 0]
    first = prompt_tokens[0] if prompt_tokens else len(Vocabulary.of(tokenizer).front)
    token_offsets = encoding["offset_mapping"][index]
    ends = (token_offsets[token][1] for token in prompt_tokens)
    return tuple(first + position for position in token_positions(offsets, ends))


def _shorten(example: Example, num_tokens: Callable[[Example], int], max_length: int) -> Example:
    """Return the example with its fields shortened to fit, or unchanged if it has no field to shorten."""
    longest = max((end - start for start, end in example.spans), default=0)
    size = largest_fit(longest, lambda characters: num_tokens(example.truncate_fields(characters)) <= max_length)
    return example if size is None or not example.spans else example.truncate_fields(size)


def _needs_spaces(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether separate words need a leading space to get the tokens that they have in a running text."""

    def ids(words: str | list[str]) -> list[int]:
        options = {"is_split_into_words": True} if isinstance(words, list) else {}
        input_ids: list[int] = tokenizer(words, add_special_tokens=False, verbose=False, **options)["input_ids"]
        return input_ids

    running_text = ids("a a")
    return ids(["a", "a"]) != running_text and ids(["a", " a"]) == running_text
