"""Bottleneck adapters in their three places, against hooks on the plain base."""

import pytest
import torch
from references import adapted, assert_close
from tiny import ARCHITECTURES, random_rows, tiny_model

from peftly import AdapterConfig, attach, attached
from peftly.errors import MethodError

IDS = torch.tensor(random_rows([9]))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_place_equals_the_plain_reference(architecture, placement):
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
    own = attached(model)["default"].parameters()
    assert sum(value.numel() for value in own.values()) == 2 * blocks * (2 * m * d + d + m)
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
    [({"bottleneck_dim": 4, "reduction_factor": 2}, "both say"), ({"reduction_factor": 0}, "greater than 0")],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)
