"""Training in fp16: small gradients are not lost, and a step whose gradients overflow is taken again."""

import pytest
import torch
from references import assert_close
from training_jobs import lora_model, run, steps, weights

from peftly.training.loss_scale import LossScale

SGD = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": None}


def trained(dtype, **settings):
    model = lora_model()
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if "peftly" in name:
            parameter.data = parameter.data.float()
    start = weights(model)
    _, result = run(model, **SGD, **settings)
    found = {name: value - start[name] for name, value in weights(model).items()}
    return torch.cat([value.flatten() for value in found.values()]), result


@pytest.fixture
def small_gradients(monkeypatch):
    """As in a step of very many tokens."""
    monkeypatch.setattr("peftly.training.gradients.target_losses", small)


def small(model, inputs, logits_of):
    from peftly.evaluation.losses import target_losses

    return target_losses(model, inputs, logits_of) * 1e-5


def test_small_gradients_are_kept(small_gradients, monkeypatch):
    expected, _ = trained(torch.float32)
    scaled, _ = trained(torch.float16)
    monkeypatch.setattr("peftly.training.loss_scale.FIRST", 1.0)
    lost, _ = trained(torch.float16)
    assert_close(scaled, expected, 0.02)
    assert (lost - expected).norm() > 0.1 * expected.norm()


def test_a_step_whose_gradients_overflow_is_taken_again(monkeypatch):
    expected, plain = trained(torch.float16)
    monkeypatch.setattr("peftly.training.loss_scale.FIRST", 2.0**40)
    found, again = trained(torch.float16)
    assert [step.step for step in steps(again)] == [step.step for step in steps(plain)]
    assert_close(found, expected, 0.01)


def test_the_factor():
    weight = torch.nn.Parameter(torch.zeros(3))
    scale = LossScale(torch.float16)
    first = scale.factor
    weight.grad = torch.tensor([1.0, torch.inf, 0.0])
    assert not scale.unscale([weight])
    assert scale.factor == first / 2
    for _ in range(1000):
        weight.grad = torch.full((3,), scale.factor)
        assert scale.unscale([weight])
        assert weight.grad.tolist() == [1.0, 1.0, 1.0]
    assert scale.factor == first
    scale.factor = 1.0
    weight.grad = torch.tensor([1.0, torch.inf, 0.0])
    assert scale.unscale([weight]), "whose gradients no factor can help"
    for dtype in (torch.float32, torch.bfloat16):
        assert LossScale(dtype).factor == 1
