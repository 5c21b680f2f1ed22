import copy
import io
import json
import math
from dataclasses import asdict, replace
from importlib import import_module

import pytest
import torch
from references import METHOD_CELLS, adapted
from rich.console import Console
from tiny import tiny_model
from training_jobs import SHAPE, IdTokenizer, Scores, assert_equal, collated, data_of, lora_model, run, steps, weights

from peftly import LoRA, PrefixTuning, attach, cache_adapter_tensors, load_adapter, trainable_parameters
from peftly.adapters.adapter_set import open_adapters
from peftly.data import Data, RowFormat, Split
from peftly.errors import ConfigError, TrainingError
from peftly.evaluation.evaluate import evaluate
from peftly.training.best import best_line, metric_of_best
from peftly.training.callbacks import Callback, EvaluationRecord, ProgressBar, StepRecord
from peftly.training.config import TrainConfig
from peftly.training.metrics import MetricsWriter
from peftly.training.train import train

LOSSES = import_module("peftly.training.losses")
FINITE_WEIGHTS = import_module("peftly.training.finite_weights")


def evaluations(result) -> list[EvaluationRecord]:
    return [record for record in result.history if isinstance(record, EvaluationRecord)]


@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
def test_the_loss_falls_and_the_base_stays(architecture, method):
    model, _ = adapted(architecture, method)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = weights(model)
    modes = [module.training for module in model.modules()]
    _, result = run(model, epochs=15, learning_rate=0.003 if method in ("selective", "full") else 0.1)
    assert steps(result)[-1].loss < steps(result)[0].loss - 0.5
    assert result.best.loss < evaluations(result)[0].loss - 0.1
    assert not any(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
@pytest.mark.parametrize("size", [8, 3])
def test_accumulated_batches_are_one_large_batch(size, optimizer):
    """1 x 8, 2 x 4 and 8 x 1, in micro-batches of any size; with 19 examples, the last step of an epoch is short."""
    models, results = [], []
    for batch_size, tokens in ((1, 1), (2, None), (2, 20), (size, 100)):
        accumulation = math.ceil(8 / batch_size) if size == 8 else math.ceil(6 / batch_size)
        model, result = run(
            lora_model(torch.float64),
            data_of(19),
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            micro_batch_tokens=tokens,
            optimizer=optimizer,
            weight_decay=0.01,
        )
        models.append(weights(model))
        results.append(result)
    for other, result in zip(models[1:], results[1:], strict=True):
        for name, tensor in models[0].items():
            # Adam divides by the root of a gradient that may be tiny, which magnifies the last digits.
            torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-7)
        for step, first in zip(steps(result), steps(results[0]), strict=True):
            assert step.loss == pytest.approx(first.loss, rel=1e-6)
            assert step.trained_tokens == first.trained_tokens


