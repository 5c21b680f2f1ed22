"""A run that is stopped anywhere and resumed ends with the same bytes as a run without a stop."""

import json
import math
import random
import signal
from contextlib import contextmanager, nullcontext
from importlib import import_module

import numpy as np
import pytest
import torch
from checkpoint_fuzz import CheckpointFuzzer
from references import METHOD_CELLS, adapted
from tiny import tiny_model
from training_jobs import IdTokenizer, Scores, assert_equal, data_of, lora_model, run, weights
from upper_adapters import calls_below, upper_lora

from peftly import IA3, LoRA, PromptTuning, attach, load_adapter
from peftly.data import Data, Split
from peftly.errors import ConfigError, DataError, Stopped, TrainingError
from peftly.injection.layers import owner
from peftly.runs.progress import keeping_progress
from peftly.training.callbacks import Callback
from peftly.training.checkpoint import (
    check_same_run,
    checkpoint_files,
    random_states,
    read_state,
    set_random_states,
    write_state,
)
from peftly.training.config import TrainConfig
from peftly.training.frozen_layers import frozen_layers
from peftly.training.train import Job, train, train_together
from peftly.utils import MARK, mark_text
from peftly.utils.signals import stops_held

GRADIENTS = import_module("peftly.training.gradients")


class KilledError(Exception):
    """Stands for a killed process: nothing of the loop runs afterwards."""


