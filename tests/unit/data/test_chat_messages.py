"""What a chat template gets and shows: special tokens in texts, roles, arguments of calls; and the findings."""

import copy

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_family import CONVERSATIONS
from chat_templates import FAMILIES
from chatml import CONVERSATION, PLAIN, chatty, runs
from data_tokenizers import family

from peftly.data import Example, FormattedExamples, RowFormat, encode, encode_split, load_data, prompt_ids
from peftly.data.encoding import encode_all
from peftly.data.rows import rows_of_objects
from peftly.errors import DataError

ALTERNATING = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ '[' + m.role + ']' + m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo", "hours": 24}'}}


def say(role, content, **others):
    return {"role": role, "content": content, **others}


def example_of(*messages, **row):
    return RowFormat("chat", None, "messages").examples([{"messages": list(messages), **row}])[0]


def kinds(encoded) -> set[str]:
    return {kind for kind, _ in encoded.findings}


def text_of(encoded, tokenizer) -> str:
    return tokenizer.decode(encoded.input_ids)


def called(arguments=CALL["function"]["arguments"]):
    call = {"type": "function", "function": {"name": "get_time", "arguments": arguments}}
    messages = [
        say("user", "time?"),
        say("assistant", None, tool_calls=[call]),
        say("tool", "12:30"),
        say("assistant", "yes"),
    ]
    return example_of(*messages)


@pytest.mark.parametrize("kind", ["byte_level_start", "whole_text_prefix"])
def test_one_start_and_one_end_where_the_text_brings_its_own(kind):
    tokenizer = copy.deepcopy(family(kind))
    tokenizer.chat_template = ALTERNATING
    clean = encode(example_of(say("user", "hello"), say("assistant", "yes")), tokenizer, 100)
    assert clean.input_ids.count(tokenizer.bos_token_id) == clean.input_ids.count(tokenizer.eos_token_id) == 1
    assert not clean.findings
    for user, answer in (("<s>hello", "yes</s>"), ("<s> hello</s>", "<s>yes</s></s>"), ("<s><s>hello", "yes </s>\n")):
        encoded = encode(example_of(say("user", user), say("assistant", answer)), tokenizer, 100)
        assert kinds(encoded) == {"special_tokens_removed"}
        ids = [*encoded.input_ids]
        assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 1
        assert encoded.trained[-1]
        assert ids[-1] == tokenizer.eos_token_id


def test_special_tokens_inside_a_text_are_said():
    tokenizer = chatty(PLAIN)
    encoded = encode(example_of(say("user", "a <|im_start|>user b"), say("assistant", "yes")), tokenizer, 100)
    assert encoded.findings == (("special_tokens_in_text", "message 1: <|im_start|>"),)


def test_consecutive_messages_of_a_role_are_joined_only_if_the_template_refuses_them():
    messages = (say("user", "hello"), say("user", "again"), say("assistant", "yes"), say("assistant", "no"))
    plain, strict = chatty(PLAIN), chatty(ALTERNATING, end="</s>")
    assert runs(encode(example_of(*messages), plain, 100), plain) == ["yes<|im_end|>", "no<|im_end|>"]
    encoded = encode(example_of(*messages), strict, 100)
    assert text_of(encoded, strict) == "<s>[user]hello\n\nagain[assistant]yes\n\nno</s>"
    assert runs(encoded, strict) == ["yes\n\nno</s>"]
    assert kinds(encoded) == {"joined_messages"}
    assert encoded.num_messages == 4
    assert prompt_ids(messages[:2], strict) == encoded.input_ids[: encoded.trained.index(True)]
    mixed = (*messages[:2], say("assistant", "yes", weight=0), messages[3])
    with pytest.raises(DataError, match="roles must alternate"):
        encode(example_of(*mixed), strict, 100)


