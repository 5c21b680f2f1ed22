"""A run that is stopped anywhere and resumed ends with the same bytes as a run without a stop."""

import json
import math
import random
import signal
from importlib import import_module

import numpy as np
import pytest
import torch
from references import METHOD_CELLS, adapted
from tiny import tiny_model
from training_jobs import IdTokenizer, Scores, assert_equal, data_of, lora_model, run, weights
from upper_adapters import calls_below, upper_lora

from peftly import IA3, LoRA, PromptTuning, attach, load_adapter
from peftly.data import Data, Split
from peftly.errors import ConfigError, DataError, TrainingError
from peftly.injection.layers import owner
from peftly.runs.run import training_in
from peftly.training.callbacks import Callback
from peftly.training.checkpoint import CHECKPOINT, random_states, read_state, set_random_states, write_state
from peftly.training.config import TrainConfig
from peftly.training.frozen_layers import frozen_layers
from peftly.training.train import Job, train, train_together
from peftly.utils.signals import interruptions_held

GRADIENTS = import_module("peftly.training.gradients")


class KilledError(Exception):
    """Stands for a killed process: nothing of the loop runs afterwards."""


class Kill(Callback):
    """Raises an error after a step, or after the evaluation of that step."""

    def __init__(self, step, *, at_evaluation=False, error=KilledError):
        self.step, self.at_evaluation, self.error = step, at_evaluation, error

    def on_step(self, record):
        if record.step == self.step and not self.at_evaluation:
            raise self.error

    def on_evaluate(self, record):
        if record.step == self.step and self.at_evaluation:
            raise self.error


def killed_and_resumed(make, out, kill, data=None, **settings):
    """Train a model until it is killed, and resume the run with another model."""
    data = data or data_of()
    with pytest.raises(kill.error):
        run(make(), data, out, [kill], **settings)
    model = make()
    config = TrainConfig(**{"learning_rate": 1e-2, "epochs": 2, "batch_size": 4} | settings)
    return model, train(model, data, config, tokenizer=IdTokenizer(), out=out, resume=True)


def without_times(result):
    """Return the records and the attributes of a result, without the times."""
    timed = {"seconds", "tokens_per_second"}
    records = [{key: value for key, value in vars(record).items() if key not in timed} for record in result.history]
    return records, {key: value for key, value in vars(result).items() if key not in ("history", "seconds", "best")}


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


def test_a_run_may_be_killed_again_and_again(tmp_path):
    expected = run(dropping_lora(), epochs=3)
    for step in (2, 3, 5, 9, 11):
        model = dropping_lora()
        config = TrainConfig(learning_rate=1e-2, epochs=3, batch_size=4, checkpoint_steps=1)
        with pytest.raises(KilledError):
            train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True, callbacks=[Kill(step)])
    found = killed_and_resumed(dropping_lora, tmp_path, Kill(1), epochs=3)
    assert_same_run(found, expected)


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
        assert read_state(out / CHECKPOINT)["jobs"]["None"]["run_state"]["step"] == step
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
    scale = read_state(tmp_path / CHECKPOINT)["gradients"]["loss_scale"]
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
    limits = read_state(tmp_path / CHECKPOINT)["gradients"]["limits"]
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
        with pytest.raises(KilledError):
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
    expected = run(dropping_lora(), out=tmp_path, checkpoint_steps=3)
    model = dropping_lora()
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_ten_minutes_between_checkpoints(monkeypatch, tmp_path):
    run(out=tmp_path / "short")
    assert not (tmp_path / "short" / CHECKPOINT).exists()
    monkeypatch.setattr("peftly.training.loop.CHECKPOINT_SECONDS", 0)
    run(out=tmp_path / "long")
    assert (tmp_path / "long" / CHECKPOINT).is_file()
    assert not [file for file in (tmp_path / "long").iterdir() if file.name.startswith(".")]


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(monkeypatch, tmp_path):
    def full(*_given, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftly.training.checkpoint.save_file", full)
    with pytest.warns(UserWarning, match="no checkpoint at step 5: No space left on device"):
        found = run(out=tmp_path, checkpoint_steps=5)
    assert_same_run(found, run())
    assert not [file for file in tmp_path.iterdir() if "checkpoint" in file.name]


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
    "rows": ({}, {"data": data_of(17)}, "on other examples"),
    "validation": ({}, {"data": data_of(16, 5)}, "on other examples"),
    "an example in the other split": ({}, {"data": moved_example()}, "on other examples"),
    "rate": ({"learning_rate": None}, {"rate": 1e-3}, "train.learning_rate 0.01, and now it is None"),
    "dtype": ({}, {"model": lora_model(torch.bfloat16)}, "the dtype is torch.bfloat16 and was torch.float32"),
    "one element": ({}, other_base(other_element), "another base: model.layers.1.mlp.up_proj.weight has other values"),
    "rope_theta": ({}, other_base(other_rope), r"another base: rope_theta is 500.0 and was 10000.0"),
    "eps": ({}, other_base(other_eps), "another base: rms_norm_eps is 1e-05 and was 1e-06"),
    "dropout": ({}, other_base(other_dropout), "another base: attention_dropout is 0.1 and was 0.0"),
    "buffer": ({}, other_base(other_buffer), "another base: it also has shift"),
    "settings of the method": ({}, other(LoRA(rank=2, alpha=5)), "with other settings"),
    "method": ({}, other(IA3()), "of other methods"),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_checkpoint_of_another_run(name, tmp_path):
    settings, given, message = OTHER_RUNS[name]
    run(out=tmp_path, checkpoint_steps=3)
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
    train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, learning_rate=1e-2)
    with pytest.raises(ConfigError, match="with other learning rates"):
        train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, learning_rate=1e-4, resume=True)


