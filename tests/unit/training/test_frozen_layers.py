import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from references import assert_close
from tiny import tiny_model
from training_jobs import assert_equal, data_of, run, weights
from upper_adapters import UPPER, calls_below, upper_lora

from peftly import LoRA, PrefixTuning, PromptTuning, Selective, attach, trainable_parameters
from peftly.data import EncodedExamples, Split
from peftly.injection.modes import training_mode
from peftly.training.frozen_layers import frozen_layers

FROZEN = import_module("peftly.training.frozen_layers")


@pytest.mark.parametrize("settings", [{}, {"packing": False}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("architecture", UPPER)
def test_cached_states_train_the_same_weights(architecture, settings):
    results = []
    for once in (True, False):
        model = upper_lora(architecture)
        calls = calls_below(model)
        # Small micro-batches, so that examples meet others in the next epoch.
        given = {"frozen_layers_once": once, "epochs": 3, "micro_batch_tokens": 30, "batch_size": 8} | settings
        _, result = run(model, data_of(), **given)
        results.append((calls, result, weights(model)))
    (fewer, result, own), (every, expected, weighed) = results
    if architecture == "bloom":
        assert len(fewer) == len(every)  # its blocks return more than hidden states
    else:
        # The calls of both include one that measures the memory.
        assert 0 < len(fewer) < len(every) / 2
    bound = 1e-3 if architecture == "bloom" else 1e-6  # which computes in fp32
    assert [record.loss for record in result.history] == pytest.approx(
        [record.loss for record in expected.history], rel=bound
    )
    for name, tensor in weighed.items():
        assert_close(own[name], tensor, bound)


@pytest.mark.parametrize("free", [2**40, 0], ids=["in a file", "no room"])
def test_many_states_are_stored_in_a_file_if_there_is_room(monkeypatch, tmp_path, free):
    expected, _ = run(upper_lora("llama"), epochs=2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(FROZEN, "MEMORY_BYTES", 100)
    monkeypatch.setattr(FROZEN.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))
    files, original = [], FROZEN.FrozenLayers._read

    def read(self, *given, **named):
        files.extend(Path(self.folder.name).iterdir())
        return original(self, *given, **named)

    monkeypatch.setattr(FROZEN.FrozenLayers, "_read", read)
    model, _ = run(upper_lora("llama"), epochs=2)
    for name, tensor in weights(expected).items():
        assert_close(weights(model)[name], tensor, 1e-9)
    assert bool(files) == (free > 0)
    assert not list(tmp_path.iterdir())


def test_stored_examples_share_no_states_and_train_the_same_weights_as_a_list():
    results = []
    for stored in (False, True):
        data = data_of(14)
        encoded = [*data.train.encoded, *data.train.encoded[:5]]  # some twice
        split = Split(data.train.examples, EncodedExamples(encoded) if stored else list(map(replace, encoded)))
        model = upper_lora("llama")
        calls = calls_below(model)
        run(model, replace(data, train=split), epochs=3, micro_batch_tokens=30)
        results.append((len(calls), weights(model)))
    assert results[0][0] == results[1][0]
    assert_equal(results[1][1], results[0][1])


def test_one_epoch_stores_nothing(monkeypatch):
    monkeypatch.setattr(FROZEN.FrozenLayers, "_store", lambda *_: pytest.fail("the states are not used again"))
    run(upper_lora("llama"), epochs=1)


def test_a_frozen_adapter_below_is_applied():
    model = tiny_model("llama", torch.float64)
    attach(model, LoRA(rank=2), name="below", seed=1)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
        parameter.requires_grad_(False)
    attach(model, LoRA(rank=2, target_modules=UPPER["llama"]), name="above", seed=2)
    model.double()
    import peftly

    peftly.set_adapters(model, "below", "above")
    start = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for once in (True, False):
        model.load_state_dict(start)
        _, result = run(model, epochs=3, frozen_layers_once=once)
        results.append([record.loss for record in result.history])
    assert len(frozen_layers(model)) == 1
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_which_layers_are_frozen():
    def count(architecture, *methods, task="causal_lm"):
        model = tiny_model(architecture, torch.float32, task=task)
        for number, method in enumerate(methods):
            attach(model, method, name=f"adapter{number}")
        return len(frozen_layers(model))

    assert count("llama", Selective(last_layers=1)) == 1
    assert count("llama", Selective(last_layers=0, head=True)) == 2
    assert count("llama", Selective(last_layers=0, modules=("model.norm",))) == 2
    assert count("llama", LoRA()) == 0
    assert count("llama", PromptTuning(num_virtual_tokens=2, init="random")) == 0
    assert count("llama", PrefixTuning(num_virtual_tokens=2)) == 0
    assert count("llama", LoRA(target_modules=UPPER["llama"]), PrefixTuning(num_virtual_tokens=2)) == 0
    assert count("llama", Selective(last_layers=1, modules=("embed_tokens",))) == 0
    assert count("bert", Selective(last_layers=1), task="sequence_classification") == 1
    assert count("bert", LoRA(target_modules=("pooler.dense",)), task="sequence_classification") == 2
    assert count("t5", Selective(last_layers=1), task="seq2seq_lm") == 0


def test_a_block_with_a_replaced_forward_is_not_skipped():
    model = upper_lora("llama")
    block = model.get_decoder().layers[0]
    block.forward = type(block).forward.__get__(block)
    assert frozen_layers(model) == []


def test_blocks_are_restored():
    model = upper_lora("llama")
    before = [dict(vars(block)) for block in model.get_decoder().layers]
    run(model, epochs=3)
    after = [dict(vars(block)) for block in model.get_decoder().layers]
    assert [one.keys() for one in before] == [one.keys() for one in after]
    assert not any(block["_forward_hooks"] for block in after)
    with training_mode(model):
        pass
