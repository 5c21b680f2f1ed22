"""Answers that are generated for held-out examples: from the tokens of training, beside the expected answers."""

import pytest
from tiny_tasks import answer_rows, labelled_rows, opened

from peftly import evaluate, generate, load_base
from peftly.data import EncodedExample, Split, load_data
from peftly.errors import ConfigError
from peftly.evaluation import generation

ROWS = {
    "completion": [{"prompt": f"say {word}", "completion": word} for word in ("late", "great", "never")],
    "template": [{"a": f"one {number}", "b": "two", "answer": f"three {number}"} for number in range(3)],
    "chat": [
        {
            "conversations": [
                {"from": "human", "value": f"what is the capital {number}"},
                {"from": "gpt", "value": f"a city by the sea {number}"},
                {"from": "human", "value": f"UNANSWERED {number}"},
            ]
        }
        for number in (5, 6, 7)
    ],
    "turns": [
        {
            "messages": [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "user", "content": f"three {number}"},
                {"role": "assistant", "content": f"four {number}"},
            ]
        }
        for number in range(3)
    ],
}
LAST = {
    "completion": ("say never", "never"),
    "template": ("one 2 and two :", "three 2"),
    "chat": ("what is the capital 7", "a city by the sea 7"),
    "turns": ("three 2", "four 2"),
}


def settings(kind):
    template = {"template": "{a} and {b} :", "target": "answer"} if kind == "template" else {}
    return {"validation_fraction": 0.0, **template}


@pytest.mark.parametrize("kind", ROWS)
def test_expected_answers_and_the_tokens_in_front_of_them(kind, tiny_llama_folder, monkeypatch):
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(ROWS[kind], tokenizer, **settings(kind))
    prompts = []

    def answer(_model, _tokenizer, given, **_options):
        prompts.extend(given)
        return [f" answer {number}" for number in range(len(given))]

    monkeypatch.setattr(generation, "generate", answer)
    found = generation.generate_answers(model, tokenizer, data.train, 5, batch_size=2)
    assert len(found) == len(prompts) == 3
    order = [example.prompt for example in found]
    last = order.index(LAST[kind][0])
    assert (found[last].label, found[last].predicted) == (LAST[kind][1], f"answer {last}")
    # The tokens of the prompt and those of the expected answer are how the training example begins.
    encoded = data.train.encoded[last]
    rest = encoded.input_ids[len(prompts[last].input_ids) :]
    assert prompts[last].input_ids + rest == encoded.input_ids
    assert tokenizer.decode(rest, skip_special_tokens=True).strip() == LAST[kind][1]


def test_an_expected_answer_ends_where_a_generated_one_does(tiny_llama_folder, monkeypatch):
    """A chat template may end a turn with text that is no token of the base."""
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    turn = (
        "<|{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}call {{ c.function.name }}{% endfor %}"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}"
        + turn
        + "<|over|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
    question = {"role": "user", "content": "who?"}
    rows = [
        {"messages": [question, {"role": "assistant", "content": "Ada"}]},
        {"messages": [question, {"role": "assistant", "content": "", "tool_calls": [call]}]},
    ]
    data = load_data(rows, tokenizer, validation_fraction=0.0)
    monkeypatch.setattr(generation, "generate", lambda *_given, stop, **_options: [f"as far as {stop}"] * 2)
    found = generation.generate_answers(model, tokenizer, data.train, 2, batch_size=2)
    assert sorted(row.label for row in found) == ["Ada", "call look_up"]
    assert {row.predicted for row in found} == {"as far as ('<|over|>',)"}


def test_tokens_of_an_earlier_turn(tiny_llama_folder, monkeypatch):
    """Where a chat template rewrites history, every turn of a conversation has its own sequence of tokens."""
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(ROWS["turns"][:1], tokenizer, validation_fraction=0.0)
    example, encoded = data.train.examples[0], data.train.encoded[0]
    end = encoded.trained.index(True)
    end = next(index for index in range(end, len(encoded.trained)) if not encoded.trained[index])
    first = EncodedExample(encoded.input_ids[:end], encoded.trained[:end])
    monkeypatch.setattr(generation, "generate", lambda _model, _tokenizer, given, **_options: ["" for _ in given])
    found = generation.generate_answers(model, tokenizer, Split([example] * 2, [first, encoded]), 2, batch_size=2)
    assert [(row.prompt, row.label) for row in found] == [("one", "two"), ("three 0", "four 0")]


def test_answers_are_those_of_generate(tiny_llama_folder):
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(ROWS["turns"], tokenizer, validation_fraction=0.0)
    found = evaluate(model, tokenizer, data.train, data.row_format, generate=2)
    conversations = [list(example.messages[:-1]) for example in data.train.examples[:2]]
    expected = generate(model, tokenizer, conversations, max_new_tokens=64)
    assert [row.predicted for row in found.predictions] == [text.strip() for text in expected]
    assert (found.generated, found.exact_match) == (2, 0.0)
    assert found.rows == 3, "loss and perplexity are those of all examples"
    assert found.perplexity is not None


def test_answers_of_an_encoder_decoder(task_base):
    model, tokenizer = opened(task_base("t5"), task="seq2seq_lm")
    data = load_data(answer_rows(1), tokenizer, task="seq2seq_lm", validation_fraction=0.0)
    found = evaluate(model, tokenizer, data.train, data.row_format, generate=3)
    texts = [example.prompt for example in data.train.examples[:3]]
    expected = generate(model, tokenizer, texts, max_new_tokens=64)
    assert [(row.prompt, row.predicted) for row in found.predictions] == [
        (text, answer.strip()) for text, answer in zip(texts, expected, strict=True)
    ]
    assert [row.label for row in found.predictions] == [row.completion.strip() for row in data.train.examples[:3]]


def test_the_longest_expected_answer_decides_where_answers_are_cut(tiny_llama_folder, monkeypatch):
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    rows = [{"prompt": "say", "completion": "word " * number} for number in (1, 100)]
    data = load_data(rows, tokenizer, validation_fraction=0.0)
    longest = max(row.num_targets for row in data.train.encoded)
    limits = []

    def answer(_model, _tokenizer, given, *, max_new_tokens, **_options):
        limits.append(max_new_tokens)
        return ["" for _ in given]

    monkeypatch.setattr(generation, "generate", answer)
    generation.generate_answers(model, tokenizer, data.train, 2, batch_size=2)
    assert limits == [longest + longest // 4]


def test_labels_are_not_generated(tiny_llama_folder):
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(labelled_rows(1), tokenizer, validation_fraction=0.0)
    with pytest.raises(ConfigError, match="examples of kind 'label' have no answers to generate"):
        evaluate(model, tokenizer, data.train, data.row_format, generate=2)
