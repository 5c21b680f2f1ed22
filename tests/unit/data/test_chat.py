import pytest
from chatml import CONVERSATION, MARKED, PLAIN, chatty, runs
from data_tokenizers import FAMILIES, family
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import Example, RowFormat, chat_template, encode, prompt_ids
from peftly.data.chat_tokens import ChatTokens
from peftly.errors import DataError


@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        MARKED.replace("INSIDE", "<|im_end|>").replace("OUTSIDE", "{{ '\n' }}"),
        MARKED.replace("INSIDE", "<|im_end|>\n").replace("OUTSIDE", ""),
        MARKED.replace("INSIDE", "").replace("OUTSIDE", "<|im_end|>\n"),
    ],
    ids=["prefixes", "marks", "marks with the line break", "marks without the end"],
)
def test_only_the_assistants_turns_are_trained_each_with_its_end(template):
    tokenizer = chatty(template)
    encoded = encode(Example(messages=CONVERSATION), tokenizer, 1000)
    assert runs(encoded, tokenizer) == ["yes<|im_end|>", "no, never<|im_end|>"]
    whole = tokenizer.apply_chat_template(list(CONVERSATION), return_dict=True)["input_ids"]
    assert encoded.input_ids == whole
    assert tokenizer.decode(whole[-2:]) == "<|im_end|>\n"
    assert encoded.trained[-2:] == [True, False]


def test_the_untrained_head_is_the_prompt_that_generation_starts_from():
    tokenizer = chatty(PLAIN)
    row_format = RowFormat("chat", None, "messages")
    example = row_format.examples([{"messages": list(CONVERSATION[:3])}])[0]
    encoded = encode(example, tokenizer, 1000)
    assert encoded.input_ids[: encoded.trained.index(True)] == prompt_ids(CONVERSATION[:2], tokenizer)
    one_turn = encode(Example(messages=CONVERSATION[1:3]), tokenizer, 1000)
    assert one_turn.input_ids[: one_turn.trained.index(True)] == prompt_ids(CONVERSATION[1:2], tokenizer)
    with pytest.raises(DataError, match="give its messages, as prompt_ids does"):
        row_format.format_prompt("hello")


def test_sharegpt_reads_as_the_same_conversation():
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[message["role"]], "value": message["content"]} for message in CONVERSATION]
    row_format = RowFormat("chat", None, "conversations")
    assert row_format.examples([{"conversations": turns}]) == [Example(messages=CONVERSATION)]


def test_other_keys_of_a_message_reach_the_template_and_empty_ones_do_not():
    turns = [{"role": "user", "content": "hello", "name": "Ann", "tool": None}, {"role": "assistant", "content": "yes"}]
    example = RowFormat("chat", None, "messages").examples([{"messages": turns}])[0]
    assert example.messages[0] == {"role": "user", "content": "hello", "name": "Ann"}


@pytest.mark.parametrize("end", [(), ({"role": "user", "content": "thanks for the quick help"},)])
def test_what_follows_the_last_answer_is_left_out(end):
    tokenizer = chatty(PLAIN)
    assert encode(Example(messages=CONVERSATION + end), tokenizer, 1000) == encode(
        Example(messages=CONVERSATION), tokenizer, 1000
    )


def test_a_turn_that_opens_the_conversation_is_not_trained():
    tokenizer = chatty(PLAIN)
    greeting = ({"role": "assistant", "content": "hello"}, *CONVERSATION[1:3])
    encoded = encode(Example(messages=greeting), tokenizer, 1000)
    assert runs(encoded, tokenizer) == ["yes<|im_end|>"]
    assert encoded.findings == (("opening_turns", "message 1"),)


