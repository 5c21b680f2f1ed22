"""Spellings of conversations: marks of turns, roles, contents, calls of tools, and tools."""

import json

import pytest
from chatml import PLAIN, chatty, runs

from peftly.data import RowFormat, load_data
from peftly.errors import DataError

CALL = {"type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}}
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def read(messages, field="messages", **others):
    return RowFormat("chat", None, field).examples([{field: messages, **others}])[0]


def say(role, content, **others):
    return {"role": role, "content": content, **others}


def exchange(**mark):
    return [say("user", "hello"), say("assistant", "wrong", **mark), say("user", "again"), say("assistant", "yes")]


@pytest.mark.parametrize("key", ["weight", "train", "training", "train_on_turn", "loss", "loss_scale"])
@pytest.mark.parametrize(
    ("value", "untrained"), [(0, (1,)), (False, (1,)), (0.0, (1,)), (1, ()), (True, ()), (None, ())]
)
def test_a_mark_says_whether_a_turn_is_trained_and_does_not_reach_the_template(key, value, untrained):
    example = read(exchange(**{key: value}))
    assert example.untrained == untrained
    assert example.messages == tuple(exchange())
    sharegpt = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "wrong", key: value}]
    last = [{"from": "human", "value": "again"}, {"from": "gpt", "value": "yes"}]
    assert read([*sharegpt, *last], "conversations") == example


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"weight": "0"}, {"train": "no"}, {"loss": [1]}, {"loss_scale": 2}])
def test_a_mark_between_is_refused_by_name(mark):
    (key,) = mark
    with pytest.raises(DataError, match=rf"row 1: message 2: '{key}' is .*; write 1 or true for a trained turn"):
        read(exchange(**mark))


def test_a_mark_on_a_part_of_a_turn_is_refused_by_name():
    with pytest.raises(DataError, match="row 1: message 2 has 'train_detail'"):
        read(exchange(train_detail=[{"begin_offset": 0, "end_offset": 3, "train": False}]))


def test_a_mark_on_another_role_is_said():
    example = read([say("user", "hello", train=True), say("assistant", "yes")])
    assert example.findings == (("marked_other_roles", "message 1 (user)"),)
    assert read([say("user", "hello", train=False), say("assistant", "yes")]).findings == ()


@pytest.mark.parametrize(
    ("spelled", "role"),
    [
        *((name, "user") for name in ("user", "User", "human", "Human", "prompter")),
        *((name, "assistant") for name in ("assistant", "Assistant", "gpt", "chatgpt", "model", "bot", "ai")),
        *((name, "tool") for name in ("tool", "observation", "function", "ipython", "tool_response")),
        ("SYSTEM", "system"),
        ("developer", "developer"),
        ("narrator", "narrator"),
    ],
)
def test_roles_have_one_name_in_both_spellings_of_messages(spelled, role):
    after = [say("user", "so"), say("assistant", "yes")]
    messages = [say("user", "hello"), say("assistant", "no"), say(spelled, "x"), *after]
    assert read(messages).messages[2]["role"] == role
    sharegpt = [{"from": message["role"], "value": message["content"]} for message in messages]
    assert read(sharegpt, "conversations") == read(messages)


@pytest.mark.parametrize("content", ["", "  \n", None])
def test_an_empty_turn_is_not_trained(content):
    example = read([say("user", "hello"), say("assistant", content), say("user", "so"), say("assistant", "yes")])
    assert example.untrained == (1,)
    assert example.findings == (("empty_turns", "message 2"),)
    marked = [say("user", "hello"), say("assistant", content, weight=0), say("user", "so"), say("assistant", "yes")]
    assert read(marked).findings == ()


@pytest.mark.parametrize(
    "end",
    [[say("user", "thanks")], [say("assistant", "bye", weight=0)], [say("assistant", "")], [say("tool", "1")]],
)
def test_a_conversation_ends_with_the_last_turn_that_is_trained(end):
    assert read([*exchange(), *end]).messages == tuple(exchange())


def test_a_conversation_that_goes_on_without_the_assistant_is_said():
    finding = ("messages_after_last_turn", "message 5")
    assert read([*exchange(), say("user", "thanks")]).findings == (finding,)
    assert read([*exchange(), say("assistant", "bye", weight=0)]).findings == ()


def test_parts_of_text_are_one_text_and_images_are_refused_by_name():
    parts = [{"type": "text", "text": "hel", "image_url": None}, {"type": "input_text", "text": "lo"}, "!"]
    assert read([say("user", parts), say("assistant", "yes")]).messages[0] == say("user", "hello!")
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(DataError, match="row 1: message 1 has a part of type 'image_url'"):
        read([say("user", [image]), say("assistant", "yes")])
    with pytest.raises(DataError, match="row 1: message 1: 'content' is a number where a text is needed"):
        read([say("user", 5), say("assistant", "yes")])


