"""Texts that an encoder reads, as token ids: one text, a pair of texts, or a text that is given as words."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from peftly.data.text_findings import Findings, TextChecks, without_end, without_start
from peftly.data.truncation import fitting_characters
from peftly.data.types import EncodedExample, Example
from peftly.data.vocabulary import Vocabulary, check_has_offsets, token_positions
from peftly.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode_sources", "encode_words"]


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
    if not examples:
        return []
    is_pair = any(example.pair is not None for example in examples)
    num_special = tokenizer.num_special_tokens_to_add(pair=is_pair)
    if is_pair and num_special == tokenizer.num_special_tokens_to_add(pair=False):
        examples = [replace(example, prompt=f"{example.prompt}\n{example.pair}", pair=None) for example in examples]
        is_pair = False
    vocabulary = Vocabulary.of(tokenizer)
    examples, findings = _bare_sources(examples, vocabulary)
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

    full = tokenize(examples)
    checks = TextChecks(vocabulary)
    sources = []
    for index, (example, ids) in enumerate(zip(examples, full["input_ids"], strict=True)):
        encoding, position = full, index
        if max_length is not None and len(ids) > max_length:
            count = partial(_num_tokens, tokenize, example)
            char_to_token = partial(full.char_to_token, index) if tokenizer.is_fast else None
            size = None if is_pair else fitting_characters(example.spans, len(ids), max_length, char_to_token, count)
            shorter = (
                _first_tokens(example, full, index, max_length, tokenizer)
                if size is None
                else example.truncate_fields(size)
            )
            encoding, position = tokenize([shorter], truncation=True, max_length=max_length), 0
            example = shorter
        source = _source(encoding, position, len(ids), example, tokenizer)
        found = findings.get(index, ()) + checks.source_findings(examples[index], ids, num_special)
        if len(ids) <= num_special:
            found += (("text_without_tokens", ascii(examples[index].prompt[:_SHOWN])),)
        sources.append(replace(source, findings=found) if found else source)
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
    if not texts:
        return []
    checks = TextChecks(Vocabulary.of(tokenizer))
    needs_spaces = _needs_spaces(tokenizer)
    # A blank is no word: with a space in front, it would get the token of the space.
    split = [[word if word.strip() else "" for word in text] for text in texts]
    if needs_spaces:
        split = [[f" {word}" if index and word else word for index, word in enumerate(text)] for text in split]
    full = tokenizer(split, is_split_into_words=True, verbose=False)
    encoded = []
    for index, (text, words) in enumerate(zip(texts, split, strict=True)):
        full_ids, tokens = full["input_ids"][index], full[index]
        if max_length is not None and len(full_ids) > max_length:
            tokens = tokenizer([words], is_split_into_words=True, truncation=True, max_length=max_length)[0]
        first_tokens = [
            word if word != before else None
            for before, word in zip([None, *tokens.word_ids], tokens.word_ids, strict=False)
        ]
        example = EncodedExample(
            tokens.ids,
            [word is not None for word in first_tokens],
            len(full_ids) - len(tokens.ids),
            token_type_ids=tokens.type_ids if "token_type_ids" in full else None,
            findings=_words_without_token(text, full.word_ids(index)) + checks.input_findings(" ".join(text), full_ids),
        )
        encoded.append((example, first_tokens))
    return encoded


def _words_without_token(words: Sequence[str], word_ids: Sequence[int | None]) -> Findings:
    """Return the finding of words without a token, such as blanks; `word_ids` are the words of all tokens."""
    with_token = set(word_ids)
    without = [word for index, word in enumerate(words) if index not in with_token]
    return (("words_without_token", ", ".join(ascii(word) for word in without[:3])),) if without else ()


def _bare_sources(examples: Sequence[Example], vocabulary: Vocabulary) -> tuple[list[Example], dict[int, Findings]]:
    """Return examples without the special tokens around their texts that the tokenizer adds again.

    Returns:
        The examples, and the findings of the examples that had such special tokens, by the index of the example.
    """
    front_text, back_text = vocabulary.front_text, vocabulary.back_text
    bare, findings = [], {}
    for index, original in enumerate(examples):
        example, found = without_start(original, front_text) if original.prompt else (original, ())
        field = "prompt" if example.pair is None else "pair"
        text = str(getattr(example, field))
        shorter, found_end = without_end(text, back_text)
        if found_end:
            spans = tuple((min(start, len(shorter)), min(end, len(shorter))) for start, end in example.spans)
            changes = {field: shorter} if field == "pair" else {field: shorter, "spans": spans}
            example = replace(example, **changes)
        if found or found_end:
            findings[index] = found + found_end
        bare.append(example)
    return bare, findings


def _source(
    encoding: Any, index: int, full_length: int, example: Example, tokenizer: "PreTrainedTokenizerBase"
) -> EncodedExample:
    """Return one text of an encoding as an encoded example without a target."""
    ids = encoding["input_ids"][index]
    return EncodedExample(
        ids,
        [False] * len(ids),
        full_length - len(ids),
        token_type_ids=encoding["token_type_ids"][index] if "token_type_ids" in encoding else None,
        prompt_positions=_prompt_positions(encoding, index, example.virtual_token_offsets, tokenizer),
    )


def _num_tokens(tokenize: Callable[..., Any], example: Example, max_characters: int) -> int:
    """Return the number of tokens of an example with its fields cut to a number of characters."""
    return len(tokenize([example.truncate_fields(max_characters)])["input_ids"][0])


_SHOWN = 20
"""Number of characters of a text that a finding shows."""

_MARGIN = 64
"""Number of tokens that a text keeps beyond the maximum, so that its end does not change the tokens before the cut."""


def _first_tokens(
    example: Example, encoding: Any, index: int, max_length: int, tokenizer: "PreTrainedTokenizerBase"
) -> Example:
    """Return an example whose long texts end some tokens behind the last ones that can stay.

    The tokenizer, which cuts the rest, is then not given a long text again.
    """
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return example
    sequence_ids, changes = encoding.sequence_ids(index), dict[str, Any]()
    for field, sequence in (("prompt", 0), ("pair", 1)):
        tokens = [token for token, number in enumerate(sequence_ids) if number == sequence]
        if len(tokens) > max_length + _MARGIN:
            end = encoding.token_to_chars(index, tokens[max_length + _MARGIN]).end
            changes[field] = getattr(example, field)[:end]
    return replace(example, **changes)


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


def _needs_spaces(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether separate words need a leading space to get the tokens that they have in a running text."""

    def ids(words: str | list[str]) -> list[int]:
        options = {"is_split_into_words": True} if isinstance(words, list) else {}
        input_ids: list[int] = tokenizer(words, add_special_tokens=False, verbose=False, **options)["input_ids"]
        return input_ids

    running_text = ids("a a")
    return ids(["a", "a"]) != running_text and ids(["a", " a"]) == running_text