def test_a_step_is_the_gradient_of_the_mean_over_all_its_trained_tokens():
    model = lora_model(torch.float64)
    reference, data = copy.deepcopy(model), data_of(5, 0)
    _, result = run(
        model,
        data,
        batch_size=2,
        gradient_accumulation_steps=3,
        epochs=1,
        optimizer="sgd",
        lr_scheduler_type="constant",
        warmup_ratio=0,
    )
    total, count = 0, 0
    for example in data.train.encoded:
        log_probabilities = reference(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        for index in range(1, len(example.input_ids)):
            if example.trained[index]:
                total, count = total - log_probabilities[index - 1, example.input_ids[index]], count + 1
    (total / count).backward()
    [step] = steps(result)
    assert step.loss == pytest.approx((total / count).item(), rel=1e-10)
    assert (step.trained_tokens, step.tokens) == (count, sum(len(example.input_ids) for example in data.train.encoded))
    gradients = [parameter.grad for parameter in trainable_parameters(reference).values()]
    norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
    # The norms of a Llama are computed in fp32, whatever its dtype.
    assert step.grad_norm == pytest.approx(norm, rel=1e-7)
    scale = min(1.0, 1.0 / (norm + 1e-6))
    for trained, parameter in zip(
        trainable_parameters(model).values(), trainable_parameters(reference).values(), strict=True
    ):
        torch.testing.assert_close(trained, parameter - 1e-2 * scale * parameter.grad, rtol=1e-6, atol=1e-9)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not():
    def trained(seed):
        model = attach(tiny_model("llama", torch.float32), LoRA(rank=2, dropout=0.3), seed=1)
        return weights(run(model, seed=seed)[0])

    first = trained(0)
    assert_equal(trained(0), first)
    assert any(not torch.equal(tensor, first[name]) for name, tensor in trained(1).items())


@pytest.mark.parametrize("packing", [True, False])
def test_every_example_is_seen_once_an_epoch_and_in_another_order(packing, monkeypatch):
    seen = collated(monkeypatch)
    data = data_of(11, 0)
    run(data=data, epochs=2, packing=packing, micro_batch_tokens=100)
    flat = [id(example) for examples in seen for example in examples]
    assert len(flat) == 22
    assert set(flat[:11]) == set(flat[11:]) == {id(row) for row in data.train.encoded}
    assert flat[:11] != flat[11:]


def test_the_default_learning_rate_is_that_of_the_method():
    assert run(learning_rate=None, max_steps=1)[1].learning_rate == 5e-4
    config = TrainConfig(max_steps=1)
    assert train(lora_model(), data_of(), config, tokenizer=IdTokenizer(), learning_rate=0.5).learning_rate == 0.5
    with pytest.raises(ConfigError, match="not for sgd"):
        run(learning_rate=None, optimizer="sgd")


def test_the_best_weights_are_restored(monkeypatch, tmp_path):
    scores = Scores(3.0, 1.0, 2.0, math.nan)
    monkeypatch.setattr("peftly.training.job.evaluate", scores)
    model, result = run(epochs=4, out=tmp_path)
    assert (result.best_step, result.best.loss, result.steps, result.stopped_early) == (8, 1.0, 16, False)
    assert [record.best for record in evaluations(result)] == [True, True, False, False]
    assert_equal(weights(model), scores.seen[1])
    assert_equal(weights(load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")), scores.seen[1])


LABELLED = RowFormat("label", "{text}:", "label", ("a", "b"))


@pytest.mark.parametrize(
    ("row_format", "setting", "expected"),
    [
        (LABELLED, "auto", "accuracy"),
        (LABELLED, "loss", "loss"),
        (LABELLED, "macro_f1", "macro_f1"),
        (SHAPE, "auto", "loss"),
        (RowFormat("tags", "{tokens}", "tags", ("O", "B-PER", "I-PER")), "auto", "entity_f1"),
        (RowFormat("tags", "{tokens}", "tags", ("NOUN", "VERB")), "auto", "macro_f1"),
    ],
)
def test_the_score_of_the_task_chooses_the_best_evaluation(row_format, setting, expected):
    data, config = data_of(), TrainConfig(metric_for_best_model=setting)
    assert metric_of_best(config, replace(data, row_format=row_format)) == expected


def test_of_equal_accuracies_the_last_adapter_is_the_best(monkeypatch):
    accuracies = [0.5, 0.75, 0.75, 0.25]
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(1.0, 2.0, 3.0, 0.5, accuracies=accuracies))
    _, result = run(data=replace(data_of(), row_format=LABELLED), epochs=4)
    assert (result.best_step, result.metric_for_best_model) == (12, "accuracy")


def test_the_best_adapter_has_a_finite_loss(monkeypatch):
    scores = Scores(1.0, math.nan, math.inf, accuracies=[0.5, 0.75, 0.75])
    monkeypatch.setattr("peftly.training.job.evaluate", scores)
    assert run(data=replace(data_of(), row_format=LABELLED), epochs=3)[1].best_step == 4


def test_an_equal_accuracy_resets_the_patience_only_with_a_lower_loss(monkeypatch):
    losses, accuracies = (3.0, 2.0, 1.0, 1.5, 2.0, 2.5), [0.75] * 6
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(*losses, accuracies=accuracies))
    data = replace(data_of(), row_format=LABELLED)
    _, result = run(data=data, epochs=9, eval_steps=2, early_stopping_patience=2)
    assert (result.steps, result.best_step, result.stopped_early) == (10, 10, True)


def test_the_line_on_the_result_names_the_rule():
    data, config = data_of(), TrainConfig()
    assert best_line(config, data) == "result: the adapter with the lowest validation loss"
    assert best_line(config, replace(data, row_format=LABELLED)) == (
        "result: the adapter with the highest validation accuracy, the last one of equal ones"
    )
    assert best_line(config, replace(data, validation=None)) == (
        "result: the last adapter, since there are no validation examples"
    )


def test_patience(monkeypatch):
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(3.0, 2.0, 2.5, 2.0, 1.0))
    _, result = run(epochs=9, eval_steps=2, early_stopping_patience=2)
    assert (result.steps, result.best_step, result.stopped_early) == (8, 4, True)


