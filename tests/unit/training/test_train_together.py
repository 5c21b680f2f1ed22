"""Adapters trained in shared batches get the weights of adapters trained alone."""

import json

import pytest
import torch
from tiny import perturb, tiny_model
from training_jobs import IdTokenizer, assert_equal, data_of, split_of

from peftly import (
    LoRA,
    PrefixTuning,
    PromptTuning,
    TrainConfig,
    attach,
    load_adapter,
    train,
    train_together,
    trainable_parameters,
)
from peftly.data import Data
from peftly.errors import ConfigError, TrainingError
from peftly.training.callbacks import Callback
from peftly.training.train import Job

ADAPTERS = {
    "lora": LoRA(rank=2),
    "prompt": PromptTuning(num_virtual_tokens=3, init="random"),
    "prefix": PrefixTuning(num_virtual_tokens=2),
    "another": LoRA(rank=3, target_modules=("q_proj", "down_proj")),
}
JOBS = {
    "lora": Job(data_of(10), TrainConfig(epochs=3, batch_size=4, learning_rate=0.02, weight_decay=0.01)),
    "prompt": Job(
        Data(split_of(7, 3), split_of(5, 4), None, data_of().row_format, None),
        TrainConfig(epochs=2, batch_size=2, gradient_accumulation_steps=2, learning_rate=0.1, seed=5),
    ),
    "prefix": Job(data_of(9, 0), TrainConfig(epochs=1, batch_size=3, learning_rate=0.05, max_grad_norm=0.1)),
    "another": Job(
        data_of(12),
        TrainConfig(epochs=4, batch_size=4, learning_rate=0.03, eval_steps=2, early_stopping_patience=1, seed=2),
    ),
}


def with_adapters(*names):
    model = tiny_model("llama", torch.float64)
    for seed, name in enumerate(names):
        attach(model, ADAPTERS[name], name=name, seed=seed)
    perturb(trainable_parameters(model).values(), scale=0.05)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.double()
    return model


def own(model, name):
    return {path: value.detach() for path, value in trainable_parameters(model).items() if f".{name}." in path}


def test_each_adapter_gets_the_weights_of_training_alone(tmp_path):
    together = with_adapters(*JOBS)
    results = train_together(together, JOBS, tokenizer=IdTokenizer(), out=tmp_path / "all")
    assert list(results) == list(JOBS)
    for seed, (name, job) in enumerate(JOBS.items()):
        alone = tiny_model("llama", torch.float64)
        attach(alone, ADAPTERS[name], name=name, seed=seed)
        start = own(with_adapters(*JOBS), name)
        for path, value in trainable_parameters(alone).items():
            value.data = start[path].clone()
        result = train(alone, job.data, job.config, tokenizer=IdTokenizer())
        for path, value in own(alone, name).items():
            # Llama's norms are computed in fp32 and round differently in other batches, which Adam magnifies.
            torch.testing.assert_close(own(together, name)[path], value, rtol=1e-5, atol=1e-7)
        both = (results[name], result)
        assert len({(one.steps, one.best_step, one.stopped_early, one.learning_rate) for one in both}) == 1
        for record, expected in zip(results[name].history, result.history, strict=True):
            assert record.loss == pytest.approx(expected.loss, rel=1e-8)
            assert getattr(record, "grad_norm", 0) == pytest.approx(getattr(expected, "grad_norm", 0), rel=1e-7)
        lines = (tmp_path / "all" / name / "metrics.jsonl").read_text().splitlines()
        assert len([line for line in lines if json.loads(line)["kind"] == "step"]) == result.steps
        saved = load_adapter(tiny_model("llama", torch.float64), tmp_path / "all" / name / "adapter", name=name)
        for path, value in own(saved, name).items():
            torch.testing.assert_close(value.double(), own(together, name)[path], rtol=1e-6, atol=1e-7)


def test_other_adapters_of_the_model_do_not_change():
    model = with_adapters("lora", "prompt")
    before = own(model, "prompt")
    before = {path: value.clone() for path, value in before.items()}
    train_together(model, {"lora": JOBS["lora"]}, tokenizer=IdTokenizer())
    assert_equal(own(model, "prompt"), before)


def test_a_failure_saves_the_weights_of_the_other_adapters(tmp_path):
    model = with_adapters("lora", "prompt")

    class Spoil(Callback):
        def on_step(self, record):
            if record.step == 2:
                next(iter(own(model, "prompt").values())).fill_(torch.nan)

    class Count(Callback):
        def on_step(self, record):
            steps.append(record.step)

    steps = []
    jobs = {name: JOBS[name] for name in ("lora", "prompt")}
    callbacks = {"lora": [Count()], "prompt": [Spoil()]}
    with pytest.raises(TrainingError, match=r"step 3: loss nan.*after step 1.*prompt/adapter"):
        train_together(model, jobs, tokenizer=IdTokenizer(), out=tmp_path, callbacks=callbacks)
    assert steps == [1, 2]  # the gradients of step 3 are not trusted
    assert (tmp_path / "lora" / "adapter-interrupted" / "adapter_config.json").is_file()
    assert (tmp_path / "prompt" / "adapter" / "adapter_config.json").is_file()


def test_a_job_without_an_adapter_is_refused():
    model = with_adapters("lora")
    with pytest.raises(ConfigError, match="no adapter 'prompt' to train; the model has 'lora'"):
        train_together(model, {"prompt": JOBS["prompt"]}, tokenizer=IdTokenizer())
    with pytest.raises(ConfigError, match="there is no job"):
        train_together(model, {}, tokenizer=IdTokenizer())


class _Stops(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, record):
        if record.step == self.step:
            raise KeyboardInterrupt


def test_an_interrupt_saves_the_adapters_that_have_not_finished(tmp_path):
    model = with_adapters("lora", "prompt")
    jobs = {"lora": JOBS["lora"], "prompt": Job(data_of(4), TrainConfig(max_steps=1, batch_size=4))}
    stops = {"lora": [_Stops(3)]}
    with pytest.raises(KeyboardInterrupt, match=r"^stopped at step 3 of 9; the weights so far are in \S*interrupted$"):
        train_together(model, jobs, tokenizer=IdTokenizer(), out=tmp_path, callbacks=stops)
    found = {name: sorted(path.name for path in (tmp_path / name).iterdir() if path.is_dir()) for name in jobs}
    assert found == {"lora": ["adapter-interrupted"], "prompt": ["adapter"]}
