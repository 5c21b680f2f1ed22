"""The weights that a new head starts from."""

import pytest
import torch

from peftly import METHODS, attach, detach, load_base, trainable_parameters
from peftly.models import classifier_layer, has_new_classifier, starting_weights

LABELS = ("bad", "good", "so-so")
IDS = torch.tensor([[1, 20, 30, 40, 2]])
pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")


def opened(folder, task="sequence_classification"):
    return load_base(str(folder), dtype="float32", task=task, labels=LABELS, seed=2).model


@pytest.mark.parametrize(
    ("architecture", "task", "path"),
    [
        ("bert", "sequence_classification", "classifier"),
        ("roberta", "sequence_classification", "classifier.out_proj"),
        ("distilbert", "sequence_classification", "classifier"),
        ("llama", "sequence_classification", "score"),
        ("gpt2", "sequence_classification", "score"),
        ("roberta", "token_classification", "classifier"),
    ],
)
def test_the_layer_that_computes_the_logits(architecture, task, path, task_base):
    model = opened(task_base(architecture), task)
    assert classifier_layer(model)[0] == path
    assert has_new_classifier(model)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_starts_from_the_given_weights_and_the_base_keeps_its_own(method, task_base):
    model = opened(task_base("bert"))
    tokenizer = load_base(str(task_base("bert"))).tokenizer
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight, bias = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([1.0, 2, 3])
    with starting_weights(model, weight, bias):
        with torch.no_grad():
            expected = model(IDS).logits
        attach(model, METHODS[method].config(), tokenizer=tokenizer)
    with torch.no_grad():
        if METHODS[method].identity_at_init:
            torch.testing.assert_close(model(IDS).logits, expected)
        head = {name: value for name, value in trainable_parameters(model).items() if name.startswith("classifier.")}
        torch.testing.assert_close(next(v for n, v in head.items() if n.endswith("weight")), weight.float())
    detach(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
