"""Learning rates of parameters, and optimizers."""

import pytest
import torch
from tiny import tiny_model

from peftly import (
    METHODS,
    Full,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    TrainConfig,
    attach,
    attached,
    trainable_parameters,
)
from peftly.errors import ConfigError
from peftly.training.optimizer import HEAD_RATE, make_optimizer, optimizer_note, parameter_groups


def rates(model, config=None, given=None) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in trainable_parameters(model).items()}
    groups = parameter_groups(model, config or TrainConfig(), given)
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_methods_that_are_trained_together_have_their_own_learning_rates():
    model = attach(attach(tiny_model("llama"), PromptTuning(init="random"), name="a"), LoRA(), name="b")
    found = rates(model)
    assert found.keys() == trainable_parameters(model).keys()
    assert {rate for name, rate in found.items() if ".a." in name} == {METHODS["prompt_tuning"].learning_rate}
    assert {rate for name, rate in found.items() if ".b." in name} == {METHODS["lora"].learning_rate}


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        (PTuning(), 1e-2),
        (PTuning(encoder="lstm"), 1e-3),
        (PrefixTuning(), 1e-2),
        (PrefixTuning(projection=True), 1e-3),
    ],
)
def test_networks_that_diverge_at_the_rate_of_their_method_have_a_lower_default(method, rate):
    (found,) = set(rates(attach(tiny_model("llama"), method)).values())
    assert found == pytest.approx(rate)


def test_a_configured_learning_rate_replaces_the_default():
    model = attach(tiny_model("llama"), LoRA())
    assert set(rates(model, TrainConfig(learning_rate=0.5), 0.25).values()) == {0.5}
    assert set(rates(model, TrainConfig(), 0.25).values()) == {0.25}


@pytest.mark.parametrize(("method", "head_rate"), [(PromptTuning(init="random"), HEAD_RATE), (Full(), 2e-5)])
def test_a_head_that_starts_from_a_probe_is_not_trained_faster_than_it_bears(method, head_rate):
    model = attach(tiny_model("bert", task="sequence_classification"), method)
    rate = METHODS[method.name].learning_rate
    assert set(rates(model).values()) == {rate}, "a head that starts from random weights has to learn"
    attached(model)["default"].has_probed_head = True
    heads = {name for name in trainable_parameters(model) if name.startswith("classifier")}
    assert heads
    assert {value for name, value in rates(model).items() if name in heads} == {head_rate}
    assert {value for name, value in rates(model).items() if name not in heads} == {rate}
    assert set(rates(model, TrainConfig(learning_rate=0.5)).values()) == {0.5}


def test_lora_plus_trains_b_faster():
    model = attach(tiny_model("llama"), LoRA(lora_plus_ratio=16))
    found = rates(model, TrainConfig(learning_rate=1e-3))
    assert {rate for name, rate in found.items() if name.endswith("lora_a")} == {1e-3}
    assert {rate for name, rate in found.items() if name.endswith("lora_b")} == {16e-3}
    parameters = trainable_parameters(model)
    optimizer = make_optimizer(parameter_groups(model, TrainConfig(learning_rate=1e-3)), TrainConfig())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        step = (before[name] - parameter).mean().item()  # Adam's first step is the rate
        assert step == pytest.approx(16e-3 if name.endswith("lora_b") else 1e-3, rel=1e-3)


def test_without_any_learning_rate_training_is_refused():
    with pytest.raises(ConfigError, match="no adapter that has a default"):
        parameter_groups(tiny_model("llama"), TrainConfig())
    with pytest.raises(ConfigError, match="not for sgd"):
        parameter_groups(attach(tiny_model("llama"), LoRA()), TrainConfig(optimizer="sgd"))


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit"])
def test_optimizers_of_bitsandbytes_take_the_steps_of_adamw(name):
    found = {}
    for optimizer in ("adamw", name):
        weight = torch.nn.Parameter(torch.randn(16, 1024, generator=torch.Generator().manual_seed(0)))
        config = TrainConfig(optimizer=optimizer, weight_decay=0.1)
        made = make_optimizer([{"params": [weight], "lr": 0.01}], config)
        start = weight.detach().clone()
        for step in range(20):
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)) + start
            made.step()
        found[optimizer] = weight.detach() - start
    moments = [state for state in made.state[weight].values() if isinstance(state, torch.Tensor) and state.ndim == 2]
    assert {state.dtype for state in moments} == {torch.uint8 if "8bit" in name else torch.float32}
    difference = (found[name] - found["adamw"]).norm() / found["adamw"].norm()
    assert difference < (0.03 if "8bit" in name else 1e-5)


def test_without_bitsandbytes_it_is_adamw_with_a_note(monkeypatch):
    cpu = torch.device("cpu")
    assert optimizer_note(TrainConfig(optimizer="adamw_8bit"), cpu) is None
    assert "nothing is paged" in optimizer_note(TrainConfig(optimizer="paged_adamw"), cpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "this is plain adamw" in optimizer_note(TrainConfig(optimizer="paged_adamw_8bit"), cpu)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.1}]
    assert type(make_optimizer(groups, TrainConfig(optimizer="paged_adamw_8bit"))) is torch.optim.AdamW