def test_an_early_stop_is_said(monkeypatch, tmp_path, recwarn):
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(2.0, 2.5, 3.0, 2.5, 1.0))
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, width=200))
    _, result = run(epochs=9, eval_steps=2, early_stopping_patience=3, out=tmp_path, callbacks=[bar])
    assert (result.stopped_early, result.metric_for_best_model) == (True, "loss")
    assert (result.stop_reason, result.planned_steps) == ("no better loss in 3 evaluations", 36)
    line = "stopped early, after step 8 of 36: no better loss in 3 evaluations; the best is that of step 2"
    assert text.getvalue().splitlines()[-1] == line
    notes = [json.loads(entry) for entry in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"kind": "note", "text": line} in notes
    assert not recwarn  # what was asked for is no warning


def test_a_run_to_its_last_step_does_not_say_that_it_stopped(monkeypatch):
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(1.0, 2.0))
    text = io.StringIO()
    _, result = run(epochs=2, early_stopping_patience=1, callbacks=[ProgressBar(Console(file=text, width=200))])
    assert (result.steps, result.stopped_early, "stopped" in text.getvalue()) == (8, False, False)
    assert (result.stop_reason, result.planned_steps) == (None, 8)


@pytest.mark.parametrize(("threshold", "steps"), [(0.0, 16), (0.15, 8), (0.3, 6)])
def test_a_small_gain_is_no_progress(monkeypatch, threshold, steps):
    """Gains are 0.2, 0.1, 0.1, 0.4, 0.1, … over the best loss so far, which counts whatever it gained."""
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(2.0, 1.8, 1.7, 1.6, 1.2, 1.1, 1.0, 0.9))
    settings = {"early_stopping_patience": 2, "early_stopping_threshold": threshold}
    _, result = run(epochs=4, eval_steps=2, **settings)
    assert (result.steps, result.best_step) == (steps, steps)
    name = "loss better by more than 0.15" if threshold == 0.15 else "loss better by more than 0.3"
    assert result.stop_reason == (f"no {name} in 2 evaluations" if threshold else None)


def test_a_threshold_for_accuracies_does_not_take_an_equal_one_with_a_lower_loss(monkeypatch):
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(3.0, 2.0, 1.0, 0.5, accuracies=[0.75] * 4))
    data = replace(data_of(), row_format=LABELLED)
    settings = {"early_stopping_patience": 2, "early_stopping_threshold": 0.01}
    _, result = run(data=data, epochs=9, eval_steps=2, **settings)
    assert (result.steps, result.best_step) == (6, 6)


def test_the_note_on_an_early_stop_names_the_last_of_equal_accuracies(monkeypatch):
    monkeypatch.setattr("peftly.training.job.evaluate", Scores(1.0, 2.0, accuracies=[0.75] * 2))
    text = io.StringIO()
    bar = ProgressBar(Console(file=text, width=200))
    data = replace(data_of(), row_format=LABELLED)
    _, result = run(data=data, epochs=9, eval_steps=2, early_stopping_patience=1, callbacks=[bar])
    assert text.getvalue().splitlines()[-1].endswith(f"the best is that of step {result.best_step}")


def test_a_threshold_without_patience_is_refused():
    with pytest.raises(ValueError, match="early_stopping_threshold needs early_stopping_patience"):
        TrainConfig(early_stopping_threshold=0.1)


