"""Training in fp16: small gradients are not lost, and a step whose gradients overflow is repeated."""

import pytest
import torch
from references import assert_close
from training_jobs import lora_model, run, steps, weights

from peftly.training.loss_scale import LossScale

SGD = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": None}
CPU = torch.device("cpu")


def trained(dtype, **settings):
    model = lora_model()
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if "peftly" in name:
            parameter.data = parameter.data.float()
    start = weights(model)
    _, result = run(model, **SGD, **settings)
    changes = {name: value - start[name] for name, value in weights(model).items()}
    return torch.cat([change.flatten() for change in changes.values()]), result


@pytest.fixture
def small_gradients(monkeypatch):
    """Gradients as small as those of a step of very many tokens."""
    monkeypatch.setattr("peftly.training.losses.target_losses", small)


def small(model, inputs, logits_of):
    from peftly.evaluation.losses import target_losses

    return target_losses(model, inputs, logits_of) * 1e-5


def test_small_gradients_are_not_lost(small_gradients, monkeypatch):
    expected, _ = trained(torch.float32)
    scaled, _ = trained(torch.float16)
    monkeypatch.setattr("peftly.training.loss_scale.INITIAL_SCALE", 1.0)
    lost, _ = trained(torch.float16)
    assert_close(scaled, expected, 0.02)
    assert (lost - expected).norm() > 0.1 * expected.norm()


def test_a_step_whose_gradients_overflow_is_repeated(monkeypatch):
    expected, plain = trained(torch.float16)
    monkeypatch.setattr("peftly.training.loss_scale.INITIAL_SCALE", 2.0**40)
    changes, repeated = trained(torch.float16)
    assert [step.step for step in steps(repeated)] == [step.step for step in steps(plain)]
    assert_close(changes, expected, 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_scale(dtype, monkeypatch):
    monkeypatch.setattr("peftly.training.loss_scale.GROWTH_INTERVAL", 10)
    weight = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    optimizers = [torch.optim.SGD([weight]), torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))])]
    optimizers[1].param_groups[0]["params"][0].grad = torch.ones(2)
    scaler = LossScale(CPU, torch.float16)
    assert scaler.scale(torch.ones(())) == 2.0**16
    weight.grad = torch.tensor([1.0, torch.inf, 0.0], dtype=dtype)
    assert not scaler.unscale_all(optimizers)
    assert scaler.get_scale() == 2.0**15
    for _ in range(10):
        weight.grad = torch.full((3,), scaler.get_scale(), dtype=dtype)
        assert scaler.unscale_all(optimizers)
        assert weight.grad.tolist() == [1.0, 1.0, 1.0]
    assert scaler.get_scale() == 2.0**16


def test_at_a_scale_of_1_the_gradients_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr("peftly.training.loss_scale.INITIAL_SCALE", 2.0)
    weight = torch.nn.Parameter(torch.zeros(3))
    scaler = LossScale(CPU, torch.float16)
    scaler.scale(torch.ones(()))
    attempts = []
    while not attempts or not attempts[-1]:
        weight.grad = torch.tensor([1.0, torch.inf, 0.0])
        attempts.append(scaler.unscale_all([torch.optim.SGD([weight])]))
    assert attempts == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_are_not_scaled(dtype):
    scaler = LossScale(CPU, dtype)
    assert scaler.scale(torch.ones(())) == 1
    assert scaler.unscale_all([])
    assert scaler.state_dict() == {}
    scaler.load_state_dict({})


def test_the_state_is_restored():
    first, second = LossScale(CPU, torch.float16), LossScale(CPU, torch.float16)
    weight = torch.nn.Parameter(torch.zeros(3))
    first.scale(torch.ones(()))
    weight.grad = torch.full((3,), torch.inf)
    first.unscale_all([torch.optim.SGD([weight])])
    second.load_state_dict(first.state_dict())
    assert second.get_scale() == 2.0**15
    assert second.state_dict() == first.state_dict()
