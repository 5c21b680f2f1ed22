"""Methods that change layers work on any `torch.nn.Module`."""

import copy

import pytest
import torch
import transformers as tf
from tiny import perturb
from torch import nn

from peftly import (
    IA3,
    AdapterConfig,
    BitFit,
    DoRA,
    Full,
    LoRA,
    PrefixTuning,
    PromptTuning,
    Selective,
    attach,
    attached,
    detach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
    use_adapters,
)
from peftly.errors import MethodError

SETTINGS = [
    LoRA(rank=2),
    DoRA(rank=2, bias="lora_only"),
    IA3(target_modules=("0", "2"), feedforward_modules=("2",)),
    BitFit(),
    Selective(last_layers=0, modules=("2",)),
    Full(),
]


def classifier() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


class Perceptron(nn.Module):
    """A feed-forward part with the names of transformers, whose activations may change their inputs in place."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(6, 8), "fc2": nn.Linear(8, 3)})
        self.activation = nn.ReLU(inplace=inplace)

    def forward(self, x):
        return self.activation(self.mlp["fc2"](self.activation(self.mlp["fc1"](x))))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("config", [LoRA(rank=2), DoRA(rank=2), AdapterConfig(placement="pfeiffer", bottleneck_dim=4)])
def test_the_output_of_an_adapted_layer_may_be_changed_in_place(config, dropout):
    config, x = config.model_copy(update={"dropout": dropout}), torch.randn(2, 5, 6)
    found = []
    for inplace in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = attach(Perceptron(inplace=inplace), config).train()
            perturb(trainable_parameters(model).values())
            loss = model(x).square().sum()
        found.append(torch.autograd.grad(loss, trainable_parameters(model).values()))
    for gradient, expected in zip(*found, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert any(gradient.any() for gradient in found[0])


@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: config.name)
def test_a_method_trains_saves_merges_and_detaches(config, tmp_path):
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    base = classifier()
    model = attach(copy.deepcopy(base), config)
    torch.testing.assert_close(model(x), base(x))
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), 0.05)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    with torch.no_grad():
        expected = model(x)
        save_adapter(model, tmp_path / "adapter")
        torch.testing.assert_close(load_adapter(classifier(), tmp_path / "adapter")(x), expected)
        with use_adapters(model, adapters=[None, "default"] * 20):
            torch.testing.assert_close(model(x)[::2], base(x)[::2])
            torch.testing.assert_close(model(x)[1::2], expected[1::2])
        torch.testing.assert_close(merge(copy.deepcopy(model))(x), expected)
        detach(model)
        torch.testing.assert_close(model(x), base(x), rtol=0, atol=0)
    assert attached(model) == {}
    assert model.state_dict().keys() == base.state_dict().keys()


def test_lora_on_an_embedding():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    before = copy.deepcopy(model)
    attach(model, LoRA(rank=3, target_modules=("0", "1")))
    ids = torch.tensor([[1, 2, 9]])
    torch.testing.assert_close(model(ids), before(ids))
    perturb(trainable_parameters(model).values())
    expected = model(ids)
    assert (expected - before(ids)).norm() > 1e-3
    torch.testing.assert_close(merge(model)(ids), expected)


def test_a_transformers_model_that_reads_no_text(tmp_path):
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=8, patch_size=4
    )
    config.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.ViTForImageClassification(config).eval()
    base, x = copy.deepcopy(model), torch.randn(4, 3, 8, 8)
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    model(pixel_values=x, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())
    expected = model(pixel_values=x).logits
    save_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(load_adapter(base, tmp_path / "adapter")(pixel_values=x).logits, expected)
    with use_adapters(model, adapters=["default", None, None, "default"]):
        mixed = model(pixel_values=x).logits
    torch.testing.assert_close(mixed[[0, 3]], expected[[0, 3]])
    with pytest.raises(MethodError, match="prefix_tuning needs a model with a key-value cache"):
        attach(model, PrefixTuning(init="zero"), name="prefix")
    with pytest.raises(MethodError, match="an embedding of token ids, and ViTForImageClassification is none"):
        attach(model, PromptTuning(init="random"), name="prompt")