def test_steps_and_results_have_the_largest_memory(monkeypatch):
    sizes = iter([3, 5, 4, 2, 7])
    monkeypatch.setattr("peftly.training.memory.peak_memory", lambda device: next(sizes))
    _, result = run(data=data_of(16, 0), epochs=1)
    assert [record.memory_bytes for record in steps(result)] == [3, 5, 5, 5]
    assert result.peak_memory_bytes == 7


@pytest.mark.parametrize("count", [16, 19])
def test_an_evaluation_has_the_mean_training_loss_since_the_last_one(count):
    """A mean over targets, not over steps; the steps and their numbers of targets differ."""
    _, result = run(data=data_of(count), epochs=3, eval_steps=3)
    since = []
    for record in result.history:
        if isinstance(record, StepRecord):
            since.append(record)
            continue
        targets = sum(step.trained_tokens for step in since)
        expected = sum(step.loss * step.trained_tokens for step in since) / targets
        assert record.train_loss == pytest.approx(expected, rel=1e-12)
        assert record.train_perplexity == pytest.approx(math.exp(expected), rel=1e-12)
        since = []
    assert not since


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "config",
    [PrefixTuning(num_virtual_tokens=3), PrefixTuning(num_virtual_tokens=3, projection=True, projection_dim=8)],
    ids=["prefix", "network"],
)
def test_a_prefix_that_stops_early_is_left_at_its_best(config, checkpointing, monkeypatch, tmp_path):
    seen = []

    def watched(model, *args, **settings):
        found = evaluate(model, *args, **settings)
        seen.append((found.loss, weights(model)))
        return found

    monkeypatch.setattr("peftly.training.job.evaluate", watched)
    model, data = attach(tiny_model("llama", torch.float32), config, seed=1), data_of()
    settings = {"epochs": 20, "eval_steps": 2, "early_stopping_patience": 3, "gradient_checkpointing": checkpointing}
    _, result = run(model, data, tmp_path, learning_rate=0.3, **settings)
    best = min(range(len(seen)), key=lambda index: seen[index][0])
    assert result.stopped_early
    assert 0 < best == len(seen) - 4
    assert (result.steps, result.best_step, result.best.loss) == (2 * len(seen), 2 * best + 2, seen[best][0])
    assert_equal(weights(model), seen[best][1])
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")
    assert_equal(weights(again), seen[best][1])
    for one in (model, again):
        assert evaluate(one, IdTokenizer(), data.validation, SHAPE).loss == pytest.approx(seen[best][0], rel=1e-6)


def test_max_steps_decides_the_length_and_the_last_step_is_evaluated():
    _, result = run(epochs=1, max_steps=7)
    assert [step.step for step in steps(result)] == list(range(1, 8))
    assert [record.step for record in evaluations(result)] == [4, 7]
    assert steps(result)[-1].epoch == 7 / 4


