"""Options of `peftly generate` and `peftly chat` become the prompt that a run was trained with, or one clear line."""

import pytest
from tiny import tiny_model
from tiny_tasks import opened as opened_task

from peftly.cli.prompts import Inputs, input_options, prompt_of, read_fields
from peftly.data import Example, RowFormat
from peftly.data.templates import ALPACA
from peftly.errors import ConfigError
from peftly.runs import OpenRun

FORMATS = {
    "one field": RowFormat("completion", "Q: {question}\nA:", "answer"),
    "two fields": RowFormat("completion", "{context}\nQ: {the question}\nA:", "answer"),
    "alpaca": RowFormat("alpaca", ALPACA, "output"),
    "label": RowFormat("label", "Tweet: {text}\nLabel:", "label", ("a", "b")),
    "chat": RowFormat("chat", None, "messages"),
    "text": RowFormat("text", None, "text"),
    "pair": RowFormat("label", "{premise}", "label", ("a", "b"), "hypothesis"),
    "tags": RowFormat("tags", "{words}", "tags", ("O", "X")),
}


class Tokenizer:
    chat_template = "{{ messages }}"


def opened(kind: str | None) -> OpenRun:
    return OpenRun(tiny_model("llama"), Tokenizer(), FORMATS.get(kind))


@pytest.mark.parametrize(
    ("kind", "inputs", "prompt"),
    [
        ("one field", Inputs("Why?"), "Q: Why?\nA:"),
        ("one field", Inputs(field={"question": "Why?"}), "Q: Why?\nA:"),
        ("two fields", Inputs(field={"context": "Rain.", "the question": "Wet?"}), "Rain.\nQ: Wet?\nA:"),
        ("two fields", Inputs("Wet?", field={"context": "Rain."}), "Rain.\nQ: Wet?\nA:"),
        ("two fields", Inputs(prompt="Rain."), "Rain."),
        ("alpaca", Inputs("Sum up."), "Instruction: Sum up.\nAnswer:"),
        ("alpaca", Inputs("Sum up.", field={"input": "1 2"}), "Instruction: Sum up.\nInput: 1 2\nAnswer:"),
        ("label", Inputs("late"), "Tweet: late\nLabel:"),
        ("text", Inputs("Once"), "Once"),
        ("tags", Inputs("Bob sat"), "Bob sat"),
        ("tags", Inputs(field={"words": "Bob sat"}), "Bob sat"),
        ("alpaca", Inputs(field={"instruction": "Sum up.", "input": "1"}), "Instruction: Sum up.\nInput: 1\nAnswer:"),
        ("label", Inputs(field={"text": "late"}), "Tweet: late\nLabel:"),
        ("text", Inputs(field={"text": "Once"}), "Once"),
        ("chat", Inputs("Hi"), [{"role": "user", "content": "Hi"}]),
        ("chat", Inputs("Hi", system="Be"), [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]),
        ("chat", Inputs(prompt="raw"), "raw"),
    ],
)
def test_a_prompt_is_the_one_of_training(kind, inputs, prompt):
    found = prompt_of(opened(kind), inputs, is_base=False)
    assert (found.prompt if isinstance(found, Example) else found) == prompt


def test_a_text_for_a_base_is_a_message_for_its_chat_template():
    assert prompt_of(opened(None), Inputs("Hi"), is_base=True) == [{"role": "user", "content": "Hi"}]


def test_a_second_text(task_base):
    model, tokenizer = opened_task(task_base("bert"), task="sequence_classification", labels=["a", "b"])
    pair = OpenRun(model, tokenizer, FORMATS["pair"])
    wanted = Example("late", spans=(), pair="again")
    assert prompt_of(pair, Inputs("late", pair="again"), is_base=False) == wanted
    assert prompt_of(pair, Inputs(field={"premise": "late", "hypothesis": "again"}), is_base=False) == wanted
    assert prompt_of(OpenRun(model, tokenizer), Inputs("late", pair="again"), is_base=True) == wanted
    assert prompt_of(pair, Inputs(prompt="raw", pair="again"), is_base=False) == Example("raw", pair="again")


@pytest.mark.parametrize(
    ("kind", "inputs", "message"),
    [
        ("two fields", Inputs("Wet?"), """give --field context="…" --field 'the question'="…\""""),
        ("two fields", Inputs(field={"context": "a"}), "give --field context="),
        ("two fields", Inputs(field={"contxt": "a"}), "--field contxt is no field of this run, which learned the temp"),
        ("two fields", Inputs("a", field={"context": "b", "the question": "c"}), "give --field context="),
        ("one field", Inputs("a", pair="b"), "--pair does not fit: this run learned the template 'Q: {question}\\nA:'"),
        ("one field", Inputs("a", system="b"), "--system does not fit: this run learned the template"),
        ("alpaca", Inputs(field={"input": "a"}), 'give --text "…"'),
        ("pair", Inputs("a"), 'and the second text \'hypothesis\'; give --text "…" --pair "…"'),
        (
            "chat",
            Inputs("a", field={"b": "c"}),
            '--field does not fit: this model answers conversations: give --text "…"',
        ),
        ("chat", Inputs(prompt="a", system="b"), "--system does not fit: --prompt is a complete prompt"),
        ("text", Inputs("a", system="b"), "--system does not fit: this run learned plain text"),
        (None, Inputs("a"), '--prompt "…"'),
    ],
)
def test_options_that_do_not_fit_the_run(kind, inputs, message):
    with pytest.raises(ConfigError) as error:
        prompt_of(opened(kind), inputs, is_base=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "chat"])
def test_the_options_that_a_message_advises_fit(kind):
    import shlex

    words = shlex.split(input_options(FORMATS[kind]))
    options = list(zip(words[::2], words[1::2], strict=True))
    given = {option.lstrip("-"): value for option, value in options if option != "--field"}
    fields = read_fields([value for option, value in options if option == "--field"])
    prompt_of(opened(kind), Inputs(**given, field=fields), is_base=False)


@pytest.mark.parametrize(("options", "reason"), [(["a"], "NAME=VALUE"), (["a=1", "a=2"], "given twice")])
def test_fields_that_cannot_be_read(options, reason):
    with pytest.raises(ConfigError, match=reason):
        read_fields(options)


def test_a_value_may_have_an_equals_sign():
    assert read_fields(["sum=1+1=2", "empty="]) == {"sum": "1+1=2", "empty": ""}
