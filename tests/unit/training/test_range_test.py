"""The learning rate range test."""

import math
import random

import numpy
import pytest
import torch
from references import METHOD_CELLS, adapted
from training_jobs import IdTokenizer, data_of, lora_model

from peftly import TrainConfig, find_learning_rate
from peftly.errors import ConfigError
from peftly.report import rate_lines, write_rates
from peftly.training.callbacks import StepRecord
from peftly.training.gradients import StepGradients
from peftly.training.range_test import suggested_rate


def found(model, data=None, config=None, **settings):
    return find_learning_rate(model, data or data_of(), config, tokenizer=IdTokenizer(), **settings)


@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
def test_the_model_is_as_before(architecture, method):
    model, _ = adapted(architecture, method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generators = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    result = found(model, steps=20, min_rate=1e-4, max_rate=10.0)
    assert len(result.losses) == len(result.rates) == len(result.smoothed) > 10
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert repr(numpy.random.get_state()) == repr(generators[1])
    assert random.getstate() == generators[2]


def test_the_rates_rise_to_the_last_and_the_steps_are_those_of_training():
    seen: list[StepRecord] = []

    class Seen:
        def __getattr__(self, name):
            return seen.append if name == "on_step" else lambda *_: None

    settings = TrainConfig(batch_size=2, gradient_accumulation_steps=2, warmup_steps=5, eval_steps=1, save_steps=1)
    result = found(lora_model(), config=settings, steps=21, min_rate=1e-6, max_rate=1e-4, callbacks=[Seen()])
    assert result.rates == pytest.approx([1e-6 * 10 ** (step / 10) for step in range(21)])
    assert [record.learning_rate for record in seen] == pytest.approx(result.rates)
    assert [record.loss for record in seen] == list(result.losses)
    assert not result.has_diverged


def test_the_range_follows_the_configured_rate_or_the_method():
    by_method, by_config = (
        found(lora_model(), steps=20),
        found(lora_model(), config=TrainConfig(learning_rate=1e-2), steps=20),
    )
    assert (by_method.rates[0], by_config.rates[0]) == pytest.approx((5e-7, 1e-5))


@pytest.mark.parametrize(("loss", "steps"), [(9.0, 17), (math.nan, 15)])
def test_a_loss_that_diverges_ends_the_test(monkeypatch, loss, steps):
    """The mean of the last five losses counts; the step of a loss that is not finite has no record."""
    compute, losses = StepGradients.compute, iter([2.0] * 10 + [1.5] * 5 + [loss] * 99)

    def scripted(self, work):
        compute(self, work)
        return [next(losses)]

    monkeypatch.setattr(StepGradients, "compute", scripted)
    result = found(lora_model(), steps=60, min_rate=1e-4, max_rate=1.0)
    assert (result.has_diverged, len(result.losses)) == (True, steps)
    assert result.suggestion <= result.rates[-1] / 30 * 1.05


def curve(fall_at, *, noise=0.0):
    rates = [10 ** (-6 + step / 20) for step in range(100)]
    losses = [
        2 - 1 / (1 + (fall_at / rate) ** 3) + noise * math.cos(7 * step) + (rate / 1e-2) ** 4
        for step, rate in enumerate(rates)
    ]
    return rates, losses


@pytest.mark.parametrize("fall_at", [1e-5, 1e-4, 1e-3])
def test_the_suggestion_is_where_the_loss_has_nearly_fallen(fall_at):
    """Nine tenths of this curve are passed at 9 ** (1 / 3) of its middle."""
    rates, losses = curve(fall_at)
    assert suggested_rate(rates, losses, losses) == pytest.approx(9 ** (1 / 3) * fall_at, rel=0.3)


def test_a_loss_that_does_not_fall_gives_no_suggestion():
    rates, _ = curve(1e-4)
    rising = [2 + rate for rate in rates]
    noisy = [2 + 0.1 * math.cos(7 * step) for step in range(100)]
    assert suggested_rate(rates, rising, rising) is None
    assert suggested_rate(rates, noisy, [sum(noisy) / 100 - 1e-3 * step / 100 for step in range(100)]) is None


@pytest.mark.parametrize(
    "settings",
    [{"min_rate": 1.0, "max_rate": 0.1}, {"steps": 5}, {"min_rate": -1.0}, {"min_rate": 0.0}, {"max_rate": 0.0}],
)
def test_rates_that_do_not_rise_and_too_few_steps_are_refused(settings):
    with pytest.raises(ConfigError, match="learning rates"):
        found(lora_model(), **settings)


def test_the_chart_of_text_marks_the_suggestion():
    rates, losses = curve(1e-4)
    lines = list(rate_lines(rates, losses, losses, 1e-4))
    assert len(lines) == 21
    (marked,) = [line for line in lines if "<- suggestion" in line]
    assert float(marked.split()[0]) == pytest.approx(1e-4, rel=0.8)
    assert all(len(line) < 80 for line in lines)
    assert not any("suggestion" in line for line in rate_lines(rates, losses, losses, None))


@pytest.mark.parametrize("suggestion", [1e-4, None])
def test_the_files_of_a_test(tmp_path, suggestion):
    rates, losses = curve(1e-4)
    assert write_rates(tmp_path, rates, losses, losses, suggestion) == ["learning_rates.png", "learning_rates.csv"]
    assert (tmp_path / "learning_rates.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "learning_rates.csv").read_text().splitlines()
    assert (len(table), table[0]) == (101, "learning_rate,loss,smoothed_loss")
