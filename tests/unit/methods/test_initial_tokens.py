"""Initial embeddings of virtual tokens."""

import pytest
import torch
from tiny import tiny_model

from peftly import PromptTuning, attach, attached
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
    assert torch.equal(embeddings, embeddings_of(model, " so it is", 20).float())
    _, by_default = attached_embeddings(PromptTuning(), tokenizer=ByteTokenizer())
    _, by_setting = attached_embeddings(PromptTuning(init="vocabulary"), tokenizer=ByteTokenizer(), answers=ANSWERS)
    assert torch.equal(by_default, by_setting)


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
