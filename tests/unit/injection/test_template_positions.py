"""Positions of virtual tokens in a template: from characters to tokens, after truncation, in batches, loss and text."""

import copy
from dataclasses import replace

import pytest
import torch
from data_tokenizers import FAMILIES, LOSSLESS, family
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tasks import TASK_CELLS, prepared, tiny_tokenizer, write_rows

from peftly import (
    Job,
    LoRA,
    PromptTuning,
    TrainConfig,
    attach,
    attached,
    evaluate,
    evaluate_ensemble,
    generate,
    load_base,
    train,
    train_together,
    use_adapters,
)
from peftly.data import DataConfig, Example, RowFormat, Template, collate, encode, encode_example_prompt, load_data
from peftly.data.task_encoding import encode_sources
from peftly.data.vocabulary import Vocabulary, token_positions
from peftly.errors import ConfigError, DataError

TEMPLATE = "{prompt:2}Tweet: {text}{prompt:1}\nLabel:{prompt:3}"
PLAIN = "Tweet: {text}\nLabel:"
quick = settings(deadline=None, max_examples=40)
texts = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=12)


def row_format(template=TEMPLATE):
    return RowFormat("label", template, "label", ("complaint", "no complaint"))


@given(texts)
@quick
def test_marks_add_nothing_to_the_text(text):
    rendered, plain = (Template(template).render({"text": text}) for template in (TEMPLATE, PLAIN))
    assert (rendered.text, rendered.spans) == (plain.text, plain.spans)
    inside = len("Tweet: ") + len(text)
    assert rendered.virtual_token_offsets == (0, 0, inside, *[inside + len("\nLabel:")] * 3)
    assert plain.virtual_token_offsets == ()


@pytest.mark.parametrize(
    "mark", ["{prompt:}", "{prompt:0}", "{prompt:x}", "{prompt:-1}", "{prompt:3.5}", "{prompt:10000}"]
)
def test_a_mark_is_a_number_of_virtual_tokens(mark):
    with pytest.raises(DataError, match=r"has '\{prompt:.*; write the number of virtual tokens .* as in \{prompt:3\}"):
        Template("{text}" + mark)


def test_prompt_is_still_a_field():
    assert Template("{prompt}{prompt:2}!").render({"prompt": "hello"}).virtual_token_offsets == (5, 5)


@given(st.sampled_from(FAMILIES), texts)
@quick
def test_marks_do_not_change_tokens_and_positions_are_between_tokens(name, text):
    tokenizer = family(name)
    row = {"text": text, "label": "complaint"}
    marked, plain = (encode(row_format(one).examples([row])[0], tokenizer, 10_000) for one in (TEMPLATE, PLAIN))
    assert replace(marked, prompt_positions=()) == plain
    head, front = marked.trained.index(True), len(Vocabulary.of(tokenizer).front)
    first, second, inside, *last = marked.prompt_positions
    assert (first, second, last) == (front, front, [head] * 3)
    prompt = encode_example_prompt(row_format().format_prompt(text), tokenizer)
    assert prompt.prompt_positions == marked.prompt_positions
    if name in LOSSLESS:
        read = tokenizer.decode(marked.input_ids[front:inside], clean_up_tokenization_spaces=False)
        more = tokenizer.decode(marked.input_ids[front : inside + 1], clean_up_tokenization_spaces=False)
        assert len(read) <= len(f"Tweet: {text}") < len(more) or "\ufffd" in more


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mark_inside_a_token_stands_in_front_of_it(name):
    tokenizer = family(name)
    ids = tokenizer("complaint", add_special_tokens=False)["input_ids"]
    examples = [Example("complaint", virtual_token_offsets=(offset,)) for offset in range(10)]
    positions = [encode_example_prompt(example, tokenizer).prompt_positions[0] for example in examples]
    front = len(Vocabulary.of(tokenizer).front)
    assert positions == sorted(positions)
    assert (positions[0], positions[-1]) == (front, front + len(ids))


def test_a_first_token_of_no_character_is_behind_the_first_mark():
    assert token_positions([0, 2, 3, 9], [0, 3, 5]) == [0, 1, 2, 3]


@pytest.mark.parametrize("max_length", [12, 16, 20])
def test_positions_survive_truncation(max_length):
    tokenizer, format_ = family("byte_level_start"), row_format("{prompt:1}{text}{prompt:1}\nLabel:{prompt:2}")
    row = {"text": "late again never arrived " * 9, "label": "complaint"}
    whole, cut = (encode(format_.examples([row])[0], tokenizer, length) for length in (10_000, max_length))
    assert cut.num_truncated > 0
    assert len(cut.input_ids) <= max_length
    head = cut.trained.index(True)
    cue = whole.trained.index(True) - whole.prompt_positions[1]
    assert cut.prompt_positions == (1, head - cue, head, head)


