"""Where the rows of a prompt start."""

import pytest
import torch
from tiny import tiny_model

from peftly import PromptTuning, attach, attached
from peftly.data import RowFormat
from peftly.errors import MethodError

ANSWERS = ("Label: complaint", "Label: no complaint")


class Words:
    """A tokenizer of bytes."""

    all_special_ids = ()

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [byte % 90 for byte in text.encode()]}

    def __len__(self):
        return 90

    def decode(self, ids):
        return "".join(chr(97 + id_ % 26) * 2 for id_ in ids)


def rows(config, **more):
    model = attach(tiny_model("llama"), config, **more)
    return model, attached(model)["default"].change.values().detach()


def words_of(model, text, count):
    ids = torch.tensor((Words()(text)["input_ids"] * count)[:count])
    return model.get_input_embeddings().weight[ids].detach()


@pytest.mark.parametrize("init", [None, "labels"])
@pytest.mark.parametrize("count", [5, 200])
def test_a_labelled_task_starts_from_its_answers(init, count):
    config = PromptTuning(num_virtual_tokens=count, init=init)
    orders = [" Label: complaint\nLabel: no complaint", " Label: no complaint\nLabel: complaint"]
    seen = set()
    for seed in range(8):
        model, found = rows(config, tokenizer=Words(), labels=ANSWERS, seed=seed)
        seen.update(order for order in orders if torch.equal(found, words_of(model, order, count).float()))
    assert seen == set(orders)


def test_a_text_goes_before_the_answers_and_the_vocabulary_is_last():
    model, found = rows(PromptTuning(init_text="so it is"), tokenizer=Words(), labels=ANSWERS)
    assert torch.equal(found, words_of(model, " so it is", 20).float())
    _, unasked = rows(PromptTuning(), tokenizer=Words())
    _, asked = rows(PromptTuning(init="vocabulary"), tokenizer=Words(), labels=ANSWERS)
    assert torch.equal(unasked, asked)


def test_a_classifier_does_not_start_from_answers_that_it_never_writes():
    found = []
    for init in (None, "vocabulary"):
        model = tiny_model("bert", task="sequence_classification")
        attach(model, PromptTuning(init=init), tokenizer=Words(), labels=ANSWERS)
        found.append(attached(model)["default"].change.values().detach())
    assert torch.equal(*found)


def test_without_labels_there_are_no_answers():
    with pytest.raises(MethodError, match="init: labels needs a labelled task"):
        rows(PromptTuning(init="labels"), tokenizer=Words())


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        ("{text}\nLabel:", ("Label: good", "Label: bad")),
        ("Tweet text : {text} Label : ", ("Label : good", "Label : bad")),
        ("{text}", ("good", "bad")),
    ],
)
def test_answers_are_what_rows_end_in(template, answers):
    assert RowFormat("label", template, "label", ("good", "bad")).answers == answers
    assert RowFormat("completion", template, "label").answers == ()
