"""Conversations under the chat templates of public model families: what is trained, and what generation starts from."""

import copy
from functools import cache

import pytest
from chat_family import CONVERSATIONS, Refused
from chat_templates import FAMILIES
from data_tokenizers import family
from transformers import PreTrainedTokenizerFast

from peftly.data import Example, RowFormat, chat_ends, encode, prompt_ids
from peftly.data.encoding import encode_all
from peftly.errors import DataError

TOKENIZERS = ("byte_level_start", "whole_text", "whole_text_prefix")
"""Byte-level BPE, and BPE with spaces as characters without and with a space in front; all add a start token."""

CASES = [(name, conversation) for name in FAMILIES for conversation in CONVERSATIONS]


@cache
def tokenizer_of(name: str, kind: str) -> PreTrainedTokenizerFast:
    model, tokenizer = FAMILIES[name], copy.deepcopy(family(kind))
    tokenizer.add_tokens(list(model.added))
    tokenizer.add_special_tokens({"additional_special_tokens": list(model.special), "eos_token": model.eos})
    if model.bos:
        tokenizer.add_special_tokens({"bos_token": model.bos})
    tokenizer.chat_template = model.template
    return tokenizer


def example_of(conversation: str) -> Example:
    return RowFormat("chat", None, "messages").examples([CONVERSATIONS[conversation]])[0]


def marked_text(encoded, tokenizer) -> str:
    """The text of a sequence with its trained parts in double brackets."""
    text, before = "", 0
    ends = [i for i in range(1, len(encoded.trained)) if encoded.trained[i] != encoded.trained[i - 1]]
    for end in [*ends, len(encoded.trained)]:
        length = len(tokenizer.decode(encoded.input_ids[:before]))
        part = tokenizer.decode(encoded.input_ids[:end])[length:]
        text += f"[[{part}]]" if encoded.trained[end - 1] else part
        before = end
    return text


def starts_of(encoded) -> list[int]:
    trained = encoded.trained
    return [index for index in range(1, len(trained)) if trained[index] and not trained[index - 1]]


def bare(text: str, kind: str) -> str:
    """A text without what the tokenizer does not restore."""
    text = text if kind == "byte_level_start" else text.replace("▁", " ")
    return text.replace(" ", "") if kind == "whole_text_prefix" else text


def turns(text: str) -> list[tuple[str, str]]:
    """The trained parts of a text, each with the text before it."""
    parts = text.replace("]]]", "]\0").replace("]]", "\0").replace("[[[", "\1[").replace("[[", "\1").split("\1")
    return [
        ("".join(parts[: number + 1]).replace("\0", ""), part.split("\0")[0]) for number, part in enumerate(parts[1:])
    ]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("name", "conversation"), CASES)
def test_exactly_the_words_of_the_assistant_and_its_end_are_trained(name, conversation, kind):
    model, tokenizer, example = FAMILIES[name], tokenizer_of(name, kind), example_of(conversation)
    expected = getattr(model, conversation)
    if isinstance(expected, Refused):
        with pytest.raises(DataError) as caught:
            encode_all([example], tokenizer, 1000, location=lambda _: "rows.jsonl: line 3")
        assert str(caught.value).startswith("rows.jsonl: line 3: ")
        assert expected.reason in str(caught.value)
        return
    encoded = encode(example, tokenizer, 1000)
    sequences = [encoded, *encoded.others]
    texts = (expected,) if isinstance(expected, str) else expected
    marked = [bare(marked_text(one, tokenizer), kind) for one in sequences]
    expected_turns = sorted(turn for text in texts for turn in turns(text))
    assert sorted(turn for text in marked for turn in turns(text)) == [
        (bare(head, kind), bare(words, kind)) for head, words in expected_turns
    ]
    if kind == "byte_level_start":  # others can join the last character of a prompt with the first of a turn
        assert marked == list(texts)
    kinds = {kind for kind, _ in encoded.findings}
    assert ("several_sequences" in kinds) == (len(sequences) > 1)
    assert ("unended_turns" in kinds) == (not (model.stop_ids or model.stop_texts))
    findings = {"tools": model.findings, "system": model.system_findings}.get(conversation, ())
    assert kinds - {"several_sequences", "unended_turns"} == set(findings)
    messages = example.messages
    prompts = [
        prompt_ids(messages[:index], tokenizer, example.tools)
        for index in range(1, len(messages))
        if messages[index]["role"] == "assistant"
    ]
    heads = [tokenizer(head, add_special_tokens=False)["input_ids"] for head, _ in expected_turns]
    found = [one.input_ids[:start] for one in sequences for start in starts_of(one)]
    assert sorted(found) == sorted(heads)
    assert all(head in prompts for head in found)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_stops_where_a_turn_ends(name):
    model, tokenizer = FAMILIES[name], tokenizer_of(name, "byte_level_start")
    ends = chat_ends(tokenizer)
    assert tuple(tokenizer.convert_ids_to_tokens(list(ends.ids))) == model.stop_ids
    assert ends.texts == model.stop_texts


def test_there_are_twenty_families_and_more():
    assert len(FAMILIES) >= 35