@contextmanager
def killed():
    """Expect a `KilledError`, after which no checkpoint is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("peftly.training.session"), "_write_checkpoint", lambda *_: None)
        with pytest.raises(KilledError):
            yield


def newest_state(out):
    return read_state(checkpoint_files(out)[0])


class Kill(Callback):
    """Raises an error after a step, or after the evaluation of that step."""

    def __init__(self, step, *, at_evaluation=False):
        self.step, self.at_evaluation = step, at_evaluation

    def on_step(self, record):
        if record.step == self.step and not self.at_evaluation:
            raise KilledError

    def on_evaluate(self, record):
        if record.step == self.step and self.at_evaluation:
            raise KilledError


def killed_and_resumed(make, out, kill, data=None, **settings):
    """Train a model until it is killed, and resume the run with another model."""
    data = data or data_of()
    with killed():
        run(make(), data, out, [kill], **settings)
    model = make()
    config = TrainConfig(**{"learning_rate": 1e-2, "epochs": 2, "batch_size": 4} | settings)
    result = train(model, data, config, tokenizer=IdTokenizer(), out=out, resume=True, delete_checkpoints=False)
    return model, result


def without_times(result):
    """Return the records and the attributes of a result, without times and memory."""
    timed = {"seconds", "tokens_per_second", "memory_bytes", "peak_memory_bytes"}
    records = [{key: value for key, value in vars(record).items() if key not in timed} for record in result.history]
    return records, {key: value for key, value in vars(result).items() if key not in {*timed, "history", "best"}}


def assert_same_run(run, reference):
    (model, result), (other, expected) = run, reference
    assert_equal(weights(model), weights(other))
    assert without_times(result) == without_times(expected)


def dropping_lora():
    return attach(tiny_model("llama", torch.float32), LoRA(rank=2, dropout=0.3), seed=1)


@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
def test_every_method_ends_with_the_same_bytes(architecture, method, tmp_path):
    def make():
        return adapted(architecture, method)[0]

    expected = run(make())
    found = killed_and_resumed(make, tmp_path, Kill(6), checkpoint_steps=5)
    assert_same_run(found, expected)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor", "sgd"])
@pytest.mark.parametrize(("step", "at_evaluation"), [(1, False), (4, True), (8, False), (8, True)])
@pytest.mark.sample(4)
def test_optimizers_dropout_and_any_moment(optimizer, step, at_evaluation, tmp_path):
    settings = {
        "optimizer": optimizer,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "gradient_accumulation_steps": 1,
    }
    expected = run(dropping_lora(), out=tmp_path / "whole", **settings)
    kill = Kill(step, at_evaluation=at_evaluation)
    found = killed_and_resumed(dropping_lora, tmp_path / "killed", kill, checkpoint_steps=1, **settings)
    assert_same_run(found, expected)
    files = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert files[0] == files[1]
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "killed")]
    kinds = [[(line["kind"], line.get("step")) for line in map(json.loads, one)] for one in lines]
    assert kinds[0] == kinds[1]


class Draw(Callback):
    """Draws a random number after every step and evaluation, as a callback that samples text does."""

    def on_step(self, _record):
        torch.rand(1)

    on_evaluate = on_step


def test_random_numbers_of_callbacks_are_part_of_the_state(tmp_path):
    settings = {"learning_rate": 1e-2, "epochs": 2, "batch_size": 4, "checkpoint_steps": 2}
    expected = run(dropping_lora(), callbacks=[Draw()], **settings)
    assert not torch.equal(*(next(iter(weights(model).values())) for model in (expected[0], run(dropping_lora())[0])))
    with killed():
        run(dropping_lora(), out=tmp_path, callbacks=[Draw(), Kill(5)], **settings)
    model, config = dropping_lora(), TrainConfig(**settings)
    result = train(*(model, data_of(), config), tokenizer=IdTokenizer(), out=tmp_path, resume=True, callbacks=[Draw()])
    assert_same_run((model, result), expected)


def test_a_run_may_be_killed_again_and_again(tmp_path):
    expected = run(dropping_lora(), epochs=3)
    for step in (2, 3, 5, 9, 11):
        model = dropping_lora()
        config = TrainConfig(learning_rate=1e-2, epochs=3, batch_size=4, checkpoint_steps=1)
        with killed():
            train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True, callbacks=[Kill(step)])
    model = dropping_lora()
    assert_same_run(
        (model, train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)), expected
    )


def test_patience_and_the_best_weights_are_restored(monkeypatch, tmp_path):
    losses = (3.0, 1.0, 2.5, 2.0, 0.5)
    settings = {"epochs": 9, "eval_steps": 2, "early_stopping_patience": 2}
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(*losses))
    expected = run(**settings)
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(*losses[:2], *losses[2:]))
    found = killed_and_resumed(lora_model, tmp_path, Kill(6), checkpoint_steps=1, **settings)
    assert_same_run(found, expected)
    assert (found[1].steps, found[1].best_step, found[1].stopped_early) == (8, 4, True)
    loaded = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")
    assert_equal(weights(loaded), weights(expected[0]))


def test_ctrl_c_writes_a_checkpoint_of_the_present_step(tmp_path):
    """Between two steps, in the middle of one, and in an evaluation."""
    expected = run(dropping_lora())

    def in_a_step(monkeypatch):
        original, calls = torch.Tensor.backward, []

        def backward(*given, **named):
            calls.append(None)
            if len(calls) == 7:
                raise KeyboardInterrupt
            return original(*given, **named)

        monkeypatch.setattr(torch.Tensor, "backward", backward)

    def in_an_evaluation(monkeypatch):
        def evaluate(*given, **named):
            raise KeyboardInterrupt

        monkeypatch.setattr("peftly.training.job.evaluate", evaluate)

    for number, (interrupt, step) in enumerate([(in_a_step, 6), (in_an_evaluation, 4)]):
        out = tmp_path / str(number)
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch)
            with pytest.raises(KeyboardInterrupt):
                run(dropping_lora(), out=out)
        assert newest_state(out)["jobs"]["None"]["run_state"]["step"] == step
        model = dropping_lora()
        config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
        result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=out, resume=True)
        assert_same_run((model, result), expected)
        found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in found if line["kind"] == "step"] == list(range(1, 9))


@pytest.mark.parametrize("step", [2, 5, 7])
def test_states_of_frozen_layers_are_computed_again_in_the_same_batches(step, tmp_path):
    def make():
        model = upper_lora("llama").float()
        # As in the last digits on real models: the output for an example depends on the others of its batch.
        frozen_layers(model)[0].register_forward_hook(lambda *call: call[-1] * (1 + call[-1].shape[1] / 1000))
        return model

    data, settings = data_of(19), {"epochs": 3, "micro_batch_tokens": 20}
    expected = run(make(), data, **settings)
    found = killed_and_resumed(make, tmp_path, Kill(step), data, checkpoint_steps=1, **settings)
    assert_same_run(found, expected)


def test_only_frozen_layers_are_computed_again(tmp_path):
    calls, models = [], []

    def make():
        models.append(upper_lora("llama"))
        calls.append(calls_below(models[-1]))
        return models[-1]

    killed_and_resumed(make, tmp_path, Kill(7), data_of(), epochs=2, checkpoint_steps=1)
    assert len(calls[1]) == 4  # those of one epoch; the step that is left reads the stored states


def test_the_loss_scale_is_restored(monkeypatch, tmp_path):
    monkeypatch.setattr("peftly.training.loss_scale.INITIAL_SCALE", 2.0**40)
    monkeypatch.setattr("peftly.training.loss_scale.GROWTH_INTERVAL", 3)

    def make():
        model = dropping_lora().to(torch.float16)  # every attempt draws a dropout mask
        for name, parameter in model.named_parameters():
            if "peftly" in name:
                parameter.data = parameter.data.float()
        return model

    expected = run(make(), epochs=3)
    found = killed_and_resumed(make, tmp_path, Kill(6), epochs=3, checkpoint_steps=1)
    assert_same_run(found, expected)
    scale = newest_state(tmp_path)["gradients"]["loss_scale"]
    assert 1 < scale["scale"] < 2.0**40


def test_a_lower_limit_of_tokens_is_restored(monkeypatch, tmp_path):
    """From step 5 on half as many tokens go through the model at once, also in the resumed run."""
    original = GRADIENTS.StepGradients.accumulate

    def accumulate(self, work):
        if work[0][0].step == 4 and self.splitter.limit > 30:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return original(self, work)

    monkeypatch.setattr(GRADIENTS.StepGradients, "accumulate", accumulate)
    with pytest.warns(UserWarning, match="memory ran out at step 5"):
        expected = run(dropping_lora())
    with pytest.warns(UserWarning, match="memory ran out at step 5"):
        found = killed_and_resumed(dropping_lora, tmp_path, Kill(6), checkpoint_steps=1)
    assert_same_run(found, expected)
    limits = newest_state(tmp_path)["gradients"]["limits"]
    assert list(limits) == [0, 4]
    assert limits[4] < limits[0]


def test_the_initial_weights_of_pissa_are_those_of_the_first_run(tmp_path):
    """Another version of a library may compute singular vectors with other last digits."""
    factors = iter([1, 1, 1 + 1e-6])

    def make():
        model = attach(tiny_model("llama", torch.float32), LoRA(rank=2, init="pissa"), seed=1)
        factor = next(factors)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if owner(name):
                tensor.data *= factor
        return model

    expected = run(make())
    assert_same_run(killed_and_resumed(make, tmp_path, Kill(6), checkpoint_steps=1), expected)


def test_adapters_that_are_trained_together(tmp_path):
    def make():
        model = tiny_model("llama", torch.float32)
        attach(model, LoRA(rank=2, dropout=0.2), name="long", seed=1)
        return attach(model, PromptTuning(num_virtual_tokens=3, init="random"), name="short", seed=2)

    jobs = {
        "long": Job(data_of(16), TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, checkpoint_steps=2)),
        "short": Job(data_of(9), TrainConfig(epochs=1, batch_size=3, learning_rate=1e-1)),
    }
    model, again = make(), make()
    expected = train_together(model, jobs, tokenizer=IdTokenizer())
    for step in (2, 8):  # "short" has finished at step 8
        with killed():
            train_together(
                make(), jobs, tokenizer=IdTokenizer(), out=tmp_path, callbacks={"long": [Kill(step)]}, resume=True
            )
    found = train_together(again, jobs, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_equal(weights(again), weights(model))
    assert {name: without_times(result) for name, result in found.items()} == {
        name: without_times(result) for name, result in expected.items()
    }


def test_without_a_checkpoint_a_run_begins_at_the_beginning(tmp_path):
    model = lora_model()
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), run())


def test_a_finished_run_can_be_resumed(tmp_path):
    model, config = dropping_lora(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, delete_checkpoints=False)
    expected = model, result
    model = dropping_lora()
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_ten_minutes_between_checkpoints(monkeypatch, tmp_path):
    with killed():
        run(out=tmp_path / "short", callbacks=[Kill(6)])
    assert checkpoint_files(tmp_path / "short") == []
    monkeypatch.setattr("peftly.training.loop.CHECKPOINT_SECONDS", 0)
    with killed():
        run(out=tmp_path / "long", callbacks=[Kill(6)])
    assert [file.name for file in checkpoint_files(tmp_path / "long")] == [
        f"checkpoint-{step}.safetensors" for step in (5, 4)
    ]
    assert [file.name for file in (tmp_path / "long").iterdir() if file.name.startswith(".")] == [MARK]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(monkeypatch, tmp_path):
    def full(*_given, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftly.training.checkpoint.write_tensors", full)
    with pytest.warns(UserWarning, match="no checkpoint at step 5: No space left on device"):
        found = run(out=tmp_path, checkpoint_steps=5)
    assert_same_run(found, run())
    assert not [file for file in tmp_path.iterdir() if "checkpoint" in file.name]


def stopped_run(out):
    """Leave the checkpoints of steps 3 and 6 of a run."""
    with killed():
        run(out=out, checkpoint_steps=3, callbacks=[Kill(7)])


def other(method):
    return {"model": attach(tiny_model("llama", torch.float32), method)}


def moved_example():
    """The examples of `data_of`, with the last one for training moved to the validation examples."""
    data = data_of()
    train, validation = data.train, data.validation
    return Data(
        Split(train.examples[:-1], train.encoded[:-1]),
        Split([train.examples[-1], *validation.examples], [train.encoded[-1], *validation.encoded]),
        *(None, data.row_format, None),
    )


def other_base(change):
    """A model that `change` has changed before an adapter was put on it."""
    model = tiny_model("llama", torch.float32)
    change(model)
    return {"model": attach(model, LoRA(rank=2), seed=1)}


def other_element(model):
    model.model.layers[1].mlp.up_proj.weight.data[20, 17] += 1e-3


def other_rope(model):
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 500.0}


def other_dropout(model):
    model.config.attention_dropout = 0.1


def other_buffer(model):
    model.register_buffer("shift", torch.zeros(2))


def other_eps(model):
    model.config.rms_norm_eps = 1e-5


OTHER_RUNS = {
    "settings": ({"epochs": 3}, {}, "train.epochs 2, and now it is 3"),
    "rows": ({}, {"data": data_of(17)}, "on other training examples"),
    "validation": ({}, {"data": data_of(16, 5)}, "on other validation examples"),
    "an example in the other split": ({}, {"data": moved_example()}, "on other training examples"),
    "rate": ({"learning_rate": None}, {"rate": 1e-3}, "train.learning_rate 0.01, and now it is None"),
    "dtype": ({}, {"model": lora_model(torch.bfloat16)}, "the dtype is torch.bfloat16 and was torch.float32"),
    "one element": ({}, other_base(other_element), "another base: model.layers.1.mlp.up_proj.weight has other values"),
    "rope_theta": ({}, other_base(other_rope), r"another base: rope_theta is 500.0 and was 10000.0"),
    "eps": ({}, other_base(other_eps), "another base: rms_norm_eps is 1e-05 and was 1e-06"),
    "dropout": ({}, other_base(other_dropout), "another base: attention_dropout is 0.1 and was 0.0"),
    "buffer": ({}, other_base(other_buffer), "another base: it also has shift"),
    "settings of the method": ({}, other(LoRA(rank=2, alpha=5)), r"lora\.alpha 16.*, and now it is 5"),
    "method": ({}, other(IA3()), "of other methods: lora, not ia3"),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run(name, tmp_path):
    settings, given, message = OTHER_RUNS[name]
    stopped_run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    config = TrainConfig(**{"learning_rate": 1e-2, "epochs": 2, "batch_size": 4} | settings)
    model, data = given.get("model") or lora_model(), given.get("data") or data_of()
    before_weights = weights(model)
    with pytest.raises(ConfigError, match=message) as error:
        train(model, data, config, tokenizer=IdTokenizer(), out=tmp_path, resume=True, learning_rate=given.get("rate"))
    assert "\n" not in str(error.value)
    assert_equal(weights(model), before_weights)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_learning_rate_argument_is_part_of_the_run(tmp_path):
    config = TrainConfig(epochs=2, batch_size=4, checkpoint_steps=3)
    train(
        *(lora_model(), data_of(), config),
        tokenizer=IdTokenizer(),
        out=tmp_path,
        learning_rate=1e-2,
        delete_checkpoints=False,
    )
    with pytest.raises(ConfigError, match="with other learning rates"):
        train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, learning_rate=1e-4, resume=True)


def test_a_refused_checkpoint_changes_none_of_several_adapters(tmp_path):
    def make():
        model = attach(tiny_model("llama", torch.float32), LoRA(rank=2), name="a", seed=1)
        return attach(model, LoRA(rank=2), name="b", seed=2)

    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_steps=3)
    jobs = {"a": Job(data_of(), config), "b": Job(data_of(), config)}
    train_together(make(), jobs, tokenizer=IdTokenizer(), out=tmp_path, delete_checkpoints=False)
    model, metrics = make(), (tmp_path / "a" / "metrics.jsonl").read_bytes()
    before_weights = weights(model)
    with pytest.raises(ConfigError, match="on other training examples"):
        train_together(
            model, {**jobs, "b": Job(data_of(17), config)}, tokenizer=IdTokenizer(), out=tmp_path, resume=True
        )
    assert_equal(weights(model), before_weights)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == metrics


def test_a_checkpoint_is_deleted_by_a_finished_training_only(tmp_path):
    stopped_run(tmp_path)
    files = checkpoint_files(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoint-6\.safetensors is of an unfinished training; .*resume=True"):
        run(out=tmp_path)
    assert checkpoint_files(tmp_path) == files
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert checkpoint_files(tmp_path) == []


ERRORS = [
    RuntimeError("boom"),
    OSError(5, "Input/output error"),
    SystemExit(3),
    MemoryError(),
    BrokenPipeError(32, "x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at_evaluation", [False, True])
def test_every_exception_leaves_a_checkpoint_of_its_step(error, at_evaluation, tmp_path):
    class Fail(Callback):
        def on_step(self, record):
            if record.step == 4 and not at_evaluation:
                raise error

        def on_evaluate(self, _record):
            if at_evaluation:
                raise error

    expected = run(dropping_lora())
    with pytest.raises(type(error)):
        run(dropping_lora(), out=tmp_path, callbacks=[Fail()])
    assert [file.name for file in checkpoint_files(tmp_path)] == ["checkpoint-4.safetensors"]
    model, config = dropping_lora(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if line["kind"] == "step"] == list(range(1, 9))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_of_a_scheduler_leaves_a_checkpoint_of_its_step(name, tmp_path):
    class Send(Callback):
        def on_step(self, record):
            if record.step == 3:
                signal.raise_signal(getattr(signal, name))

    expected = run(dropping_lora())
    with pytest.raises(Stopped, match=f"stopped by {name}; stopped at step 3 of 8; .*adapter-interrupted"):
        run(dropping_lora(), out=tmp_path, callbacks=[Send()])
    assert signal.getsignal(getattr(signal, name)) is signal.SIG_DFL
    assert newest_state(tmp_path)["jobs"]["None"]["run_state"]["step"] == 3
    model, config = dropping_lora(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_a_signal_that_the_program_ignores_stays_ignored(tmp_path):
    class Send(Callback):
        def on_step(self, _record):
            signal.raise_signal(signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(out=tmp_path, callbacks=[Send()])[1].steps == 8
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_newest_undamaged_checkpoint_is_read(tmp_path):
    expected = run()
    stopped_run(tmp_path)
    file = tmp_path / "checkpoint-6.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    model = lora_model()
    with pytest.warns(UserWarning, match=r"checkpoint-6.* is damaged .*; continuing from checkpoint-3\.safetensors"):
        result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_number_of_checkpoints(tmp_path):
    with killed():
        run(out=tmp_path, checkpoint_steps=1, keep_checkpoints=3, callbacks=[Kill(7)])
    assert [file.name for file in checkpoint_files(tmp_path)] == [f"checkpoint-{n}.safetensors" for n in (6, 5, 4)]


@pytest.mark.parametrize("damage", ["missing", "cut", "a digit"])
def test_damaged_metrics_change_no_weight(damage, tmp_path):
    expected = run()
    with killed():
        run(out=tmp_path, callbacks=[Kill(6)], checkpoint_steps=5)
    file = tmp_path / "metrics.jsonl"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:700])
    else:
        file.write_bytes(content.replace(b'"step": 2', b'"step": x'))
    model, config = lora_model(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=5)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl was changed or is incomplete"):
        train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_equal(weights(model), weights(expected[0]))


def test_a_full_disk_delays_the_metrics(monkeypatch, tmp_path):
    from peftly.utils import file_changes

    appended = []

    def full(change, path):
        if change == "append" and path.name == "metrics.jsonl":
            appended.append(path)
            if 2 < len(appended) < 6:
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_changes, "before_change", full)
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: No space left on device; its lines are written when"):
        run(out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 9))


def test_times_continue(tmp_path, monkeypatch):
    with killed():
        run(out=tmp_path, callbacks=[Kill(6)], checkpoint_steps=4)
    state = newest_state(tmp_path)
    state["jobs"]["None"]["seconds"] = 1000.0
    write_state(checkpoint_files(tmp_path)[0], state)
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=4)
    result = train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    times = [record.seconds for record in result.history]
    assert times == sorted(times)
    assert times[3] < 1000 < times[-1] < result.seconds < 1100


@pytest.mark.parametrize("where", ["on_step", "on_save"])
def test_ctrl_c_waits_until_the_weights_are_updated(where, tmp_path):
    """A real signal, in the middle of an update and while the last adapter is saved."""
    expected = run()

    class Press(Callback):
        def on_step(self, record):
            if where == "on_step" and record.step == 5:
                signal.raise_signal(signal.SIGINT)

        def on_save(self, path):
            if where == "on_save" and path.name == "adapter":
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path, callbacks=[Press()])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert newest_state(tmp_path)["jobs"]["None"]["run_state"]["step"] == (5 if where == "on_step" else 8)
    model, config = lora_model(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_the_third_ctrl_c_waits_for_nothing():
    done = []

    def press_thrice():
        with stops_held():
            for press in ("first", "second", "third"):
                signal.raise_signal(signal.SIGINT)
                done.append(press)

    with pytest.raises(KeyboardInterrupt):
        press_thrice()
    assert done == ["first", "second"]


@pytest.mark.parametrize("second", ["sync", "move"])
def test_two_quick_ctrl_c_lose_nothing(second, monkeypatch, tmp_path):
    """The second Ctrl-C comes while the checkpoint of the first one is written."""
    from peftly.utils import file_changes

    class Press(Callback):
        def on_step(self, record):
            if record.step == 3:
                monkeypatch.setattr(file_changes, "before_change", press_again)
                signal.raise_signal(signal.SIGINT)

    def press_again(change, path):
        if change == second:
            monkeypatch.undo()
            signal.raise_signal(signal.SIGINT)

    expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path, callbacks=[Press()])
    model, config = lora_model(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
    assert newest_state(tmp_path)["jobs"]["None"]["run_state"]["step"] == 3
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_memory_that_ran_out_in_the_first_epoch_over_frozen_layers(monkeypatch, tmp_path):
    """An attempt that failed has shown the frozen layers other batches than those of the step that was made."""

    def make():
        model = upper_lora("llama").float()
        frozen_layers(model)[0].register_forward_hook(lambda *call: call[-1] * (1 + call[-1].shape[1] / 1000))
        return model

    original = GRADIENTS.StepGradients.accumulate

    def accumulate(self, work):
        losses = original(self, work)
        if work[0][0].step == 1 and self.splitter.limit > 30:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return losses

    monkeypatch.setattr(GRADIENTS.StepGradients, "accumulate", accumulate)
    with pytest.warns(UserWarning, match="memory ran out at step 2"):
        expected = run(make(), epochs=3)
    with pytest.warns(UserWarning, match="memory ran out at step 2"):
        found = killed_and_resumed(make, tmp_path, Kill(7), epochs=3, checkpoint_steps=1)
    assert_same_run(found, expected)


def test_moments_keep_their_dtype(tmp_path):
    """Adafactor's are fp32 beside weights in bf16, and torch would round them."""

    def make():
        return lora_model(torch.bfloat16)

    settings = {"optimizer": "adafactor", "learning_rate": 0.1}
    expected = run(make(), **settings)
    found = killed_and_resumed(make, tmp_path, Kill(6), checkpoint_steps=1, **settings)
    assert_same_run(found, expected)