def test_other_keys_stay_and_reasoning_has_both_names():
    example = read([say("user", "hi", name="Ann", id=None), say("assistant", "yes", reasoning="since")])
    assert example.messages[0] == say("user", "hi", name="Ann")
    assert example.messages[1] == say(
        "assistant", "yes", reasoning="since", reasoning_content="since", thinking="since"
    )
    assert read([say("user", "hi"), say("assistant", "", thinking="since")]).untrained == ()


def after_call(call, role="tool"):
    return [say("user", "time?"), call, {"role": role, "content": "12:30"}, say("assistant", "12:30")]


@pytest.mark.parametrize(
    "call",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "tool_calls": [CALL["function"]]},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "assistant", "content": None, "tool_calls": None, "function_call": CALL["function"]},
        {"role": "function_call", "content": json.dumps(CALL["function"])},
        {"role": "tool_call", "content": json.dumps([CALL["function"]])},
    ],
)
def test_calls_have_one_spelling(call):
    messages = read(after_call(call)).messages
    assert messages[1] == say("assistant", "", tool_calls=[CALL])
    assert messages[2] == say("tool", "12:30")


def test_separate_calls_are_one_turn():
    calls = [{"from": "function_call", "value": json.dumps({"name": name, "arguments": {}})} for name in "ab"]
    example = read(
        [
            {"from": "human", "value": "time?"},
            {"from": "gpt", "value": "I look."},
            *calls,
            {"from": "observation", "value": "12:30"},
            {"from": "gpt", "value": "12:30"},
        ],
        "conversations",
    )
    assert [message["role"] for message in example.messages] == ["user", "assistant", "tool", "assistant"]
    assert example.messages[1]["content"] == "I look."
    assert [call["function"]["name"] for call in example.messages[1]["tool_calls"]] == ["a", "b"]


def test_nulls_that_parquet_adds_to_nested_fields_are_left_out():
    call = {
        "id": None,
        "type": "function",
        "function": {"name": "f", "arguments": {"a": 1, "b": None, "c": [{"d": None}]}},
    }
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"type": "x"}, "b": None}}},
    }
    example = read(after_call({"role": "assistant", "content": None, "tool_calls": [call]}), tools=[tool])
    function = {"name": "f", "arguments": {"a": 1, "c": [{}]}}
    assert example.messages[1]["tool_calls"] == [{"type": "function", "function": function}]
    assert example.tools[0]["function"]["parameters"] == {"properties": {"a": {"type": "x"}}}


@pytest.mark.parametrize(
    "others",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [TOOL["function"]]},
        {"tools": json.dumps([TOOL["function"]])},
        {"functions": [TOOL["function"]]},
        {"tools": None, "functions": [TOOL["function"]]},
    ],
)
def test_tools_have_one_spelling(others):
    assert read(exchange(), **others).tools == (TOOL,)


@pytest.mark.parametrize("empty", [None, "", [], "[]"])
def test_a_row_without_tools_has_none(empty):
    assert read(exchange(), tools=empty).tools == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": "a clock"}, r"row 1: field 'tools' is not valid JSON"),
        ({"tools": [{"type": "function"}]}, "row 1: tool 1 is an object without a name; give each tool its 'name'"),
        ({"tools": 5}, "row 1: field 'tools' holds a number where a list of tools is needed"),
        (
            {"messages": after_call({"role": "function_call", "content": "get_time"})},
            "message 2: the call of a tool is not",
        ),
        (
            {"messages": after_call({"role": "assistant", "tool_calls": [{"id": "1"}]})},
            "message 2: a call of a tool is an object",
        ),
    ],
)
def test_a_bad_tool_or_call_is_named_with_its_row(row, message):
    with pytest.raises(DataError, match=message):
        RowFormat("chat", None, "messages").examples([{"messages": exchange(), **row}])


def test_a_field_with_the_system_message_comes_first():
    first = say("system", "be brief")
    assert read(exchange(weight=0), system="be brief").messages == (first, *exchange())
    assert read(exchange(weight=0), system="be brief").untrained == (2,)
    both = read([first, *exchange()], system="other")
    assert (both.messages, both.findings) == ((first, *exchange()), (("two_systems", ""),))
    assert read([first, *exchange()], system="be brief ").findings == ()
    assert read(exchange(), system=" ").messages == tuple(exchange())


def test_messages_as_json_text():
    assert read(json.dumps(exchange())) == read(exchange())


def test_messages_in_prompt_and_completion_train_the_completion():
    rows = [{"prompt": exchange()[:3], "completion": exchange()[3:], "tools": None} for _ in range(4)]
    tokenizer = chatty(PLAIN)
    data = load_data(rows, tokenizer)
    assert data.row_format.kind == "chat"
    assert runs(data.train.encoded[0], tokenizer) == ["yes<|im_end|>"]
    assert data.train.examples[0].messages == tuple(exchange())
    assert data.report.notes[0] == "read as conversations (prompt + completion)"
    assert not any("not used" in note for note in data.report.notes)


