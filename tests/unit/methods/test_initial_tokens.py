"""Initial embeddings of virtual tokens."""

import pytest
import torch
from tiny import tiny_model

from peftly import PrefixTuning, PromptTuning, attach, attached, load_adapter, save_adapter
from peftly.adapters.folder import AdapterFolder
from peftly.data import RowFormat
from peftly.errors import MethodError

ANSWERS = ("Label: complaint", "Label: no complaint")


class ByteTokenizer:
    """A tokenizer whose tokens are bytes."""

    all_special_ids = ()

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [byte % 90 for byte in text.encode()]}

    def __len__(self):
        return 90

    def decode(self, ids):
        return "".join(chr(97 + id_ % 26) * 2 for id_ in ids)


def attached_embeddings(config, **more):
    model = attach(tiny_model("llama"), config, **more)
    return model, attached(model)["default"].virtual_tokens.values().detach()


def embeddings_of(model, text, count):
    ids = torch.tensor((ByteTokenizer()(text)["input_ids"] * count)[:count])
    return model.get_input_embeddings().weight[ids].detach()


@pytest.mark.parametrize("init", [None, "labels"])
@pytest.mark.parametrize("count", [5, 200])
def test_a_labelled_task_starts_from_its_answers(init, count):
    config = PromptTuning(num_virtual_tokens=count, init=init)
    orders = [" Label: complaint\nLabel: no complaint", " Label: no complaint\nLabel: complaint"]
    initial_orders = set()
    for seed in range(8):
        model, embeddings = attached_embeddings(config, tokenizer=ByteTokenizer(), answers=ANSWERS, seed=seed)
        initial_orders.update(
            order for order in orders if torch.equal(embeddings, embeddings_of(model, order, count).float())
        )
    assert initial_orders == set(orders)


def test_init_text_precedes_the_answers_and_the_vocabulary_is_last():
    model, embeddings = attached_embeddings(
        PromptTuning(init_text="so it is"), tokenizer=ByteTokenizer(), answers=ANSWERS
    )
    assert torch.equal(embeddings, embeddings_of(model, "so it is", 20).float())
    _, by_default = attached_embeddings(PromptTuning(), tokenizer=ByteTokenizer())
    _, by_setting = attached_embeddings(PromptTuning(init="vocabulary"), tokenizer=ByteTokenizer(), answers=ANSWERS)
    assert torch.equal(by_default, by_setting)


@pytest.mark.parametrize("text", ["so it is", " so it is", "so it is\n"])
def test_the_tokens_of_a_text_are_those_of_the_text_as_it_is_written(text, recwarn):
    count = len(ByteTokenizer()(text)["input_ids"])
    for length in (count, "text"):
        config = PromptTuning(num_virtual_tokens=length, init_text=text)
        model, embeddings = attached_embeddings(config, tokenizer=ByteTokenizer())
        assert torch.equal(embeddings, embeddings_of(model, text, count).float())
        assert attached(model)["default"].config.num_virtual_tokens == count
    assert not [warning for warning in recwarn if "num_virtual_tokens" in str(warning.message)]


@pytest.mark.parametrize(
    ("count", "change"),
    [(3, "its last 5 are not used"), (20, "its tokens are repeated"), (16, "its tokens are repeated")],
)
@pytest.mark.parametrize("method", [PromptTuning, PrefixTuning])
def test_a_text_of_another_length_is_said(method, count, change):
    with pytest.warns(UserWarning, match="init_text") as caught:
        attach(tiny_model("llama"), method(num_virtual_tokens=count, init_text="so it is"), tokenizer=ByteTokenizer())
    [warning] = [warning for warning in caught if "init_text" in str(warning.message)]
    assert str(warning.message) == (
        f"init_text has 8 tokens and num_virtual_tokens is {count}: {change}; for all of them once, "
        "set num_virtual_tokens to text"
    )
    assert warning.filename == __file__


def test_answers_that_are_cut_are_said_and_repeated_ones_are_not(recwarn):
    attached_embeddings(PromptTuning(num_virtual_tokens=60), tokenizer=ByteTokenizer(), answers=ANSWERS)
    assert not [warning for warning in recwarn if "num_virtual_tokens" in str(warning.message)]
    with pytest.warns(
        UserWarning, match="text of init: labels has 37 tokens and num_virtual_tokens is 20: its last 17 are not"
    ):
        attached_embeddings(PromptTuning(), tokenizer=ByteTokenizer(), answers=ANSWERS)


def test_a_prompt_as_long_as_its_text_is_saved_with_its_number(tmp_path):
    for method in (PromptTuning, PrefixTuning):
        config = method(num_virtual_tokens="text", init_text="so it is")
        model = attach(tiny_model("llama"), config, tokenizer=ByteTokenizer())
        assert AdapterFolder.read(save_adapter(model, tmp_path / method.__name__)).method.num_virtual_tokens == 8
        loaded = load_adapter(tiny_model("llama"), tmp_path / method.__name__)
        assert attached(loaded)["default"].config == attached(model)["default"].config


def test_the_length_of_a_text_needs_the_text_and_a_tokenizer():
    with pytest.raises(ValueError, match="num_virtual_tokens: text needs init_text"):
        PromptTuning(num_virtual_tokens="text")
    with pytest.raises(ValueError, match="num_virtual_tokens: text needs init_text"):
        PrefixTuning(num_virtual_tokens="text", init="zero")
    config = PromptTuning(num_virtual_tokens="text", init_text="so")
    with pytest.raises(MethodError, match="pass the tokenizer of the base"):
        attach(tiny_model("llama"), config)
    with pytest.raises(MethodError, match="has no tokens to start from"):
        attach(tiny_model("llama"), config, tokenizer=lambda *_, **__: {"input_ids": []})


def test_a_classifier_does_not_start_from_answers_that_it_never_generates():
    embeddings = []
    for init in (None, "vocabulary"):
        model = tiny_model("bert", task="sequence_classification")
        attach(model, PromptTuning(init=init), tokenizer=ByteTokenizer(), answers=ANSWERS)
        embeddings.append(attached(model)["default"].virtual_tokens.values().detach())
    assert torch.equal(*embeddings)


def test_without_labels_there_are_no_answers():
    with pytest.raises(MethodError, match="init: labels needs a labelled task"):
        attached_embeddings(PromptTuning(init="labels"), tokenizer=ByteTokenizer())


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        ("{text}\nLabel:", ("Label: good", "Label: bad")),
        ("Tweet text : {text} Label : ", ("Label : good", "Label : bad")),
        ("{text}", ("good", "bad")),
    ],
)
def test_answers_are_the_ends_of_examples(template, answers):
    assert RowFormat("label", template, "label", ("good", "bad")).answers == answers
    assert RowFormat("completion", template, "label").answers == ()
