"""Tokens as readable units: whole characters in every script, with the tokens of each."""

import pytest
from data_tokenizers import FAMILIES, LOSSLESS, family

from peftly.data import EncodedExample, Example
from peftly.report import answer_units, example_units, raw_units, visible

TEXT = "你好,世界 مرحبا 👩‍👩‍👧‍👦 e\u0301 नमस्ते 🇩🇪👍🏽 def f(x):\n\treturn  x"
CHARACTERS = ["你", "好", "世", "界", "👩‍👩‍👧‍👦", "e\u0301", "स्ते", "🇩🇪", "👍🏽"]


def units_of(text: str, name: str, trained_from: int | None = None):
    ids = family(name)(text)["input_ids"]
    start = len(ids) if trained_from is None else trained_from
    trained = [index >= start for index in range(len(ids))]
    return ids, example_units(EncodedExample(ids, trained), family(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_units_hold_all_tokens_in_order(name):
    ids, units = units_of(TEXT, name)
    assert [token for unit in units for token in unit.ids] == ids
    assert not any("\ufffd" in unit.text for unit in units)


@pytest.mark.parametrize("name", LOSSLESS)
def test_units_are_whole_characters(name):
    ids, units = units_of(TEXT, name)
    texts = [unit.text.strip(" ") for unit in units]
    assert [character for character in CHARACTERS if character not in texts] == []
    assert "".join(unit.text for unit in units if unit.kind == "text").strip() == TEXT
    family_unit = units[texts.index("👩‍👩‍👧‍👦")]
    assert len(family_unit.ids) == 25  # bytes of the four people and the three joiners
    assert len(units) < len(ids)


def test_a_character_that_ends_in_the_middle_is_shown_as_such():
    ids = family("byte_level")("世")["input_ids"]
    units = example_units(EncodedExample(ids[:2], [False] * 2), family("byte_level"))
    assert [unit.text for unit in units] == ["\ufffd", "\ufffd"]


def test_trained_and_untrained_tokens_are_never_in_one_unit():
    ids, _ = units_of("世界", "byte_level")
    _, units = units_of("世界", "byte_level", trained_from=4)
    assert [(len(unit.ids), unit.trained) for unit in units] == [(3, False), (1, False), (1, True), (1, True)]
    combined = family("byte_level")("e\u0301")["input_ids"]
    split = example_units(EncodedExample(combined, [False, True, True]), family("byte_level"))
    assert [unit.trained for unit in split] == [False, True]
    assert len(ids) == 6


def test_special_tokens_tags_answers_and_virtual_tokens():
    tokenizer = family("byte_level_start")
    ids = tokenizer("a b")["input_ids"]
    tagged = EncodedExample(ids, [False, True, False, True], tags=[-100, 1, -100, 0])
    units = example_units(tagged, tokenizer, ["O", "B-PER"])
    assert [(unit.kind, unit.tag) for unit in units] == [
        ("special", None),
        ("text", "B-PER"),
        ("text", None),
        ("text", "O"),
    ]
    assert units[0].text == "<s>"
    marked = EncodedExample(ids, [False] * len(ids), prompt_positions=(1, 1, 4))
    assert [unit.text for unit in example_units(marked, tokenizer)] == [
        "<s>",
        "{prompt:2}",
        "a",
        " ",
        "b",
        "{prompt:1}",
    ]
    (label,) = answer_units(EncodedExample(ids, [False] * len(ids), label=1), tokenizer, ["no", "yes"])
    assert (label.text, label.kind, label.trained) == ("yes", "label", True)
    answer = answer_units(EncodedExample(ids, [False] * len(ids), answer=ids), tokenizer)
    assert all(unit.trained for unit in answer)
    dropped = Example(messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": None}))
    assert [unit.text for unit in raw_units(dropped)] == ["user: hi\n", "assistant: \n"]
    assert [unit.text for unit in raw_units(Example("a", ""))] == ["a"]


def test_characters_that_cannot_be_seen_are_marked():
    assert visible("a b") == "a b"
    assert visible("a  b ") == "a··b·"
    assert visible(" ") == "·"
    assert visible("a\tb\nc\r") == "a⇥\tb⏎\nc␍"
    assert visible("\u202eevil\u200b\u00a0\x1b") == "⟨202E⟩evil⟨200B⟩⟨00A0⟩⟨001B⟩"
    assert visible("👩‍👩‍👧 مرحبا می‌خواهم") == "👩‍👩‍👧 مرحبا می‌خواهم"