def test_messages_in_a_field_of_another_name_are_read_if_it_is_the_target():
    rows = [{"dialogue": exchange(), "topic": "x"} for _ in range(4)]
    tokenizer = chatty(PLAIN)
    data = load_data(rows, tokenizer, target="dialogue")
    assert runs(data.train.encoded[0], tokenizer) == ["wrong<|im_end|>", "yes<|im_end|>"]


def test_the_keys_of_both_spellings_can_be_mixed():
    assert read([{"role": "human", "value": "hello"}, {"from": "gpt", "content": "yes"}]).messages == (
        say("user", "hello"),
        say("assistant", "yes"),
    )


def test_a_message_without_a_role_is_refused_with_its_keys():
    with pytest.raises(DataError, match="row 1: message 1 has 'speaker', 'text'; expected 'role' and 'content', or"):
        read([{"speaker": "user", "text": "hello"}])


@pytest.mark.parametrize("field", ["dialog", "conversation"])
def test_the_advice_for_conversations_in_another_field_works(field):
    rows = [{"id": n, field: [say("user", f"hello {n}"), say("assistant", "yes")]} for n in range(12)]
    with pytest.raises(DataError, match=f"give a template and a target, such as --target {field}$"):
        load_data(rows, chatty(PLAIN))
    assert load_data(rows, chatty(PLAIN), target=field).row_format.kind == "chat"


@pytest.mark.parametrize("field", ["messages", "dialog"])
@pytest.mark.parametrize("task", ["seq2seq_lm", "sequence_classification"])
def test_conversations_for_another_task_are_refused_by_name(task, field):
    rows = [{field: exchange()}]
    with pytest.raises(DataError, match=f"'{field}' holds conversations, which a causal language model alone learns"):
        load_data(rows, chatty(PLAIN), task=task)


@pytest.mark.parametrize("nothing", [None, [], " "])
def test_a_row_without_messages_is_dropped(nothing):
    rows = [{"messages": exchange()}, {"messages": nothing}, {"messages": exchange()}]
    data = load_data(rows, chatty(PLAIN), validation_fraction=0)
    dropped = next(finding for _, finding in data.report.findings if finding.kind == "no_assistant_turn")
    assert (len(data.train.encoded), dropped.count, dropped.samples) == (2, 1, ("train: row 2",))


@pytest.mark.parametrize(
    "nulls",
    [
        {"function_call": {"name": None, "arguments": None}},
        {"tool_calls": [{"id": None, "type": None, "function": {"name": None, "arguments": None}}]},
        {"tool_calls": [None]},
        {"tool_calls": "null"},
        {"tool_calls": "[]"},
    ],
)
def test_a_call_of_nulls_is_none(nulls):
    example = read([say("user", "hello", **nulls), say("assistant", "yes", **nulls)], tools="null")
    assert example == read([say("user", "hello"), say("assistant", "yes")])


@pytest.mark.parametrize("key", ["trainable", "masked", "ignore"])
def test_a_truth_value_that_is_no_mark_is_said(key):
    assert read(exchange(**{key: False})).findings == (("unread_marks", f"message 2: {key!r}"),)
    assert read([say("user", "hello", **{key: True}), say("assistant", "yes", id=1)]).findings == ()


def test_results_of_parallel_calls_have_the_order_of_the_calls():
    calls = [{"id": name, **CALL} for name in ("a", "b", "c")]
    results = [say("tool", f"time of {name}", tool_call_id=name) for name in ("a", "b", "c")]

    def conversation(*order):
        return [say("user", "hello"), say("assistant", "", tool_calls=calls), *order, say("assistant", "yes")]

    example, mixed = read(conversation(*results)), read(conversation(results[2], results[0], results[1]))
    assert mixed.messages == example.messages
    assert (mixed.findings, example.findings) == ((("reordered_results", ""),), ())
    unknown = [say("tool", "b"), say("tool", "a", tool_call_id="z")]
    assert [message["content"] for message in read(conversation(*unknown)).messages[2:4]] == ["b", "a"]


@pytest.mark.parametrize(("field", "mark"), [("images", "<image>"), ("videos", "<video>"), ("audios", "<audio>")])
def test_a_row_with_images_is_refused_as_a_part_with_an_image_is(field, mark):
    messages = [say("user", f"{mark}what is this?"), say("assistant", "a train")]
    with pytest.raises(DataError, match=f"row 1: the field '{field}' belongs to {mark} .* text alone"):
        read(messages, **{field: ["a.png"]})
    for value in ([], None):
        assert read(messages, **{field: value}).messages == tuple(messages)
    assert read(exchange(), **{field: ["a.png"]}).messages == tuple(exchange())
