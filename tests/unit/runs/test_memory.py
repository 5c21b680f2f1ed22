"""Estimates of peak memory, from the config of a base alone."""

import json

import pytest
import torch
from tiny import tiny_config
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from peftly import trainable_parameters
from peftly.adapters import attach_without_values
from peftly.cli import app
from peftly.errors import BaseModelError, MethodError
from peftly.methods import METHODS
from peftly.runs import RunConfig, estimate_memory, memory
from peftly.training import TrainConfig
from peftly.training.micro_batches import saved_bytes
from peftly.utils import SimulatedMemory

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
    monkeypatch.setattr(memory, "resolve_base", lambda base: base)
    monkeypatch.setattr(memory, "trained_pooling", lambda base: "mean")
    monkeypatch.setattr(memory, "config_without_weights", lambda base: tiny_config("bert"))
    monkeypatch.setattr(memory, "estimate_memory", lambda *args, pooling, **rest: chosen.append(pooling))
    config = RunConfig(base="b", data={"train": "d"}, method="lora", out="o", head=head, task="sequence_classification")
    assert [name for name, _ in memory.estimate_methods(config, 0)] == list(METHODS)
    assert set(chosen) == {None if expected == "transformers" else expected}
    chosen.clear()
    list(memory.estimate_methods(config.model_copy(update={"task": "token_classification", "head": "auto"}), 0))
    assert set(chosen) == {None}