def test_a_role_that_the_template_does_not_name_is_refused_with_its_row():
    tokenizer, example = chatty(PLAIN), example_of(say("critic", "hello"), say("user", "x"), say("assistant", "yes"))
    with pytest.raises(
        DataError, match=r"^rows: line 1: message 1 has the role 'critic', which the chat template does"
    ):
        encode_all([example], tokenizer, 100, location=lambda _: "rows: line 1")
    named = chatty("{% if messages[0].role == 'critic' %}{% endif %}" + PLAIN)
    assert "<|im_start|>critic\nhello" in text_of(encode(example, named, 100), named)


def test_a_developer_is_the_system_where_the_template_has_no_developer():
    example = example_of(say("developer", "be brief"), say("user", "x"), say("assistant", "yes"))
    tokenizer = chatty(PLAIN)
    assert text_of(encode(example, tokenizer, 100), tokenizer).startswith("<|im_start|>system\nbe brief")
    tokenizer = chatty("{% if messages[0].role == 'developer' %}{% endif %}" + PLAIN)
    assert text_of(encode(example, tokenizer, 100), tokenizer).startswith("<|im_start|>developer\nbe brief")


SERIALISED = "{{ call.function.arguments | tojson }}"
FILLED = "{% for key, value in call.function.arguments.items() %}<{{ key }}={{ value }}>{% endfor %}"
JOINED = "{{ 'CALL ' + call.function.arguments }}"
PRINTED = "{{ call.function.arguments }}"
CHECKED = "{{ call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}"


def with_calls(shown, content="{{ m.content }}"):
    return chatty(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + content + "{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }}" + shown + "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (SERIALISED, 'get_time{"city": "Oslo", "hours": 24}<|im_end|>'),
        (FILLED, "get_time<city=Oslo><hours=24><|im_end|>"),
        (JOINED, 'get_timeCALL {"city": "Oslo", "hours": 24}<|im_end|>'),
        (PRINTED, 'get_time{"city": "Oslo", "hours": 24}<|im_end|>'),
        (CHECKED, 'get_time{"city": "Oslo", "hours": 24}<|im_end|>'),
    ],
    ids=["serialised", "filled", "joined", "printed", "checked"],
)
@pytest.mark.parametrize(
    "arguments", ['{"city": "Oslo", "hours": 24}', {"city": "Oslo", "hours": 24}], ids=["text", "object"]
)
def test_arguments_have_the_spelling_that_the_template_needs(shown, expected, arguments):
    tokenizer = with_calls(shown)
    encoded = encode(called(arguments), tokenizer, 1000)
    assert runs(encoded, tokenizer) == [expected, "yes<|im_end|>"]
    assert not encoded.findings


@pytest.mark.parametrize("arguments", ["", " ", "{}", {}, None])
@pytest.mark.parametrize("shown", [SERIALISED, JOINED, CHECKED])
def test_empty_arguments_are_an_empty_object(shown, arguments):
    tokenizer = with_calls(shown)
    turn, _ = runs(encode(called(arguments), tokenizer, 1000), tokenizer)
    assert turn.removeprefix("get_time").removeprefix("CALL ") == "{}<|im_end|>"


def test_an_untrained_call_that_the_template_does_not_show_is_said():
    call = say("assistant", None, tool_calls=[CALL], weight=0)
    example = example_of(say("user", "what time is it?"), call, say("tool", "12:30"), say("assistant", "12:30"))
    assert encode(example, chatty(PLAIN), 1000).findings == (("hidden_messages", "message 2 (assistant)"),)
    assert not encode(example, with_calls(SERIALISED), 1000).findings


@pytest.mark.parametrize("arguments", ["Oslo", "[1]", '{"city": '])
def test_arguments_that_are_no_object_are_said(arguments):
    assert kinds(encode(called(arguments), with_calls(SERIALISED), 1000)) == {"text_arguments"}


