"""A chat template of a stranger costs a bounded time and memory, and its errors are one line."""

import copy
import resource
import signal
import threading

import pytest
from data_tokenizers import family

from peftly.data import Example, chat_template, prompt_ids
from peftly.data.chat import ChatEncoder
from peftly.data.chat_template import chat_text
from peftly.data.chat_tokens import ChatTokens
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

QUESTION = ({"role": "user", "content": "hello"},)
CONVERSATION = (*QUESTION, {"role": "assistant", "content": "yes"})
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DOUBLING = "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"


def tokenizer_with(template):
    tokenizer = copy.deepcopy(family("byte_level"))
    tokenizer.chat_template = template
    tokenizer.name_or_path = "some/base"
    return tokenizer


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("template", [TURNS, TURNS.replace("{% generation %}", "").replace("{% endgeneration %}", "")])
def test_the_same_tokens_as_transformers(template, add_generation_prompt):
    tokenizer = tokenizer_with(template)
    text, spans = chat_text(CONVERSATION, tokenizer, add_generation_prompt=add_generation_prompt)
    expected = tokenizer.apply_chat_template(
        list(CONVERSATION), add_generation_prompt=add_generation_prompt, return_assistant_tokens_mask=True
    )
    ids = ChatTokens(text, tokenizer).ids
    assert ids == expected["input_ids"]
    marked = [token for token, is_marked in zip(ids, expected["assistant_masks"], strict=True) if is_marked]
    assert tokenizer.decode(marked) == "".join(text[start:end] for start, end in spans)
    assert bool(spans) == ("generation %" in template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(10**12) %}x{% endfor %}", "fails (OverflowError: Range too big"),
        ("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took more than 0.2 seconds"),
        ("{% if messages %}{{ 7 ** (10 ** 9) }}{% endif %}", "took more than 0.2 seconds"),  # in C, while compiling
        ("{% set n = messages|length %}{{ (6 + n) ** (10 ** 9) }}", "took more than 0.2 seconds"),  # in C
        ("{{ 1.5|round(10 ** 9, 'ceil') }}", "took more than 0.2 seconds"),
        ("{{ 'a' * 10 ** 12 }}", "GiB of memory"),
        ("{{ 'a' * (messages|length * 10 ** 10) }}", "GiB of memory"),
        ("{{ 'a'|center(10 ** 11) }}", "GiB of memory"),
        ("{{ '%99999999999d' % 1 }}", "GiB of memory"),
        (DOUBLING, "GiB of memory"),
        ("{{ 'a' * (10 ** 6 + 10) }}", "adds 1,000,001 characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails (RecursionError: "),
        ("{% if a %}" * 3000 + "{% endif %}" * 3000, "fails (RecursionError: "),
        ("{{ 1 / 0 }}", "fails (ZeroDivisionError: division by zero)"),
        ("{{ 1 + 'a' }}", "fails (TypeError: "),
        ("{{ messages|nosuchfilter }}", "refuses the messages (No filter named 'nosuchfilter')"),
        ("{{ messages.nothing.more }}", "refuses the messages ("),
        ("{{ ''.__class__.__mro__ }}", "refuses the messages (access to attribute '__class__'"),
        ("{% include 'file' %}", "fails (TypeError: "),
        ("{% if %}", "refuses the messages (Expected an expression"),
        ("{{ raise_exception('one\ntwo') }}", "refuses the messages (one)"),
        ("{{ '\\ud800' }}", "fails ("),
    ],
)
def test_a_template_that_fails_or_never_ends_is_one_line(template, reason, monkeypatch):
    if "seconds" in reason:
        monkeypatch.setattr(chat_template, "_MAX_SECONDS", 0.2)
    monkeypatch.setattr(chat_template, "_MAX_BYTES", 2**28)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(DataError) as caught:
        prompt_ids(QUESTION, tokenizer_with(template))
    message = str(caught.value)
    assert message.startswith("the chat template of some/base ")
    assert reason in message
    assert "\n" not in message
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_error_names_the_row():
    with pytest.raises(DataError, match=r"^rows.jsonl: line 3: the chat template of some/base fails \(ZeroDivision"):
        ChatEncoder(Vocabulary.of(tokenizer_with("{{ 1 / 0 }}"))).encode(
            Example(messages=CONVERSATION), 100, location="rows.jsonl: line 3: "
        )


def test_a_choice_of_templates_without_a_default_is_refused():
    tokenizer = tokenizer_with({"rag": TURNS, "tool_use": TURNS})
    with pytest.raises(DataError, match="the chat template cannot be chosen"):
        prompt_ids(QUESTION, tokenizer)


def test_a_long_message_is_no_fault_of_the_template():
    text = "a " * 6_000_000
    shown, _ = chat_text([{"role": "user", "content": text}], tokenizer_with("{{ messages[0].content[:20] }}"))
    assert shown == "a " * 10


def test_another_thread_renders_too():
    results = []
    thread = threading.Thread(target=lambda: results.append(prompt_ids(QUESTION, tokenizer_with(TURNS))))
    thread.start()
    thread.join()
    assert results == [prompt_ids(QUESTION, tokenizer_with(TURNS))]
