"""What classifiers and encoder-decoders read and learn: the text as the tokenizer wraps it, and an answer of its own.

A causal language model learns its answer as part of the text (see `encoding`). Here the answer is apart: the number of
a class, the number of a tag for every word, or the tokens that a decoder is to write.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from peftly.data.encoding import encode_all, label_ids, told_apart
from peftly.data.formats import RowFormat
from peftly.data.truncation import largest_fit
from peftly.data.types import UNTRAINED, EncodedExample, Example, TaskName
from peftly.data.vocabulary import Vocabulary, check_knows_places, token_places
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
    places: Sequence[str] | None = None,
) -> list[EncodedExample | None]:
    """Return examples as tokens with what a task learns of them; None for one that teaches nothing.

    Args:
        task: what is made of a text.
        examples: from `shape.examples`.
        tokenizer: the base's own.
        row_format: numbers the labels, in their order.
        max_length: tokens of a text, at most, and as many again of a decoder's answer.
        places: where each example comes from, for messages.

    Raises:
        DataError: the tokenizer cannot do what the task needs, or `max_length` has no room for a text.
    """
    if task == "causal_lm":
        room = max(map(len, label_ids(row_format, tokenizer).values()), default=0)
        return encode_all(examples, tokenizer, max_length, room=room, places=places)
    return _ENCODERS[task](examples, tokenizer, row_format, max_length)


def encode_sources(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> list[EncodedExample]:
    """Return what an encoder reads of each example, with the special tokens that the tokenizer puts around it.

    What is too long loses the ends of the row's own texts where a template stands around them, so that its words stay,
    and otherwise the end of the text, or of the longer of two.

    Args:
        examples: their `prompt`, and `pair` where there is one; on a new line where the tokenizer parts texts by none
            of its own tokens.
        tokenizer: the base's own.
        max_length: tokens, special ones included, at most; None: all.
    """
    pairs = any(example.pair is not None for example in examples)
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if pairs and special == tokenizer.num_special_tokens_to_add(pair=False):
        examples = [replace(example, prompt=f"{example.prompt}\n{example.pair}", pair=None) for example in examples]
        pairs = False
    marked = any(example.marks for example in examples)
    if marked:
        check_knows_places(tokenizer)
    if max_length is not None and max_length <= special:
        raise DataError(f"max_length={max_length} has no room for text beside {special} special tokens; raise it")

    def read(chosen: Sequence[Example], **options: Any) -> Any:
        seconds = [example.pair or "" for example in chosen] if pairs else None
        options["return_offsets_mapping"] = marked
        return tokenizer([example.prompt for example in chosen], seconds, verbose=False, **options)

    def encoded(found: Any, at: int, whole: int, example: Example) -> EncodedExample:
        ids = found["input_ids"][at]
        types = found["token_type_ids"][at] if "token_type_ids" in found else None
        places = _places(found, at, example.marks, tokenizer) if example.marks else ()
        return EncodedExample(ids, [False] * len(ids), whole - len(ids), token_type_ids=types, prompt_positions=places)

    full = read(examples) if examples else {"input_ids": []}
    made = []
    for at, (example, ids) in enumerate(zip(examples, full["input_ids"], strict=True)):
        if max_length is None or len(ids) <= max_length:
            made.append(encoded(full, at, len(ids), example))
            continue
        shorter = example if pairs else _shortened(example, lambda one: len(read([one])["input_ids"][0]), max_length)
        made.append(encoded(read([shorter], truncation=True, max_length=max_length), 0, len(ids), shorter))
    return made


def encode_words(
    rows: Sequence[Sequence[str]], tokenizer: "PreTrainedTokenizerBase", max_length: int | None = None
) -> list[tuple[EncodedExample, list[int | None]]]:
    """Return rows of words as tokens, and for every token the number of the word whose first piece it is, else None.

    Raises:
        DataError: the tokenizer cannot say which word a token is of.
    """
    if not tokenizer.is_fast:
        raise DataError("token classification needs a fast tokenizer (tokenizer.json), which knows each token's word")
    spaced = _needs_spaces(tokenizer)
    made = []
    for row in rows:
        words = [f" {word}" if spaced and at else word for at, word in enumerate(row)]
        found = tokenizer(words, is_split_into_words=True, verbose=False)
        whole = len(found["input_ids"])
        if max_length is not None and whole > max_length:
            found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        ids, of_word = found["input_ids"], found.word_ids()
        firsts = [word if word != before else None for before, word in zip([None, *of_word], of_word, strict=False)]
        made.append(
            (
                EncodedExample(
                    ids,
                    [word is not None for word in firsts],
                    whole - len(ids),
                    token_type_ids=found.get("token_type_ids"),
                ),
                firsts,
            )
        )
    return made


def answer_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the tokens that a decoder is to write for each text, with the end token."""
    if not texts:
        return []
    end = Vocabulary.of(tokenizer).required_end()
    found = tokenizer(text_target=[text.strip() for text in texts], verbose=False)["input_ids"]
    return [[*ids] if ids and ids[-1] == end else [*ids, end] for ids in found]


