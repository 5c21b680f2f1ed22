"""Named row formats: the exact prompt, and the trained target with its end."""

import pytest
from data_tokenizers import family
from typer.testing import CliRunner

from peftly.cli import app
from peftly.cli.options import Format
from peftly.data import DataConfig, load_data
from peftly.data.presets import PRESETS
from peftly.errors import ConfigError, DataError

INSTRUCTION = {"instruction": "写一首诗", "output": "春眠不觉晓"}
BOTH = {"instruction": "翻译", "input": "早", "output": "morning"}
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
ALPACA = "Below is an instruction that describes a task"
TASK = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LONGER = [{"role": "system", "content": "Be brief."}, *TALK, {"role": "user", "content": "Bye"}, TALK[1]]


def trained(preset, row, **settings):
    """Return the text of an encoded row, and the text of its trained tokens."""
    tokenizer = family("byte_level_start")
    (encoded,) = load_data([row], tokenizer, format=preset, validation_fraction=0, **settings).train.encoded
    answer = [token for token, is_trained in zip(encoded.input_ids, encoded.trained, strict=True) if is_trained]
    return tokenizer.decode(encoded.input_ids), tokenizer.decode(answer)


@pytest.mark.parametrize(
    ("preset", "row", "prompt", "answer"),
    [
        ("alpaca", INSTRUCTION, f"<s>{ALPACA}. {TASK}写一首诗\n\n### Response:\n", "春眠不觉晓</s>"),
        (
            "alpaca",
            BOTH,
            f"<s>{ALPACA}, paired with an input that provides further context. {TASK}翻译\n\n"
            "### Input:\n早\n\n### Response:\n",
            "morning</s>",
        ),
        ("alpaca-human", INSTRUCTION, "<s>Human: 写一首诗\n\nAssistant:", " 春眠不觉晓</s>"),
        ("alpaca-human", BOTH, "<s>Human: 翻译\n早\n\nAssistant:", " morning</s>"),
        (
            "alpaca-human",
            {"question": "Who?", "context": "It was I.", "answer": "I"},
            "<s>Human: Who?\nIt was I.\n\nAssistant:",
            " I</s>",
        ),
        ("belle", INSTRUCTION, "<s>Human: 写一首诗\n\nAssistant:", "春眠不觉晓</s>"),
        ("firefly", {"kind": "诗", "input": "写诗", "target": "好"}, "<s>写诗</s>", "好</s>"),
        ("llama-2", BOTH, "<s>[INST] 翻译\n早 [/INST]", " morning</s>"),
        ("llama-2", {**BOTH, "system": "Be."}, "<s>[INST] <<SYS>>\nBe.\n<</SYS>>\n\n翻译\n早 [/INST]", " morning</s>"),
        ("vicuna", BOTH, f"<s>{SYSTEM} USER: 翻译\n早 ASSISTANT:", " morning</s>"),
        (
            "twitter-complaints",
            {"Tweet text": "@x my line", "ID": "1", "Label": 2, "text_label": "complaint"},
            "<s>Tweet text : @x my line Label :",
            " complaint</s>",
        ),
        ("twitter-complaints", {"text": "thanks", "label": "no"}, "<s>Tweet text : thanks Label :", " no</s>"),
    ],
)
def test_prompt_and_answer(preset, row, prompt, answer):
    assert trained(preset, row) == (prompt + answer, answer)


@pytest.mark.parametrize(
    ("preset", "messages", "text", "answers"),
    [
        (
            "chatml",
            TALK,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
            "Hello<|im_end|>",
        ),
        (
            "llama-2",
            LONGER,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST] Hello </s>",
            " Hello </s> Hello </s>",
        ),
        (
            "vicuna",
            LONGER,
            "<s>Be brief. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT: Hello</s>",
            " Hello</s> Hello</s>",
        ),
        ("vicuna", TALK, f"<s>{SYSTEM} USER: Hi ASSISTANT: Hello</s>", " Hello</s>"),
    ],
)
def test_conversations(preset, messages, text, answers):
    assert trained(preset, {"messages": messages}) == (text, answers)


def test_every_preset_has_a_test():
    tested = {case[0] for test in (test_prompt_and_answer, test_conversations) for case in test.pytestmark[0].args[1]}
    assert tested == set(PRESETS)
    (option,) = Format.__metadata__
    assert all(name in option.help for name in PRESETS)


@pytest.mark.parametrize(
    ("preset", "row", "message"),
    [
        (
            "alpaca-human",
            {"text": "a", "label": "b"},
            "train: data.format alpaca-human reads instruction|prompt|question|query + input|context and learns "
            "output|response|answer|completion; the rows have 'text', 'label'; rename the fields, or give a template "
            "and a target",
        ),
        (
            "chatml",
            INSTRUCTION,
            "train: data.format chatml reads conversations; the rows have 'instruction', 'output'; rename the fields, "
            "or give a template and a target",
        ),
    ],
)
def test_rows_that_do_not_fit(preset, row, message):
    with pytest.raises(DataError) as caught:
        trained(preset, row)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "alpaka"}, "there is no such format; there are alpaca, alpaca-human, belle, "),
        ({"format": "alpaca", "template": "{a}"}, "a format has its own template, and data.template is given"),
        ({"format": "alpaca", "chat_template": "{{ a }}"}, "data.format has its own templates; leave out one of them"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(train="a.jsonl", **settings)


def test_another_target():
    row = {"Tweet text": "@x my line", "Label": 1, "mood": "angry"}
    assert trained("twitter-complaints", row, target="mood")[1] == " angry</s>"


def test_the_command_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": "b"}\n')
    result = CliRunner().invoke(app, ["inspect", str(path), "--format", "alpaka", "--base", "x"])
    assert result.exit_code == 2
    assert "data.format: there is no such format; there are alpaca, " in result.output


def test_rows_of_a_named_format_get_its_name():
    """The error named a template alone."""
    with pytest.raises(DataError, match="give --format twitter-complaints or give a template and a target"):
        load_data([{"ID": "1", "Tweet text": "late", "Label": "complaint"}], family("byte_level_start"))
