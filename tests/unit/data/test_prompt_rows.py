"""Rows whose targets are to be predicted: prompts without them, the tokens of training, and files of rows."""

import json

import pytest
from transformers import AutoTokenizer

from peftly.data import (
    Example,
    RowFormat,
    encode_conversation,
    encode_for,
    encode_label_prompts,
    encode_prompt,
    encode_prompts,
    prompt_ids,
    read_prompt_rows,
    row_prompt,
    row_target,
)
from peftly.data.templates import ALPACA

USER, ANSWER, ASK = (
    {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "yo"), ("user", "?"))
)
CHAT = RowFormat("chat", None, "messages")
LABEL = RowFormat("label", "Tweet: {text}\nLabel:", "label", ("a", "b b"))
PAIR = RowFormat("label", "{text}", "label", ("a", "b b"), pair="other")
TAGS = RowFormat("tags", "{words}", "tags", ("O", "X"))
OPTIONAL = RowFormat("label", "{text}[\n{more?}]\nLabel:", "label", ("a", "b b"))
INSTRUCTION = RowFormat("alpaca", ALPACA, "output")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_folder):
    return AutoTokenizer.from_pretrained(tiny_llama_folder)


@pytest.mark.parametrize(
    ("row", "prompt", "target"),
    [
        ({"messages": [USER, ANSWER]}, (USER,), "yo"),
        ({"messages": [USER, ANSWER, ASK]}, (USER, ANSWER, ASK), None),
        ({"messages": [USER, ANSWER, ASK, ANSWER]}, (USER, ANSWER, ASK), "yo"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, (USER,), None),
        ({"messages": [USER, ANSWER], "system": "Be"}, ({"role": "system", "content": "Be"}, USER), "yo"),
        ({"messages": json.dumps([USER, ANSWER])}, (USER,), "yo"),
        ({"conversations": 1, "messages": []}, None, None),
        ({"messages": [ANSWER]}, None, "yo"),
        ({"messages": [{"role": "system", "content": "Be"}]}, None, None),
        ({"messages": None}, None, None),
    ],
)
def test_the_prompt_of_a_conversation_ends_in_front_of_the_last_turn_of_the_assistant(row, prompt, target):
    found = row_prompt(CHAT, row, "row 1")
    assert (found and found.messages) == prompt
    if row["messages"]:
        assert row_target(CHAT, row, "row 1") == target


def test_messages_in_the_prompt_alone_are_a_conversation():
    trl = RowFormat("chat", None, "completion")
    assert row_prompt(trl, {"prompt": [USER]}, "row 1").messages == (USER,)
    assert row_prompt(trl, {"prompt": [USER], "completion": [ANSWER]}, "row 1").messages == (USER,)
    assert row_target(trl, {"prompt": [USER], "completion": [ANSWER]}, "row 1") == "yo"


@pytest.mark.parametrize(
    ("row_format", "row", "prompt"),
    [
        (LABEL, {"text": "late"}, "Tweet: late\nLabel:"),
        (LABEL, {"text": "late", "label": 3.5}, "Tweet: late\nLabel:"),
        (LABEL, {"text": ""}, None),
        (LABEL, {"text": None}, None),
        (LABEL, {}, None),
        (PAIR, {"text": "late", "other": "x"}, "late"),
        (PAIR, {"text": "late"}, None),
        (PAIR, {"text": "late", "other": ""}, "late"),
        (TAGS, {"words": ["late", "again"]}, "late again"),
        (TAGS, {"words": []}, None),
        (INSTRUCTION, {"instruction": "do"}, "Instruction: do\nAnswer:"),
        (INSTRUCTION, {"instruction": "do", "input": "it"}, "Instruction: do\nInput: it\nAnswer:"),
        (INSTRUCTION, {"instruction": None, "input": "it"}, None),
        (OPTIONAL, {"text": "late"}, "late\nLabel:"),
        (OPTIONAL, {"text": "late", "more": None}, "late\nLabel:"),
        (OPTIONAL, {"text": "late", "more": "x"}, "late\nx\nLabel:"),
        (OPTIONAL, {"more": "x"}, None),
        (RowFormat("text", None, "text"), {"text": "Once"}, "Once"),
    ],
)
def test_the_prompt_of_a_row_needs_no_target(row_format, row, prompt):
    found = row_prompt(row_format, row, "row 1")
    assert (found and found.prompt) == prompt


@pytest.mark.parametrize(
    ("row_format", "row", "target"),
    [
        (LABEL, {"text": "late", "label": " a "}, "a"),
        (LABEL, {"text": "late", "label": "Unlabeled"}, None),
        (LABEL, {"text": "late", "label": 0.5}, None),
        (TAGS, {"words": ["late"], "tags": ["X"]}, ("X",)),
        (TAGS, {"words": ["late"], "tags": []}, None),
        (INSTRUCTION, {"instruction": "do", "output": " done "}, "done"),
        (INSTRUCTION, {"instruction": "do"}, None),
    ],
)
def test_a_target_that_cannot_be_compared_is_none(row_format, row, target):
    assert row_target(row_format, row, "row 1") == target


def test_prompts_have_the_tokens_of_training(tokenizer):
    texts = ["late", "the train was late again " * 12, "great service"]
    for max_length in (20, 200):
        rows = [{"text": text, "label": "b b"} for text in texts]
        examples = LABEL.examples(rows)
        trained = encode_for("causal_lm", examples, tokenizer, LABEL, max_length)
        prompts = [LABEL.format_prompt({"text": text}) for text in texts]
        found = encode_label_prompts(prompts, tokenizer, LABEL, max_length)
        for prompt, example in zip(found, trained, strict=True):
            assert prompt.input_ids == example.input_ids[: example.trained.index(True)]
            assert (prompt.num_truncated > 0) == (example.num_truncated > 0)


def test_a_long_prompt_keeps_the_text_of_the_template(tokenizer):
    prompts = [LABEL.format_prompt({"text": text}) for text in ("late", "the train was late again " * 12)]
    short, whole = encode_prompts(prompts, tokenizer)
    assert [short.input_ids, whole.input_ids] == [encode_prompt(prompt.prompt, tokenizer) for prompt in prompts]
    short, cut = encode_prompts(prompts, tokenizer, 20)
    assert (short.num_truncated, len(cut.input_ids)) == (0, 20)
    assert tokenizer.decode(cut.input_ids).endswith("\nLabel:")
    assert cut.num_truncated == len(whole.input_ids) - 20


def test_a_long_conversation_loses_its_oldest_exchanges(tokenizer):
    example = Example(messages=(USER, ANSWER, USER, ANSWER, ASK))
    ids = prompt_ids(example.messages, tokenizer)
    assert encode_conversation(example, tokenizer).input_ids == ids
    shorter = encode_conversation(example, tokenizer, len(ids) - 1)
    assert shorter.input_ids == prompt_ids([USER, ANSWER, ASK], tokenizer)
    assert shorter.num_truncated == len(ids) - len(shorter.input_ids)
    assert encode_conversation(example, tokenizer, 5) is None


def test_several_files_are_joined_and_a_data_set_gives_its_test_split(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    rows = read_prompt_rows([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert [row["text"] for row in rows.rows] == ["a", "b"]
    splits = {"train": [{"text": "a"}], "validation": [{"text": "b"}], "test": [{"text": "c"}]}
    assert list(read_prompt_rows(splits).rows) == [{"text": "c"}]