def test_positions_stay_inside_a_text_that_is_truncated_on_the_left():
    tokenizer, format_ = family("byte_level_start"), row_format("{prompt:1}{text}{prompt:2}")
    encoded = encode(format_.examples([{"text": "late again " * 9, "label": "complaint"}])[0], tokenizer, 14)
    head = encoded.trained.index(True)
    assert encoded.prompt_positions == (1, head, head)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "t5", "bart", "llama"])
def test_special_tokens_around_a_text_stay_outside(architecture):
    tokenizer = tiny_tokenizer(architecture)
    example = RowFormat("label", "{prompt:1}{text}{prompt:2}", "label", ("a", "b")).format_prompt("late again")
    encoded = encode_sources([example], tokenizer)[0]
    own = len(tokenizer("late again", add_special_tokens=False)["input_ids"])
    front = encoded.input_ids.index(tokenizer("late again", add_special_tokens=False)["input_ids"][0])
    assert encoded.prompt_positions == (front, front + own, front + own)
    assert front == {"t5": 0, "llama": 0}.get(architecture, 1)
    longer = replace(example, prompt="late again " * 20, virtual_token_offsets=(0, 5, 219))
    cut = encode_sources([longer], tokenizer, 9)[0]
    assert cut.prompt_positions[0] == front
    assert cut.prompt_positions[2] == len(cut.input_ids) - (0 if architecture == "llama" else 1)


