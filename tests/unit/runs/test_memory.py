"""Estimates of peak memory, from the config of a base alone."""

import json

import pytest
import torch
from tiny import tiny_config
from tiny_tasks import labelled_rows, opened, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from peftly import load_data, trainable_parameters
from peftly.adapters import attach_without_values
from peftly.cli import app
from peftly.errors import BaseModelError, MethodError
from peftly.methods import METHODS
from peftly.runs import RunConfig, estimate_memory, memory, run, run_memory
from peftly.training import TrainConfig
from peftly.training.micro_batches import saved_bytes
from peftly.utils import SimulatedMemory, bytes_text, memory_of_process

AUTO = {"llama": AutoModelForCausalLM, "bert": AutoModelForSequenceClassification}


@pytest.fixture(params=AUTO)
def folder(request, tmp_path):
    """Folder with a config and nothing else."""
    config = tiny_config(request.param)
    config.architectures = [AUTO[request.param]._model_mapping[type(config)].__name__]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(), default=str), encoding="utf-8")
    return tmp_path


def test_every_method_is_estimated_without_weights_and_longer_texts_take_more(folder):
    estimated = 0
    for method in METHODS.values():
        try:
            short, long = (
                estimate_memory(
                    str(folder),
                    method.config(),
                    TrainConfig(batch_size=2, evaluation_batch_size=2),
                    data=length,
                    process_bytes=10**9,
                )
                for length in (4, 40)
            )
        except MethodError:
            continue
        estimated += 1
        assert short.training_bytes < long.training_bytes
        assert short.trained_parameters > 0
        assert short.adapter_bytes > 0
        assert long.peak_bytes > long.process_bytes > 0
    assert estimated >= 8


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("architecture", AUTO)
def test_a_forward_pass_without_data_saves_the_bytes_of_a_real_one(architecture, name):
    results = []
    for simulated in (True, False):
        with torch.device("meta" if simulated else "cpu"):
            model = AUTO[architecture].from_config(tiny_config(architecture)).eval()
        method = METHODS[name]
        if method.adapter.unsupported_reason(model) is not None:
            pytest.skip("the method is for other models")

        def forward(model=model):
            return model(input_ids=torch.arange(1, 9).view(2, 4), use_cache=False).logits

        if simulated:
            with SimulatedMemory(model.parameters()):
                attach_without_values(model, method.config())
                results.append(saved_bytes(model, forward))
        else:
            attach_without_values(model, method.config())
            results.append(saved_bytes(model, forward))
        assert trainable_parameters(model)
    assert results[0] == results[1]


def test_a_training_is_planned_for_a_gpu_that_is_not_here(folder, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    estimates = {
        device: estimate_memory(str(folder), METHODS["lora"].config(), data=64, device=device, dtype="bfloat16")
        for device in ("cpu", "cuda")
    }
    gpu = estimates["cuda"]
    assert (gpu.device, gpu.process_bytes) == ("cuda", 0)
    assert gpu.loading_bytes == gpu.base_bytes == estimates["cpu"].base_bytes
    assert gpu.base_bytes < gpu.training_bytes < estimates["cpu"].training_bytes
    automatic = estimate_memory(str(folder), METHODS["lora"].config(), data=64, device="cuda:1")
    assert automatic == gpu, "bfloat16 is the dtype of a GPU"
    with pytest.raises(BaseModelError, match="device='cuda:x' is not a device"):
        estimate_memory(str(folder), METHODS["lora"].config(), device="cuda:x")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        estimate_memory(str(tmp_path), METHODS["lora"].config())


def test_the_command_prints_a_line_for_every_method_also_where_the_simulation_fails(folder, monkeypatch):
    simulate = memory.simulate_training

    def simulate_all_but_lora(model, methods, *others):
        if "lora" in methods:
            raise NotImplementedError("aten::odd has no meta kernel\nand a long explanation")
        return simulate(model, methods, *others)

    monkeypatch.setattr(memory, "simulate_training", simulate_all_but_lora)
    options = ["--base", str(folder), "--max-length", "4", "--batch-size", "2", "--json"]
    outcome = CliRunner().invoke(app, ["methods", *options], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = {row["method"]: row for row in json.loads(outcome.stdout)}
    assert rows.keys() == METHODS.keys()
    reason = rows.pop("lora")["no_estimate"]
    assert "aten::odd has no meta kernel" in reason
    assert "\n" not in reason
    assert sum("peak_bytes" in row for row in rows.values()) >= 8
    assert all(row["peak_bytes"] > row["base_bytes"] > 0 for row in rows.values() if "peak_bytes" in row)


@pytest.mark.parametrize(("head", "expected"), [("auto", "mean"), ("transformers", "transformers"), ("first", "first")])
def test_the_head_of_an_estimate_is_that_of_a_training(monkeypatch, head, expected):
    """The head of transformers was counted, with 147,840 parameters that a training of MiniLM leaves out."""
    chosen = []
    monkeypatch.setattr(run_memory, "resolve_base", lambda base: base)
    monkeypatch.setattr(run_memory, "trained_pooling", lambda base: "mean")
    monkeypatch.setattr(run_memory, "config_without_weights", lambda base: tiny_config("bert"))
    monkeypatch.setattr(run_memory, "estimate_memory", lambda *args, pooling, **rest: chosen.append(pooling))
    config = RunConfig(base="b", data={"train": "d"}, method="lora", out="o", head=head, task="sequence_classification")
    assert [name for name, _ in run_memory.estimate_methods(config, 0)] == list(METHODS)
    assert set(chosen) == {None if expected == "transformers" else expected}
    chosen.clear()
    list(run_memory.estimate_methods(config.model_copy(update={"task": "token_classification", "head": "auto"}), 0))
    assert set(chosen) == {None}


def configured(base, tmp_path, **settings):
    rows = write_rows(tmp_path / "rows.jsonl", labelled_rows())
    train = {"max_steps": 2, "batch_size": 4, **settings.pop("train", {})}
    values = {"base": str(base), "data": {"train": str(rows)}, "method": "lora", "out": str(tmp_path / "run")}
    return RunConfig.model_validate(values | {"train": train, "dtype": "float32", "baselines": False} | settings)


def summary_of(tmp_path):
    return json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("method", "architecture"), [("lora", "llama"), ("selective", "bert")])
def test_a_run_estimates_its_memory_before_the_training(method, architecture, task_base, tmp_path):
    """A run of `selective`, which caches outputs of frozen layers, and one with a tracker had no estimate."""
    lines = []
    config = configured(task_base(architecture), tmp_path, method=method, train={"report_to": ["csv"]})
    result = run(config, log=lines.append, estimates_memory=True)
    summary = summary_of(tmp_path)
    assert summary["estimated_memory_bytes"] == result.estimate.steps_bytes
    assert summary["peak_memory_bytes"] == result.training.peak_memory_bytes
    (line,) = [line for line in lines if line.startswith("memory: ")]
    assert line.startswith(f"memory: about {bytes_text(result.estimate.steps_bytes)} at the peak; ")
    assert "too little" not in line


def test_a_run_without_validation_rows_has_an_estimate(task_base, tmp_path):
    lines = []
    config = configured(task_base("llama"), tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"validation": "none"})})
    run(config, log=lines.append, estimates_memory=True)
    (line,) = [line for line in lines if line.startswith("memory: ")]
    assert line.startswith("memory: about ")