def label_answers(row_format: RowFormat, tokenizer: "PreTrainedTokenizerBase") -> dict[str, list[int]]:
    """Return the tokens that a decoder is to write for every label; see `label_ids`, which does it for texts.

    Raises:
        DataError: the tokenizer makes the same tokens of two labels.
    """
    texts = [row_format.completion(label) for label in row_format.labels]
    return told_apart(dict(zip(row_format.labels, answer_ids(texts, tokenizer), strict=True)))


def _classes(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample | None]:
    return [
        _with(source, label=row_format.labels.index(example.label or "")) if source.input_ids else None
        for example, source in zip(examples, encode_sources(examples, tokenizer, max_length), strict=True)
    ]


def _tags(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample | None]:
    numbers = {tag: number for number, tag in enumerate(row_format.labels)}
    made: list[EncodedExample | None] = []
    rows = encode_words([example.words for example in examples], tokenizer, max_length)
    for example, (encoded, firsts) in zip(examples, rows, strict=True):
        tags = [UNTRAINED if word is None else numbers[example.tags[word]] for word in firsts]
        made.append(_with(encoded, tags=tags) if any(encoded.trained) else None)
    return made


def _answers(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat, max_length: int
) -> list[EncodedExample | None]:
    if row_format.kind == "label":
        label_answers(row_format, tokenizer)  # refuses labels that cannot be told apart
    answers = answer_ids([example.completion for example in examples], tokenizer)
    made: list[EncodedExample | None] = []
    for example, source, answer in zip(examples, encode_sources(examples, tokenizer, max_length), answers, strict=True):
        kept = answer[:max_length]
        is_something = bool(source.input_ids) and bool(example.completion.strip())
        made.append(_with(source, answer=kept, cut=len(answer) - len(kept)) if is_something else None)
    return made


_ENCODERS: dict[str, Callable[..., list[EncodedExample | None]]] = {
    "sequence_classification": _classes,
    "token_classification": _tags,
    "seq2seq_lm": _answers,
}


def _with(source: EncodedExample, *, cut: int = 0, **targets: Any) -> EncodedExample:
    return replace(source, cut=source.cut + cut, **targets)


def _places(found: Any, at: int, marks: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return in front of which token each mark of a text stands; tokens put around the text stay outside."""
    own = [place for place, text in enumerate(found.sequence_ids(at)) if text == 0]
    first = own[0] if own else len(Vocabulary.of(tokenizer).front)
    offsets = found["offset_mapping"][at]
    return tuple(first + place for place in token_places(marks, (offsets[place][1] for place in own)))


def _shortened(example: Example, length: Callable[[Example], int], max_length: int) -> Example:
    """Return the example with its row's own texts cut to what fits, or as it is if no cut of them would do."""
    longest = max((end - start for start, end in example.spans), default=0)
    kept = largest_fit(longest, lambda cap: length(example.capped(cap)) <= max_length)
    return example if kept is None or not example.spans else example.capped(kept)


def _needs_spaces(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether words must bring the space before them, to become the tokens that they are in a running text."""

    def ids(words: str | list[str]) -> list[int]:
        options = {"is_split_into_words": True} if isinstance(words, list) else {}
        found: list[int] = tokenizer(words, add_special_tokens=False, verbose=False, **options)["input_ids"]
        return found

    running = ids("a a")
    return ids(["a", "a"]) != running and ids(["a", " a"]) == running