def test_a_turn_behind_messages_that_the_template_does_not_show_is_not_trained():
    tokenizer = chatty(
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    messages = (CONVERSATION[0], CONVERSATION[2])
    assert encode(Example(messages=messages), tokenizer, 1000) is None
    encoded = encode(Example(messages=(*messages, *CONVERSATION[1:3])), tokenizer, 1000)
    assert runs(encoded, tokenizer) == ["yes<|im_end|>"]
    assert ("opening_turns", "message 2") in encoded.findings


def test_without_an_answer_nothing_is_left_to_train():
    assert encode(Example(messages=CONVERSATION[:2]), chatty(PLAIN), 1000) is None


def test_a_long_conversation_loses_its_oldest_exchange_but_not_the_system_message():
    tokenizer = chatty(PLAIN)
    whole = encode(Example(messages=CONVERSATION), tokenizer, 1000)
    cut = encode(Example(messages=CONVERSATION), tokenizer, len(whole.input_ids) - 1)
    assert cut.input_ids == encode(Example(messages=CONVERSATION[:1] + CONVERSATION[3:]), tokenizer, 1000).input_ids
    assert runs(cut, tokenizer) == ["no, never<|im_end|>"]
    assert cut.num_truncated == len(whole.input_ids) - len(cut.input_ids)


def test_a_long_question_is_shortened_at_its_end_and_the_answer_stays():
    tokenizer = chatty(PLAIN)
    messages = ({"role": "user", "content": "late " * 50}, {"role": "assistant", "content": "yes"})
    cut = encode(Example(messages=messages), tokenizer, 60)
    assert 50 < len(cut.input_ids) <= 60
    assert runs(cut, tokenizer) == ["yes<|im_end|>"]
    assert "<|im_start|>user\nlate late" in tokenizer.decode(cut.input_ids)
    assert cut.num_truncated > 0


def test_a_long_answer_is_cut_at_its_end_and_does_not_teach_to_stop():
    tokenizer = chatty(PLAIN)
    messages = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes " * 50})
    cut = encode(Example(messages=messages), tokenizer, 60)
    assert len(cut.input_ids) == 60
    assert cut.trained[-1]
    assert "<|im_end|>" not in runs(cut, tokenizer)[0]


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(DataError, match="no chat template; use a base that is tuned for chat"):
        encode(Example(messages=CONVERSATION), chatty(None), 1000)


def test_a_template_whose_prompt_is_no_prefix_is_refused():
    tokenizer = chatty(PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant: {% endif"))
    with pytest.raises(DataError, match="message 5 is not how the whole conversation begins"):
        encode(Example(messages=CONVERSATION), tokenizer, 1000)


@pytest.mark.parametrize("marked", [False, True])
def test_a_template_that_rewrites_earlier_turns_gives_each_turn_its_own_sequence(marked):
    template = MARKED.replace("INSIDE", "<|im_end|>").replace("OUTSIDE", "\n") if marked else PLAIN
    cut = "{{ message['content'] if loop.last or message['role'] == 'user' else message['content'][:2] }}"
    tokenizer = chatty(template.replace("{{ message['content'] }}", cut))
    messages = (*CONVERSATION[1:], *CONVERSATION[1:3])
    whole = encode(Example(messages=messages), tokenizer, 1000)
    sequences = [whole, *whole.others]
    assert [runs(one, tokenizer) for one in sequences] == [
        ["yes<|im_end|>"],
        ["no, never<|im_end|>"],
        ["yes<|im_end|>"],
    ]
    assert [one.num_messages for one in sequences] == [6, 4, 2]
    for one in sequences:
        prompt = tokenizer.apply_chat_template(
            list(messages[: one.num_messages - 1]), add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert one.input_ids[: one.trained.index(True)] == prompt


def test_marks_that_begin_elsewhere_than_the_prompt_ends_are_refused():
    template = MARKED.replace("{% generation %}", "so {% generation %}")
    tokenizer = chatty(template.replace("INSIDE", "<|im_end|>").replace("OUTSIDE", "\n"))
    with pytest.raises(DataError, match="generation marks do not begin where"):
        encode(Example(messages=CONVERSATION), tokenizer, 1000)


def test_a_template_that_refuses_the_messages_says_why():
    tokenizer = chatty("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match=r"^the chat template refuses the messages \(roles must alternate\)$"):
        encode(Example(messages=CONVERSATION), tokenizer, 1000)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 1: field 'messages' holds nothing where a list of messages is needed"),
        ({"messages": []}, "row 1: field 'messages' holds no messages where a list of messages is needed"),
        ({"messages": "hi"}, "row 1: field 'messages' holds a text where a list of messages is needed"),
        ({"messages": ["hi"]}, "row 1: message 1 is a text; expected an object with 'role' and 'content'"),
        ({"messages": [{"role": "user"}]}, "row 1: message 1: 'content' is null where a text is needed"),
        (
            {"messages": [{"content": "x"}]},
            "row 1: message 1 has 'content'; expected 'role' and 'content', or 'from' and 'value'",
        ),
    ],
)
def test_a_bad_conversation_is_named_with_its_row(row, message):
    with pytest.raises(DataError) as caught:
        RowFormat("chat", None, "messages").examples([row])
    assert str(caught.value) == message


@pytest.mark.parametrize("has_system", [True, False])
@pytest.mark.parametrize("max_length", [20, 60, 61, 62, 100, 200, 330, 10_000])
def test_a_long_conversation_loses_as_few_exchanges_as_needed(max_length, has_system):
    exchanges = [CONVERSATION[1 + n % 2 * 2 :][:2] for n in range(12)]
    system = CONVERSATION[:1] if has_system else ()
    tokenizer = chatty(PLAIN)

    def tokens_of(messages):
        return tokenizer.apply_chat_template(list(messages), return_dict=True)["input_ids"]

    candidates = [tokens_of(sum(exchanges[first:], system)) for first in range(len(exchanges))]
    expected = next((ids for ids in candidates if len(ids) <= max_length), None)
    encoded = encode(Example(messages=sum(exchanges, system)), tokenizer, max_length)
    if expected is None:  # the messages of the last exchange are cut, too
        assert encoded is None or len(encoded.input_ids) == max_length
    else:
        assert encoded.input_ids == expected
        assert encoded.num_truncated == len(candidates[0]) - len(expected)


def test_a_long_conversation_is_not_rendered_once_per_exchange(monkeypatch):
    renderings = []
    original = chat_template._render

    def counted(messages, *args, **options):
        renderings.append(len(messages))
        return original(messages, *args, **options)

    monkeypatch.setattr(chat_template, "_render", counted)
    messages = CONVERSATION[1:] * 256
    encoded = encode(Example(messages=messages), chatty(PLAIN), 60)
    assert any(encoded.trained)
    assert not encoded.others
    assert len(messages) < sum(renderings) < 7 * len(messages)


PIECES = [
    "a",
    " ",
    "\n",
    "é",
    "☃",
    "the train",
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "user\n",
]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(0, 60), st.text(max_size=2))
@settings(deadline=None, max_examples=60)
def test_the_tokens_of_a_prefix_are_found_without_tokenizing_it(name, pieces, cut, addition):
    tokenizer, text = family(name), "".join(pieces)
    tokens = ChatTokens(text, tokenizer)
    for prefix in (text[:cut], text[:cut] + addition):
        ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
        assert tokens.prefix_length(prefix) == (len(ids) if tokens.ids[: len(ids)] == ids else None)