def test_without_validation_the_last_weights_are_the_result(tmp_path):
    model, result = run(data=data_of(16, 0), out=tmp_path)
    assert (result.best, result.best_step) == (None, 8)
    assert_equal(weights(load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")), weights(model))


def test_the_run_folder(tmp_path):
    saved = []

    class Listener(Callback):
        def on_save(self, path):
            saved.append(path.name)

    _, result = run(out=tmp_path / "run", save_steps=3, callbacks=[Listener()])
    out = tmp_path / "run"
    assert sorted(path.name for path in out.iterdir()) == [
        ".peftly.json",
        "adapter",
        "metrics.jsonl",
        "step-3",
        "step-6",
    ]
    assert saved == ["step-3", "step-6", "adapter"]
    for name in saved:
        load_adapter(tiny_model("llama", torch.float32), out / name)
        assert open_adapters(out / name).row_format == SHAPE
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    expected = {"step": StepRecord, "evaluation": EvaluationRecord}
    assert [line["folder"] for line in lines if line["kind"] == "save"] == saved
    records = [line for line in lines if line["kind"] != "save"]
    assert len(records) == len(result.history) == 8 + 2
    for line, record in zip(records, result.history, strict=True):
        assert isinstance(record, expected[line.pop("kind")])
        assert line == asdict(record)


def test_json_has_no_infinity(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(EvaluationRecord(1, 1.0, math.nan, math.inf, 0.0, None, None, False, 0.1))
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["perplexity"] is None


def break_after(monkeypatch, calls: int) -> None:
    """Make the loss NaN at a certain call, not counting the first, which measures the memory."""
    original, made = LOSSES.target_losses, []

    def losses(*given):
        made.append(None)
        values = original(*given)
        return values * math.nan if len(made) == calls + 1 else values

    monkeypatch.setattr(LOSSES, "target_losses", losses)


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_finite_weights(monkeypatch, tmp_path):
    after_steps = []

    class Copy(Callback):
        def on_step(self, record):
            after_steps.append(weights(model))

    model = lora_model()
    break_after(monkeypatch, 4)
    with pytest.raises(
        TrainingError,
        match=r"^step 4: loss nan.*rate 0\.00.*the last finite weights \(after step 2\).*adapter; lower train",
    ) as error:
        run(model, out=tmp_path, callbacks=[Copy()], eval_steps=2)
    assert "\n" not in str(error.value)
    # The weights after step 2 gave the finite loss of step 3, and were copied since an evaluation comes every 2 steps.
    assert_equal(weights(model), after_steps[1])
    assert_equal(weights(load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")), after_steps[1])


@pytest.mark.parametrize(("validation", "expected"), [(6, 4), (0, 3)], ids=["evaluations", "no validation"])
def test_the_last_finite_weights_are_copied_every_few_steps(validation, expected, monkeypatch):
    """At the first update after an evaluation, every 4 steps here, or every `LAST_FINITE_STEPS`; not at every step."""
    monkeypatch.setattr(FINITE_WEIGHTS, "LAST_FINITE_SHARE", 1e-9)  # as in a long run
    monkeypatch.setattr(FINITE_WEIGHTS, "LAST_FINITE_STEPS", 3 if not validation else 20)
    copies, original = [], FINITE_WEIGHTS.assign
    monkeypatch.setattr(FINITE_WEIGHTS, "assign", lambda *given: copies.append(None) or original(*given))
    after_steps = []

    class Copy(Callback):
        def on_step(self, record):
            after_steps.append(weights(model))

    model = lora_model()
    break_after(monkeypatch, 6)
    with pytest.raises(TrainingError, match=rf"^step 6: loss nan.*the last finite weights \(after step {expected}\)"):
        run(model, data_of(16, validation), callbacks=[Copy()])
    assert_equal(weights(model), after_steps[expected - 1])
    assert len(copies) == 2 + 1  # before steps 1 and `expected` + 1, and back


def test_a_failure_loses_at_most_a_tenth_of_the_steps(monkeypatch):
    break_after(monkeypatch, 34)
    with pytest.raises(TrainingError, match=r"^step 34: loss nan.*the last finite weights \(after step 30\)"):
        run(data=data_of(16, 0), epochs=20)


def test_training_inside_a_cache_block_evaluates_the_present_weights(monkeypatch):
    """An evaluation before the training has cached tensors of the untrained adapter."""
    model, data = lora_model(), data_of()
    with cache_adapter_tensors():
        evaluate(model, IdTokenizer(), data.validation, data.row_format)
        _, inside = run(model, data, eval_steps=1, epochs=1, learning_rate=0.1)
    _, outside = run(lora_model(), data, eval_steps=1, epochs=1, learning_rate=0.1)
    found, expected = (
        [record.loss for record in result.history if isinstance(record, EvaluationRecord)]
        for result in (inside, outside)
    )
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == len(expected) > 2


def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate(monkeypatch):
    break_after(monkeypatch, 1)
    with pytest.raises(TrainingError, match=r"in the model; nothing was trained yet, so look at the data"):
        run()


def test_a_last_update_that_breaks_the_weights_is_noticed():
    class Break(Callback):
        def on_step(self, record):
            with torch.no_grad():
                next(iter(trainable_parameters(model).values()))[0, 0] = math.inf

    model = lora_model()
    before = weights(model)
    with pytest.raises(TrainingError, match="step 1 left weights that are not finite"):
        run(model, data_of(4, 0), epochs=1, callbacks=[Break()])
    assert_equal(weights(model), before)


def test_an_interrupted_run_saves_its_weights(tmp_path):
    class Stop(Callback):
        def on_step(self, record):
            if record.step == 3:
                raise KeyboardInterrupt

    model = lora_model()
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 3 of 8; the weights so far are in .*interrupted"):
        run(model, out=tmp_path, callbacks=[Stop()])
    loaded = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter-interrupted")
    assert_equal(weights(loaded), weights(model))
    assert not any(
        module.gradient_checkpointing for module in model.modules() if hasattr(module, "gradient_checkpointing")
    )


@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
def test_gradient_checkpointing_changes_nothing(architecture, method):
    found = []
    for checkpointing in (False, True):
        model, _ = adapted(architecture, method)
        found.append(weights(run(model, gradient_checkpointing=checkpointing, optimizer="sgd")[0]))
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, Data(Split([], []), None, None, SHAPE, None), "nothing to train on"),
        ({"early_stopping_patience": 2}, data_of(4, 0), r"train\.early_stopping_patience needs validation examples"),
        ({"eval_steps": 2}, data_of(4, 0), r"train\.eval_steps needs validation examples"),
        (
            {"metric_for_best_model": "accuracy"},
            data_of(4, 2),
            "is no score of examples of kind 'completion'; they have loss",
        ),
    ],
)
def test_settings_that_the_data_cannot_serve(settings, data, message):
    with pytest.raises(ConfigError, match=message):
        run(data=data, **settings)


def test_a_model_without_anything_to_train():
    with pytest.raises(ConfigError, match="attach an adapter first"):
        run(tiny_model("llama").requires_grad_(False))


@pytest.mark.parametrize(
    "settings", [{"epochs": 0}, {"learning_rat": 1}, {"warmup_ratio": 1.0}, {"metric_for_best_model": "f1"}]
)
def test_impossible_settings(settings):
    with pytest.raises(ConfigError, match=r"^TrainConfig"):
        TrainConfig(**settings)


def record_of(step: int, total: int) -> StepRecord:
    return StepRecord(step, total, 1.0, 0.5, 1e-3, 1.0, 100, 10, 1234.0, 2.0 * step)


@pytest.mark.parametrize(("total", "lines"), [(7, 7), (20, 20), (1000, 20)])
def test_progress_without_a_terminal_is_a_few_lines_and_one_for_each_evaluation(total, lines):
    text = io.StringIO()
    with ProgressBar(Console(file=text, width=200)) as bar:
        for step in range(1, total + 1):
            bar.on_step(record_of(step, total))
            bar.on_evaluate(EvaluationRecord(step, step / 4, 0.25, 1.3, 0.5, 0.875, 0.8, True, 1.0, None, 0.5, 1.6487))
    printed = text.getvalue().splitlines()
    assert len([line for line in printed if line.startswith("step")]) == lines
    assert len([line for line in printed if line.startswith("epoch")]) == total
    assert printed[-2] == f"step {total}/{total}  loss 0.5000  1,234 tokens/s  0s left"
    assert printed[-1] == (
        f"epoch {total / 4:.3g}  training loss 0.5000 (perplexity 1.649)  validation loss 0.2500 (perplexity 1.3)  "
        "accuracy 87.5%  (best)"
    )
    if total == 1000:
        (middle,) = [line for line in printed if line.startswith("step 500/1000")]
        assert "16m40s left" in middle


def test_an_evaluation_of_classes_shows_no_perplexity():
    text = io.StringIO()
    with ProgressBar(Console(file=text, width=200)) as bar:
        bar.on_evaluate(EvaluationRecord(9, 1.0, math.nan, None, 0.5, None, None, False, 1.0, 0.625, 0.5))
    assert text.getvalue() == "epoch 1  training loss 0.5000  validation loss not a number  entity F1 62.5%\n"


def test_progress_on_a_terminal_is_one_bar():
    text = io.StringIO()
    with ProgressBar(Console(file=text, force_terminal=True, width=120)) as bar:
        for step in range(1, 31):
            bar.on_step(record_of(step, 30))
    assert "step 30/30" in text.getvalue()
    assert "loss 0.5000  1,234 tokens/s  0s left" in text.getvalue()