def test_the_first_of_two_texts_has_the_positions():
    tokenizer = tiny_tokenizer("bert")
    format_ = RowFormat("label", "{premise}{prompt:2}", "label", ("a", "b"), pair="hypothesis")
    encoded = encode_sources([format_.format_prompt("late again", "great")], tokenizer)[0]
    assert encoded.prompt_positions == (encoded.input_ids.index(2),) * 2  # in front of the first [SEP]
    tokenizer = tiny_tokenizer("llama")
    encoded = encode_sources([format_.format_prompt("late again", "great")], tokenizer)[0]
    assert encoded.prompt_positions == (len(tokenizer("late again")["input_ids"]),) * 2


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

        def __call__(self, texts, **_):
            return {"input_ids": [1] if isinstance(texts, str) else [[1] for _ in texts]}

    with pytest.raises(DataError, match="marks in a template need a fast tokenizer"):
        Vocabulary(Slow(), [], 2, frozenset()).token_positions("a", [1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_the_positions_of_its_examples(side):
    tokenizer = family("byte_level")
    prompts = [row_format().format_prompt(text) for text in ("late", "late again and again")]
    examples = [encode_example_prompt(prompt, tokenizer) for prompt in prompts]
    assert collate(examples, pad_id=0, side=side)["prompt_positions"].tolist() == [
        list(example.prompt_positions) for example in examples
    ]
    examples = [examples[0], replace(examples[1], prompt_positions=())]
    assert collate(examples, pad_id=0, side=side)["prompt_positions"].tolist()[1] == [-1] * 6
    assert "prompt_positions" not in collate(examples[1:], pad_id=0, side=side)


def test_a_shape_keeps_its_marks():
    format_ = RowFormat.from_dict(row_format().to_dict())
    assert format_.num_marked_tokens == 6
    assert format_.format_prompt("late").prompt == row_format(PLAIN).format_prompt("late").prompt
    assert RowFormat("text", None, "text").num_marked_tokens == 0
    with pytest.raises(DataError, match="a conversation is not a single text"):
        RowFormat("chat", None, "messages").format_prompt("hello")


# --- from end to end


SOURCES = {
    "sequence_classification": "{prompt:1}{text}{prompt:2}",
    "seq2seq_lm": "{prompt:1}{prompt}{prompt:2}",
}


@pytest.mark.parametrize(("task", "architecture"), [home for home in TASK_CELLS if home[0] in SOURCES])
def test_every_task_trains_and_scores_them(task, architecture, task_base, tmp_path):
    settings = {"template": SOURCES[task]} | ({"target": "completion"} if task == "seq2seq_lm" else {})
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path, **settings)
    attach(model, PromptTuning(num_virtual_tokens=3, init="random", position="template"))
    check_training(model, tokenizer, data)


@pytest.fixture
def tweets(tiny_llama_folder, tmp_path):
    words = {"complaint": ["late again", "never arrived"], "no complaint": ["great service", "love the store"]}
    rows = [
        {"text": f"{text} {'really ' * number}", "label": label}
        for number in range(4)
        for label, own in words.items()
        for text in own
    ]
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    file = write_rows(tmp_path / "tweets.jsonl", rows)
    data = load_data(DataConfig(train=str(file), template=TEMPLATE, target="label"), tokenizer)
    return model, tokenizer, data


def test_causal_models_train_score_and_write_with_them(tweets):
    model, tokenizer, data = tweets
    attach(model, PromptTuning(num_virtual_tokens=6, init="random", position="template"))
    check_training(model, tokenizer, data)
    prompts = [data.row_format.format_prompt(text) for text in ("late again and again", "love", "great service")]
    together = generate(model, tokenizer, prompts, max_new_tokens=6)
    assert together == [generate(model, tokenizer, prompt, max_new_tokens=6)[0] for prompt in prompts]
    moved = [replace(prompt, virtual_token_offsets=(0,) * 6) for prompt in prompts]
    assert generate(model, tokenizer, moved, max_new_tokens=6) != together


def test_with_an_adapter_whose_virtual_tokens_are_in_front(tweets):
    """Both adapters share batches; one ignores the positions of its examples, and examples of the other have none."""
    model, tokenizer, data = tweets
    plain = replace(data, row_format=replace(data.row_format, template=PLAIN), train=without_positions(data.train))
    plain = replace(plain, validation=without_positions(data.validation))
    jobs = {"marked": data, "front": plain}
    config = TrainConfig(max_steps=2, batch_size=3, learning_rate=0.1)
    for name, position in (("marked", "template"), ("front", "front")):
        attach(model, PromptTuning(num_virtual_tokens=6, init="random", position=position), name=name)
    other = copy.deepcopy(model)
    train_together(model, {name: Job(own, config) for name, own in jobs.items()}, tokenizer=tokenizer)
    for name, own in jobs.items():
        train_together(other, {name: Job(own, config)}, tokenizer=tokenizer)
        embeddings = [attached(each)[name].virtual_tokens.embeddings.detach() for each in (model, other)]
        torch.testing.assert_close(*embeddings, rtol=1e-3, atol=1e-4)
    found = evaluate_ensemble(model, tokenizer, data.train, data.row_format, list(jobs)).members
    for name in jobs:
        with use_adapters(model, name):
            alone = evaluate(model, tokenizer, jobs[name].train, data.row_format)
        assert found[name].accuracy == alone.accuracy


def without_positions(split):
    return replace(split, encoded=[replace(example, prompt_positions=()) for example in split.encoded])


def check_training(model, tokenizer, data):
    """Check that every virtual token is trained, and that the scores do not depend on the batch size."""
    before = attached(model)["default"].virtual_tokens.embeddings.detach().clone()
    train(model, data, TrainConfig(max_steps=2, batch_size=3, learning_rate=0.1), tokenizer=tokenizer)
    assert ((attached(model)["default"].virtual_tokens.embeddings - before).norm(dim=1) > 0).all()
    scores = [evaluate(model, tokenizer, data.train, data.row_format, batch_size=size).loss for size in (1, 5)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    moved = [
        replace(example, prompt_positions=(example.prompt_positions[0],) * len(example.prompt_positions))
        for example in data.train.encoded
    ]
    elsewhere = evaluate(model, tokenizer, replace(data.train, encoded=moved), data.row_format).loss
    assert abs(elsewhere - scores[0]) > 3e-5 * scores[0]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LoRA(rank=2), r"marks 6 virtual tokens, and no method inserts any there: .*num_virtual_tokens to 6"),
        (PromptTuning(num_virtual_tokens=6, init="random"), "no method inserts any there"),
        (
            PromptTuning(num_virtual_tokens=4, init="random", position="template"),
            r"has 4 virtual tokens with position: template, and data.template marks 6; .* \{prompt:4\}",
        ),
    ],
)
def test_marks_that_do_not_fit_the_method(method, words, tweets):
    model, tokenizer, data = tweets
    attach(model, method)
    with pytest.raises(ConfigError, match=words):
        train(model, data, TrainConfig(max_steps=1), tokenizer=tokenizer)


def test_a_template_without_marks_does_not_fit_a_method_that_needs_them(tweets):
    model, tokenizer, data = tweets
    attach(model, PromptTuning(num_virtual_tokens=4, init="random", position="template"))
    plain = replace(data, row_format=replace(data.row_format, template=PLAIN))
    with pytest.raises(ConfigError, match="marks 0; mark all of them"):
        train(model, plain, TrainConfig(max_steps=1), tokenizer=tokenizer)


def test_the_untouched_base_reads_the_text_alone(tweets):
    model, tokenizer, data = tweets
    found = evaluate(model, tokenizer, data.train, data.row_format)
    assert found == evaluate(model, tokenizer, without_positions(data.train), data.row_format)