def test_a_refused_checkpoint_changes_none_of_several_adapters(tmp_path):
    def make():
        model = attach(tiny_model("llama", torch.float32), LoRA(rank=2), name="a", seed=1)
        return attach(model, LoRA(rank=2), name="b", seed=2)

    config = TrainConfig(epochs=2, batch_size=4, learning_rate=1e-2, checkpoint_steps=3)
    jobs = {"a": Job(data_of(), config), "b": Job(data_of(), config)}
    train_together(make(), jobs, tokenizer=IdTokenizer(), out=tmp_path)
    model, metrics = make(), (tmp_path / "a" / "metrics.jsonl").read_bytes()
    before_weights = weights(model)
    with pytest.raises(ConfigError, match="on other examples"):
        train_together(
            model, {**jobs, "b": Job(data_of(17), config)}, tokenizer=IdTokenizer(), out=tmp_path, resume=True
        )
    assert_equal(weights(model), before_weights)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == metrics


def test_a_new_run_deletes_the_checkpoint_of_an_earlier_one(tmp_path):
    run(out=tmp_path, checkpoint_steps=3)
    with pytest.raises(KilledError):
        run(out=tmp_path, callbacks=[Kill(2)])
    assert not (tmp_path / CHECKPOINT).exists()


def test_lost_metrics_are_written_again(tmp_path):
    for damage in (lambda file: file.unlink(), lambda file: file.write_bytes(file.read_bytes()[:-9])):
        out = tmp_path / damage.__code__.co_names[0]
        with pytest.raises(KilledError):
            run(out=out, callbacks=[Kill(6)], checkpoint_steps=5)
        damage(out / "metrics.jsonl")
        config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=5)
        train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=out, resume=True)
        found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in found if line["kind"] == "step"] == list(range(1, 9))


def test_times_continue(tmp_path, monkeypatch):
    with pytest.raises(KilledError):
        run(out=tmp_path, callbacks=[Kill(6)], checkpoint_steps=4)
    state = read_state(tmp_path / CHECKPOINT)
    state["jobs"]["None"]["seconds"] = 1000.0
    write_state(tmp_path / CHECKPOINT, state)
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
    assert read_state(tmp_path / CHECKPOINT)["jobs"]["None"]["run_state"]["step"] == (5 if where == "on_step" else 8)
    model, config = lora_model(), TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4)
    result = train(model, data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)
    assert_same_run((model, result), expected)


def test_a_second_ctrl_c_waits_for_nothing():
    done = []

    def press_twice():
        with interruptions_held():
            for press in ("first", "second"):
                signal.raise_signal(signal.SIGINT)
                done.append(press)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert done == ["first"]


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
    file = tmp_path / CHECKPOINT
    run(out=tmp_path, checkpoint_steps=3)
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
        monkeypatch.setattr("peftly.training.checkpoint.FORMAT", 2)
    message = r"(is damaged|has format 0).*delete it to train from the beginning"
    if damage == "unreadable":
        message = r"^cannot read .*: Permission denied$"
    with pytest.raises(TrainingError, match=message):
        train(
            lora_model(), data_of(), TrainConfig(learning_rate=1e-2), tokenizer=IdTokenizer(), out=tmp_path, resume=True
        )


def test_another_environment_gives_a_note(monkeypatch, tmp_path):
    with pytest.raises(KilledError):
        run(out=tmp_path, checkpoint_steps=3, callbacks=[Kill(5)])
    monkeypatch.setattr("peftly.training.loop.computes_with", lambda _: {"torch": torch.__version__, "threads": 99})
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3)
    with pytest.warns(UserWarning, match=r"started in another environment \(threads \d+, now 99\)"):
        train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), out=tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("error", [TrainingError, DataError])
@pytest.mark.parametrize("saved", [False, True])
def test_a_failed_training_keeps_saved_adapters(saved, error, resume, monkeypatch, tmp_path):
    pages, out = [], tmp_path / "run"
    monkeypatch.setattr(import_module("peftly.runs.run"), "write_report", pages.append)

    def fail():
        with training_in(out, [out], resume=resume):
            (out / "step-1").mkdir(parents=True)
            (out / "config.yaml").touch()
            if saved:
                (out / "step-1" / "adapter_config.json").touch()
            raise error("no more")

    with pytest.raises(error):
        fail()
    assert (out / "config.yaml").exists() == (saved or resume)
    assert (out / "step-1" / "adapter_config.json").exists() == saved
    assert pages == [out] * (saved and (not resume or error is TrainingError))


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
