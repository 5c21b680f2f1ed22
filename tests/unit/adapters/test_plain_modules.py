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
    torch.manual_seed(0)  # differences are compared with rounding
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
    with pytest.raises(
        MethodError, match=r"an embedding of token ids .nn\.Embedding., and ViTForImageClassification has none"
    ):
        attach(model, PromptTuning(init="random"), name="prompt")


def with_statistics() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("config", [LoRA(rank=2, modules_to_save=("1",)), Full()], ids=lambda config: config.name)
def test_running_statistics_of_trained_copies_are_saved_merged_and_left_out_of_the_base(config, tmp_path):
    base, x = with_statistics(), 3 + torch.randn(20, 6)
    model = attach(copy.deepcopy(base), config).train()
    model(x)
    expected = model.eval()(x)
    assert (expected - base(x)).norm() > 0.01 * expected.norm()
    save_adapter(model, tmp_path)
    loaded = load_adapter(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(loaded(x), expected)
    torch.testing.assert_close(merge(loaded)(x), expected)
    detach(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in base.state_dict().items())


def test_running_statistics_are_in_files_of_peft_and_optional_in_ours(tmp_path):
    import peft
    from safetensors.torch import load_file, save_file

    base, x = with_statistics(), 3 + torch.randn(20, 6)
    model = attach(copy.deepcopy(base), LoRA(rank=2, target_modules=("0",), modules_to_save=("1",))).train()
    model(x)
    expected = model.eval()(x)
    save_adapter(model, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours", is_trainable=True)
    torch.testing.assert_close(theirs.eval()(x), expected)
    theirs.train()(x)
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(load_adapter(copy.deepcopy(base), tmp_path / "theirs")(x), theirs.eval()(x))
    tensors = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "running_" not in name and "num_batches" not in name}
    assert len(kept) == len(tensors) - 3
    save_file(kept, tmp_path / "theirs" / "adapter_model.safetensors")
    earlier = load_adapter(copy.deepcopy(base), tmp_path / "theirs")
    assert (earlier(x) - expected).norm() > 0.01 * expected.norm()


class ChannelsFirst(nn.LayerNorm):
    """A LayerNorm of images, (batch, channels, height, width), as ConvNext has it."""

    data_format = "channels_first"

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("norm", [ChannelsFirst(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4)])
@pytest.mark.parametrize("width", [4, 5])  # with 4 a difference at the wrong dimension raises nothing
def test_bitfit_adds_to_the_channels_of_a_norm(norm, width):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), copy.deepcopy(norm)).eval(), torch.randn(2, 3, 6, width)
    expected = model(x) + torch.arange(4.0)[:, None, None]
    attach(model, BitFit())
    with torch.no_grad():
        next(iter(trainable_parameters(model).values())).add_(torch.arange(4.0))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(merge(model)(x), expected)