def test_too_little_memory_is_said_before_the_training(task_base, tmp_path, monkeypatch):
    monkeypatch.setattr(run_memory, "free_bytes", lambda device: 1)
    monkeypatch.setattr(run_memory, "memory_of_process", lambda: 1)
    lines = []
    run(configured(task_base("llama"), tmp_path), log=lines.append, estimates_memory=True)
    (line,) = [line for line in lines if line.startswith("memory: ")]
    assert "which is too little: lower train.batch_size" in line


def test_the_memory_of_the_open_base_counts_as_free_before_it(task_base, tmp_path, monkeypatch):
    """The base was subtracted from the free memory twice, so that the estimate had smaller micro-batches."""
    simulate, free = memory.simulate_training, []

    def recorded(*arguments):
        free.append(arguments[-1])
        return simulate(*arguments)

    monkeypatch.setattr(memory, "simulate_training", recorded)
    monkeypatch.setattr(run_memory, "free_bytes", lambda device: 10**9)
    monkeypatch.setattr(run_memory, "memory_of_process", lambda: 10**12)
    lines = []
    run(configured(task_base("llama"), tmp_path), log=lines.append, estimates_memory=True)
    assert 10**12 < free[0] + memory_of_process() < 10**12 + 10**10
    assert any(f"; {bytes_text(10**12 + 10**9)} are free" in line for line in lines)


def test_a_training_that_cannot_be_simulated_goes_on(task_base, tmp_path, monkeypatch):
    def simulate(*_):
        raise NotImplementedError("aten::odd has no meta kernel")

    monkeypatch.setattr(memory, "simulate_training", simulate)
    lines = []
    result = run(configured(task_base("llama"), tmp_path), log=lines.append, estimates_memory=True)
    assert result.estimate is None
    assert summary_of(tmp_path)["estimated_memory_bytes"] is None
    assert any("no estimate" in line and "aten::odd" in line for line in lines)


def test_an_estimate_changes_no_step(task_base, tmp_path):
    """The simulation seeds generators and replaces attributes of torch meanwhile."""
    losses = []
    for name, estimates in (("with", True), ("without", False)):
        (tmp_path / name).mkdir()
        config = configured(task_base("llama"), tmp_path / name, train={"max_steps": 3})
        run(config, estimates_memory=estimates)
        lines = (tmp_path / name / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line).get("loss") for line in lines])
    assert losses[0] == losses[1]
    assert len(losses[0]) >= 3


def test_the_stored_outputs_of_frozen_layers_of_all_examples_count(task_base, tmp_path):
    estimates = []
    for count, name in ((20, "few"), (4000, "many")):
        (tmp_path / name).mkdir()
        rows = write_rows(tmp_path / name / "rows.jsonl", labelled_rows(count))
        model, tokenizer = opened(task_base("bert"), task="sequence_classification", labels=["a", "b"])
        data = load_data(str(rows), tokenizer, task="sequence_classification", validation_fraction=0.1)
        settings = {"data": data, "task": "sequence_classification", "labels": data.row_format.labels}
        found = estimate_memory(
            str(task_base("bert")),
            METHODS["selective"].config(last_layers=1),
            TrainConfig(batch_size=4),
            process_bytes=0,
            dtype="float32",
            **settings,
        )
        width = model.config.hidden_size
        estimates.append((found.training_bytes, sum(len(e.input_ids) for e in data.train.encoded) * width * 4))
    (few, stored_few), (many, stored_many) = estimates
    assert many - few == pytest.approx(stored_many - stored_few, rel=0.1)