@pytest.mark.parametrize("damage", ["cut", "no state", "version", "a bit", "unreadable"])
def test_a_damaged_checkpoint(damage, monkeypatch, tmp_path):
    with killed():
        run(out=tmp_path, checkpoint_steps=3, callbacks=[Kill(5)])
    (file,) = checkpoint_files(tmp_path)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "no state":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, file)
    elif damage == "a bit":
        content = bytearray(file.read_bytes())
        content[-40] ^= 4
        file.write_bytes(content)
    elif damage == "unreadable":

        def refuse(*_given, **_named):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("peftly.training.checkpoint.safe_open", refuse)
    else:
        monkeypatch.setattr("peftly.training.checkpoint.FORMAT", 0)
        write_state(file, {})
        monkeypatch.setattr("peftly.training.checkpoint.FORMAT", 3)
    message = r"(is damaged|has format 0).*to train from the beginning, delete checkpoint-3"
    if damage == "unreadable":
        message = r"^cannot read .*: Permission denied; to train from the beginning, delete"
    with pytest.raises(TrainingError, match=message):
        train(
            lora_model(), data_of(), TrainConfig(learning_rate=1e-2), tokenizer=IdTokenizer(), out=tmp_path, resume=True
        )


def test_another_environment_gives_a_note(monkeypatch, tmp_path):
    with killed():
        run(out=tmp_path, checkpoint_steps=3, callbacks=[Kill(5)])
    monkeypatch.setattr("peftly.training.loop.computes_with", lambda _: {"torch": torch.__version__, "threads": 99})
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    with pytest.warns(UserWarning, match=r"started in another environment \(threads \d+, now 99\)"):
        train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)


