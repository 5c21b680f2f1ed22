"""Learning rates of every step, compared with values by hand."""

import math

import pytest
import torch
from training_jobs import data_of, lora_model, run, steps, weights
from transformers import get_scheduler

from peftly import TrainConfig, load_base
from peftly.training.schedule import learning_rate_factor, make_schedule, num_epochs, warmup_steps_of

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "inverse_sqrt")
HALF, QUARTER = 0.5, (1 + math.cos(math.pi / 4)) / 2

BY_HAND = {
    # 1 of 1 step, with and without a warm-up
    (1, 0): dict.fromkeys(SCHEDULES, (1,)),
    (1, 1): dict.fromkeys(SCHEDULES, (1,)),
    # 4 steps, 2 of them warm-up: the decay would reach 0 in step 5
    (4, 2): {
        "linear": [0.5, 1, 2 / 3, 1 / 3],
        "cosine": [0.5, 1, 0.75, 0.25],
        "cosine_with_restarts": [0.5, 1, 0.75, 0.25],
        "constant": [0.5, 1, 1, 1],
        "constant_with_warmup": [0.5, 1, 1, 1],
        "inverse_sqrt": [0.5, 1, math.sqrt(2 / 3), math.sqrt(2 / 4)],
    },
    # without a warm-up, step 1 has the peak
    (4, 0): {
        "linear": [1, 0.75, 0.5, 0.25],
        "cosine": [1, QUARTER, HALF, 1 - QUARTER],
        "cosine_with_restarts": [1, QUARTER, HALF, 1 - QUARTER],
        "constant": [1, 1, 1, 1],
        "inverse_sqrt": [math.sqrt(10_000 / (10_000 + passed)) for passed in range(4)],
    },
    # 2 steps: the second one learns, too
    (2, 1): {
        "linear": [1, 0.5],
        "cosine": [1, 0.5],
        "cosine_with_restarts": [1, 0.5],
        "constant": [1, 1],
        "constant_with_warmup": [1, 1],
        "inverse_sqrt": [1, math.sqrt(1 / 2)],
    },
    # a run that is as long as its warm-up, and one that is shorter
    (3, 3): dict.fromkeys(SCHEDULES, (1 / 3, 2 / 3, 1)),
    (2, 8): dict.fromkeys(SCHEDULES, (1 / 8, 2 / 8)),
}


@pytest.mark.parametrize(
    ("schedule", "count", "warmup", "expected"),
    [(name, *case, rates) for case, table in BY_HAND.items() for name, rates in table.items()],
)
def test_the_rate_of_every_step(schedule, count, warmup, expected):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    config = TrainConfig.model_construct(lr_scheduler_type=schedule, warmup_steps=warmup)
    rates = make_schedule(optimizer, config, count)
    found = []
    for _ in range(count):
        found += rates.get_last_lr()
        optimizer.step()
        rates.step()
    assert found == pytest.approx([2.0 * rate for rate in expected], rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 30, 31, 100])
def test_every_step_learns_and_the_peak_is_reached(schedule, warmup):
    found = [learning_rate_factor(schedule, step, 30, warmup) for step in range(1, 31)]
    assert min(found) > 0
    assert max(found) == min(30 / max(warmup, 1), 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine_with_restarts", "constant", "inverse_sqrt"])
def test_without_a_warm_up_the_rates_are_those_of_transformers(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=12)
    for step in range(1, 13):
        assert learning_rate_factor(schedule, step, 12, 0) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


def test_the_warm_up_is_a_ratio_or_a_number_of_steps():
    assert [warmup_steps_of(TrainConfig(), steps) for steps in (1, 2, 10, 11)] == [1, 1, 1, 2]
    assert warmup_steps_of(TrainConfig(warmup_ratio=0.9, warmup_steps=2), 20) == 2
    assert warmup_steps_of(TrainConfig(warmup_ratio=0.0), 20) == 0


@pytest.mark.parametrize("settings", [{}, {"warmup_steps": 0}, {"warmup_steps": 1}, {"warmup_ratio": 0.0}])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "inverse_sqrt"])
def test_a_run_of_one_step_learns(schedule, settings):
    model = lora_model()
    before = weights(model)
    _, result = run(model, data_of(8, 4), epochs=1, batch_size=8, lr_scheduler_type=schedule, **settings)
    assert [step.learning_rate for step in steps(result)] == [1e-2]
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_warm_up_longer_than_the_run_is_reported(recwarn):
    _, result = run(max_steps=2, warmup_steps=100)
    assert [step.learning_rate for step in steps(result)] == pytest.approx([1e-4, 2e-4])
    [note] = [str(warning.message) for warning in recwarn if "warmup_steps" in str(warning.message)]
    assert note == (
        "train.warmup_steps is 100 and the run has 2 steps: the learning rate only rises to 2/100 of its peak"
    )


def test_a_ratio_beside_a_number_of_warm_up_steps_is_reported(recwarn):
    _, result = run(max_steps=2, warmup_steps=2, warmup_ratio=0.5)
    assert [step.learning_rate for step in steps(result)] == pytest.approx([5e-3, 1e-2])
    [note] = [str(warning.message) for warning in recwarn if "warmup_steps" in str(warning.message)]
    assert note == "train.warmup_steps 2 replaces train.warmup_ratio 0.5: leave one of them out"


@pytest.mark.parametrize(
    ("architecture", "task", "examples", "expected"),
    [
        ("bert", "sequence_classification", 20, 15),
        ("bert", "sequence_classification", 200, 10),
        ("bert", "token_classification", 300, 7),
        ("llama", "sequence_classification", 400, 5),
        ("bert", "sequence_classification", 100_000, 5),
        ("llama", "causal_lm", 20, 5),
    ],
)
def test_heads_pass_more_often_over_few_examples(architecture, task, examples, expected, task_base):
    labels = ("no", "yes") if task.endswith("classification") else ()
    model = load_base(str(task_base(architecture)), task=task, labels=labels).model
    assert num_epochs(TrainConfig(), model, examples) == expected
    assert num_epochs(TrainConfig(epochs=3), model, examples) == 3
