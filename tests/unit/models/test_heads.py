"""The layer of a classifier that computes its logits."""

import pytest
import torch
from tiny_tasks import tiny_tokenizer
from transformers import AlbertConfig, AlbertForMaskedLM

from peftly import attach, load_base
from peftly.injection import task_modules
from peftly.methods import METHODS
from peftly.models import classifier_layer, classifier_weights, has_new_classifier

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


def test_other_weights_hold_inside_the_block_only(task_base):
    model = opened(task_base("bert"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weight, bias = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([1.0, 2, 3])
    with classifier_weights(model, weight, bias), torch.no_grad():
        hidden = model.bert(IDS).pooler_output
        torch.testing.assert_close(model(IDS).logits, hidden @ weight.float().T + bias)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_new_pooler_without_a_module_of_its_own_does_not_make_the_body_trainable(tmp_path):
    """ALBERT's pooler is a linear layer beside the embeddings and the encoder."""
    sizes = {"hidden_size": 16, "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    config = AlbertConfig(vocab_size=len(tiny_tokenizer("bert")), num_hidden_layers=1, pad_token_id=0, **sizes)
    AlbertForMaskedLM(config).save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    model = opened(tmp_path)
    assert task_modules(model) == ["classifier", "albert.pooler"]
    attach(model, METHODS["lora"].config())
    trained = {name.partition(".peftly")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert {"classifier", "albert.pooler"} < trained
    assert "albert" not in trained