def test_a_training_replaces_files_of_a_training_only(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is not of a training; train into a new or empty folder"):
        run(out=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / MARK).write_text(mark_text("a run", finished=True))
    with pytest.raises(ConfigError, match="holds a finished run; train into another folder"):
        run(out=tmp_path / "finished")
    for _ in range(2):  # a cell of a notebook may run twice
        run(out=tmp_path / "own")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [MARK, "adapter", "metrics.jsonl"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("error", [TrainingError, DataError, OSError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("saved", [None, "step-1/adapter_config.json", "checkpoint-1.safetensors"])
def test_a_failed_training_keeps_adapters_and_checkpoints(saved, error, resume, monkeypatch, tmp_path):
    pages, out = [], tmp_path / "run"
    monkeypatch.setattr(import_module("peftly.runs.progress"), "write_report", pages.append)

    def fail():
        with keeping_progress(out, [out], resume=resume):
            (out / "step-1").mkdir(parents=True)
            (out / "config.yaml").touch()
            (out / MARK).write_text(mark_text("a run", finished=False))
            if saved:
                (out / saved).touch()
            raise error("no more")

    has_checkpoint = saved == "checkpoint-1.safetensors"
    is_wrapped = has_checkpoint and error in (DataError, OSError)
    with pytest.raises(TrainingError if is_wrapped else error) as caught:
        fail()
    assert (out / "config.yaml").exists() == bool(saved or resume)
    assert saved is None or (out / saved).exists()
    assert pages == [out] * (saved == "step-1/adapter_config.json")
    advises = has_checkpoint and error not in (TrainingError, SystemExit)
    assert ("continue with: " in str(caught.value)) == advises


def test_states_on_disk(tmp_path):
    shared = torch.arange(4.0)
    state = {"a": [1, 2.5, None, True, "x", math.inf, math.nan], 3: {"t": shared, "view": shared[1:]}, "e": {}, "l": []}
    write_state(tmp_path / "state", state)
    found = read_state(tmp_path / "state")
    assert found["a"][:-1] == state["a"][:-1]
    assert math.isnan(found["a"][-1])
    assert list(found) == ["a", 3, "e", "l"]
    assert torch.equal(found[3]["t"], shared)
    assert torch.equal(found[3]["view"], shared[1:])
    assert (found["e"], found["l"]) == ({}, [])


def test_generators(tmp_path):
    device = torch.device("cpu")
    write_state(tmp_path / "state", random_states(device))
    drawn = [(random.random(), np.random.rand(), torch.rand(3).tolist()) for _ in range(2)]
    set_random_states(read_state(tmp_path / "state"), device)
    assert [(random.random(), np.random.rand(), torch.rand(3).tolist()) for _ in range(2)] == drawn


@pytest.mark.filterwarnings("ignore")
def test_changed_checkpoints_raise_only_our_errors(tmp_path):
    """A sample of `tests/soak/test_fuzz_checkpoints.py`."""
    fuzzer = CheckpointFuzzer(tmp_path)
    for seed in range(40):
        fuzzer.run(seed)
    assert {"ConfigError", "TrainingError"} <= fuzzer.outcomes.keys() <= {"ok", "ConfigError", "TrainingError"}


def test_a_resumed_run_has_the_largest_memory_of_all_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("peftly.training.memory.peak_memory", lambda device: 10**15)
    with killed():
        run(lora_model(), out=tmp_path, callbacks=[Kill(6)], checkpoint_steps=5)
    monkeypatch.undo()
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=5)
    result = train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert result.peak_memory_bytes == 10**15


@pytest.mark.parametrize(("threshold", "is_same"), [(0.0, True), (0.1, False)])
def test_a_checkpoint_without_a_new_setting_is_of_its_default(threshold, is_same):
    """Checkpoints of earlier versions were refused after an update that brought a setting."""
    same = {"examples": [None, None], "learning_rates": [], "methods": {}, "parameters": {}}
    now = {"config": {"epochs": 3, "early_stopping_threshold": threshold}, **same}
    refused = pytest.raises(ConfigError, match=r"train.early_stopping_threshold 0.0, and now it is 0.1")
    with nullcontext() if is_same else refused:
        check_same_run(now, {"config": {"epochs": 3}, **same})
