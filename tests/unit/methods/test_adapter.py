"""Bottleneck adapters in their three placements, compared with hooks on the plain base."""

import copy

import pytest
import torch
from references import adapted, assert_close
from tiny import ARCHITECTURES, perturb, random_token_ids, tiny_model

from peftly import AdapterConfig, attach, attached, detach, trainable_parameters
from peftly.errors import MethodError
from peftly.injection.module_copies import copied_parameters

IDS = torch.tensor(random_token_ids([9]))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_placement_equals_the_plain_reference(architecture, placement):
    if (architecture, placement) == ("opt", "parallel"):
        with pytest.raises(MethodError, match="use placement: pfeiffer"):
            attach(tiny_model("opt"), AdapterConfig(placement="parallel"))
        return
    reduced = {"bottleneck_dim": None, "reduction_factor": 8}
    model, reference = adapted(architecture, "adapter", placement=placement, **reduced)
    assert_close(model(IDS).logits, reference(IDS), 1e-10 if model.dtype == torch.float64 else 2e-5)
    downs = {name: value for name, value in attached(model)["default"].parameters().items() if "down_bias" in name}
    assert len(downs) == {"houlsby": 4, "pfeiffer": 2, "parallel": 2}[placement]
    widths = {value.shape[0] for value in downs.values()}
    assert widths == {4} if placement != "parallel" else True


def test_houlsby_counts_its_parameters_as_the_paper_does():
    """2md + d + m for each of two adapters a block, and the normalisations (section 2.1)."""
    model = attach(tiny_model("gpt2"), AdapterConfig(bottleneck_dim=5))
    d, m, blocks = 32, 5, 2
    parameters = attached(model)["default"].parameters()
    assert sum(value.numel() for value in parameters.values()) == 2 * blocks * (2 * m * d + d + m)
    copies = [name for name, value in model.named_parameters() if value.requires_grad and ".copy." in name]
    assert len(copies) == 2 * (2 * blocks + 1), "weight and bias of two a block, and the last"


def test_near_identity_starts_within_two_deviations():
    model = attach(tiny_model("llama"), AdapterConfig(bottleneck_dim=8, init="near_identity"))
    values = torch.cat(
        [
            value.flatten()
            for name, value in attached(model)["default"].parameters().items()
            if name.endswith(("_down", "_up"))
        ]
    )
    assert 0.008 < values.std() < 0.01
    assert values.abs().max() <= 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck_dim": 4, "reduction_factor": 2}, "set the same dimension"),
        ({"reduction_factor": 0}, "greater than 0"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "t5"])
def test_parallel_to_the_feed_forward_layer_of_other_families(architecture):
    """The placement of MAM: `FFN(x) + s A(x)`, in BERT before the following normalisation (He et al. 2022, table 1)."""
    task = "seq2seq_lm" if architecture == "t5" else "token_classification"
    model = tiny_model(architecture, task=task)
    attach(model, AdapterConfig(placement="parallel", bottleneck_dim=3, scaling=2.0, activation="tanh"))
    perturb(trainable_parameters(model).values())
    values = attached(model)["default"].parameters()
    base = detach(copy.deepcopy(model))
    for path, value in copied_parameters(model, "default").items():
        base.get_parameter(path).data = value.detach().double()

    def change(path, x):
        part = {name: values[f"base_model.model.{path}.adapter_{name}"].double() for name in ("down", "up")}
        part |= {name: values[f"base_model.model.{path}.adapter_{name}"].double() for name in ("down_bias", "up_bias")}
        return 2.0 * (torch.tanh(x @ part["down"].T + part["down_bias"]) @ part["up"].T + part["up_bias"])

    for path in {key.removeprefix("base_model.model.").partition(".adapter_")[0] for key in values}:
        module = base.get_submodule(path)
        if architecture in ("bert", "roberta"):
            module.register_forward_pre_hook(lambda _, args, path=path: (args[0], args[1] + change(path, args[1])))
        else:
            module.register_forward_hook(lambda _, args, output, path=path: output + change(path, args[0]))
    more = {"decoder_input_ids": IDS[:, :4]} if architecture == "t5" else {}
    expected, plain = base(IDS, **more).logits, tiny_model(architecture, task=task)(IDS, **more).logits
    assert_close(model(IDS, **more).logits, expected, 1e-6)
    assert (expected - plain).norm() > 1e-2 * plain.norm()