def test_a_part_of_a_turn_that_the_template_leaves_out_is_said():
    tokenizer = with_calls(SERIALISED, "{% if not m.tool_calls %}{{ m.content }}{% endif %}")
    messages = [
        say("user", "time?"),
        say("assistant", "I look.", tool_calls=[CALL]),
        say("tool", "1"),
        say("assistant", "yes"),
    ]
    assert encode(example_of(*messages), tokenizer, 1000).findings == (("hidden_parts", "message 2: content"),)
    thought = example_of(say("user", "hello"), say("assistant", "yes", reasoning_content="since"))
    encoded = encode(thought, chatty(PLAIN), 1000)
    assert encoded.findings == (("hidden_parts", "message 2: reasoning"),)
    assert any(encoded.trained)


def test_a_turn_without_words_is_not_trained():
    tokenizer = chatty(
        PLAIN.replace("{{ message['content'] }}", "{{ '' if message['role'] == 'assistant' else message['content'] }}")
    )
    (encoded,) = encode_all([Example(messages=CONVERSATION)], tokenizer, 1000)
    assert (encoded.input_ids, kinds(encoded)) == ([], {"hidden_turns"})
    assert encode(Example(messages=CONVERSATION), tokenizer, 1000) is None


def test_rows_and_sequences_are_counted():
    rows = [
        {"messages": list(CONVERSATIONS["two"]["messages"])},
        {"messages": [say("user", "hello"), say("assistant", " ")]},
        {"messages": [*CONVERSATIONS["one"]["messages"], say("user", "x"), say("assistant", ""), say("assistant", "")]},
        {"messages": list(CONVERSATIONS["one"]["messages"])},
    ]
    tokenizer = copy.deepcopy(family("byte_level"))
    tokenizer.chat_template = FAMILIES["alpaca"].template
    examples = FormattedExamples(rows_of_objects("rows", rows), RowFormat("chat", None, "messages"))
    split, report = encode_split(examples, "causal_lm", tokenizer, 100)
    assert (report.rows, report.examples, report.dropped, report.first_dropped) == (4, 4, 1, "rows: row 2")
    assert [example.messages[-1]["content"] for example in split.examples] == ["no, never", "yes", "yes", "yes"]
    assert [len(example.messages) for example in split.examples] == [4, 2, 2, 2]
    assert len(split.encoded) == 4
    found = {finding.kind: (finding.count, finding.samples) for finding in report.findings}
    assert found["empty_turns"] == (1, ("rows: row 3: message 4",))


def test_calls_and_tools_of_a_parquet_file(tmp_path):
    """Arrow gives all calls the keys of all arguments, and all messages those of all messages, with nulls."""
    rows = []
    for arguments in ({"city": "Oslo"}, {"zone": "CET", "hours": 24}):
        call = {"type": "function", "function": {"name": "get_time", "arguments": arguments}}
        messages = [
            say("user", "time?"),
            say("assistant", None, tool_calls=[call]),
            say("tool", "1"),
            say("assistant", "yes"),
        ]
        properties = {name: {"type": "string"} for name in arguments}
        tool = {"name": "get_time", "parameters": {"type": "object", "properties": properties}}
        rows.append({"messages": messages, "tools": [{"type": "function", "function": tool}]})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    tokenizer = chatty(FAMILIES["qwen2.5"].template)
    data = load_data(str(tmp_path / "rows.parquet"), tokenizer, validation_fraction=0)
    for encoded, arguments in zip(
        data.train.encoded, ('{"city": "Oslo"}', '{"zone": "CET", "hours": 24}'), strict=True
    ):
        call = '<tool_call>\n{"name": "get_time", "arguments": ' + arguments + "}\n</tool_call><|im_end|>"
        assert runs(encoded, tokenizer) == [call, "yes<|im_end|>"]
        assert "null" not in text_of(encoded, tokenizer)
    assert not data.report.splits["train"].findings


def test_without_a_trained_turn_the_error_says_why():
    rows = [{"messages": list(called().messages[:2])}]
    with pytest.raises(
        DataError, match=r"no trained token is left in any of 1 row .*tool calls that the chat template"
    ):
        load_data(rows, chatty(PLAIN))
