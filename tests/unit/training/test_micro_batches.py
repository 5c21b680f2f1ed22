from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from torch import nn
from training_jobs import assert_equal, collated, data_of, lora_model, run, steps, weights

from peftly import PromptTuning, attach
from peftly.errors import TrainingError
from peftly.training.callbacks import Callback
from peftly.training.micro_batches import FAST_TOKENS_CPU, MicroBatchSplitter, saved_bytes
from peftly.training.steps import common_prefix_length

MICRO = import_module("peftly.training.micro_batches")


def lengths_of(micro_batches) -> list[list[int]]:
    return [[example.num_tokens for example in examples] for examples in micro_batches]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    limit=st.integers(1, 100),
    kind=st.sampled_from(["padded", "packed", "packed encoder"]),
    virtual=st.integers(0, 20),
    shared=st.integers(0, 40),
)
def test_every_example_is_in_one_micro_batch_within_the_limit(lengths, limit, kind, virtual, shared):
    shared = min(shared, *lengths)
    packed, causal = kind != "padded", kind == "packed"
    splitter = MicroBatchSplitter(limit, packed=packed, causal=causal, num_virtual_tokens=virtual)
    groups = splitter.split(lengths, shared)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[index] for index in group]
        seen = {
            "padded": len(own) * (virtual + max(own)),
            "packed": virtual + shared + sum(length - shared for length in own),
            "packed encoder": sum(virtual + length for length in own),
        }[kind]
        assert len(own) == 1 or seen <= limit
    assert all(
        max(lengths[index] for index in left) <= min(lengths[index] for index in right)
        for left, right in pairwise(groups)
    )


def test_a_common_prefix_counts_once(monkeypatch):
    data = data_of(8, 0)
    examples = [
        replace(example, input_ids=[5] * 30 + example.input_ids, trained=[False] * 30 + example.trained)
        for example in data.train.encoded
    ]
    assert common_prefix_length(examples) == 30 + common_prefix_length(data.train.encoded)
    data = replace(data, train=replace(data.train, encoded=examples))
    limit = 30 + sum(example.num_tokens - 30 for example in examples)
    seen = collated(monkeypatch)
    run(data=data, epochs=1, batch_size=8, micro_batch_tokens=limit)
    run(data=data, epochs=1, batch_size=8, micro_batch_tokens=limit, packing=False)
    assert len(seen[0]) == 8
    assert len(seen) > 3


def test_halving_ends_when_every_example_is_alone():
    splitter, lengths, counts = MicroBatchSplitter(10_000), [5, 6, 7, 9], []
    while splitter.halve(lengths):
        counts.append(len(splitter.split(lengths)))
    assert counts[0] == 2
    assert counts[-1] == len(splitter.split(lengths)) == 4


def test_saved_bytes_are_those_of_the_backward_pass():
    layer = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).requires_grad_(False)
    x = torch.ones(10, 8, requires_grad=True)
    # Besides the weights of the model only the output of the ReLU is saved.
    assert saved_bytes(layer, lambda: layer(x).sum()) == 10 * 16 * 4
    assert saved_bytes(layer, lambda: layer(x[:5]).sum()) == 5 * 16 * 4


def test_short_of_memory_less_goes_through_at_once_and_the_weights_are_the_same(monkeypatch):
    size = saved_bytes_of_the_longest_example()
    seen = collated(monkeypatch)
    usual, _ = run(lora_model(torch.float64), epochs=1, batch_size=16)
    (longest,), _ = lengths_of(seen)  # the memory is measured on the longest example
    assert [len(examples) for examples in seen] == [1, 16]
    monkeypatch.setattr(MICRO, "free_bytes", lambda _: int(3.5 * size / MICRO.USED_SHARE))
    short, _ = run(lora_model(torch.float64), epochs=1, batch_size=16)
    lengths = lengths_of(seen[3:])
    assert len(lengths) > 4
    assert all(sum(own) <= 3.5 * longest for own in lengths)
    assert max(sum(own) for own in lengths) > 2.5 * longest
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(short)[name], tensor, rtol=1e-6, atol=1e-7)


def saved_bytes_of_the_longest_example() -> int:
    """Return the bytes that a run of `train` measures."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MICRO, "saved_bytes", lambda *given: found.append(saved_bytes(*given)) or found[-1])
        run(lora_model(torch.float64), epochs=1, batch_size=16)
    return found[0]


def test_without_packing_padding_and_virtual_tokens_count(monkeypatch):
    model = attach(tiny_model("llama", torch.float32), PromptTuning(num_virtual_tokens=5, init="random"))
    seen = collated(monkeypatch)
    run(model, packing=False, micro_batch_tokens=40, epochs=1, batch_size=16)
    assert sum(map(len, seen)) == 16
    assert all(len(lengths) * (5 + max(lengths)) <= 40 for lengths in lengths_of(seen))
    assert any(len(lengths) > 1 for lengths in seen)


def test_measuring_the_memory_draws_no_random_number():
    """Dropout masks are those of a run with a configured limit."""
    models = []
    for tokens in (None, FAST_TOKENS_CPU):
        model = attach(tiny_model("llama", torch.float32), import_module("peftly").LoRA(rank=2, dropout=0.3), seed=1)
        models.append(weights(run(model, micro_batch_tokens=tokens)[0]))
    assert_equal(*models)


class Full:
    """A memory with room for a number of columns; it runs out in the forward or in the backward pass."""

    def __init__(self, model, columns: int, *, back: bool) -> None:
        self.columns, self.failures = columns, 0
        body = model.get_decoder()
        if back:
            body.register_forward_hook(lambda _, __, output: self.check_later(output.last_hidden_state))
        else:
            body.layers[1].register_forward_pre_hook(lambda _, args: self.check(args[0].shape[1]))

    def check(self, columns: int) -> None:
        if columns > self.columns and torch.is_grad_enabled():  # an evaluation needs far less
            self.fail()

    def check_later(self, states) -> None:
        columns = states.shape[0] * states.shape[1]
        if columns > self.columns and states.requires_grad:
            states.register_hook(lambda _: self.fail())

    def fail(self) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


class Notes(Callback):
    def __init__(self) -> None:
        self.notes = []

    def on_note(self, text):
        self.notes.append(text)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_when_memory_runs_out_training_continues_with_half(tmp_path, back):
    usual, expected = run(lora_model(torch.float64), epochs=2, batch_size=8)
    model, notes = lora_model(torch.float64), Notes()
    memory = Full(model, 33, back=back)
    with pytest.warns(UserWarning, match="memory ran out at step 1"):
        _, result = run(model, out=tmp_path, callbacks=[notes], epochs=2, batch_size=8)
    assert 1 <= memory.failures == len(notes.notes) < 4
    assert "at most" in notes.notes[0]
    assert notes.notes[0] in (tmp_path / "metrics.jsonl").read_text()
    for step, other in zip(steps(result), steps(expected), strict=True):
        assert step.loss == pytest.approx(other.loss, rel=1e-6)
        assert step.grad_norm == pytest.approx(other.grad_norm, rel=1e-6)
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-6, atol=1e-7)


def checkpointed(model) -> list[bool]:
    """Return a list that will have an entry for each forward pass: whether the blocks are checkpointed."""
    seen = []
    body = model.get_decoder()
    body.register_forward_pre_hook(
        lambda *_: seen.append(body.layers[0].gradient_checkpointing) if torch.is_grad_enabled() else None
    )
    return seen


def short_of_memory(size: int):
    """Return a memory with room for half of the bytes that one example saves."""
    return lambda _: int(0.5 * size / MICRO.USED_SHARE)


def test_if_one_example_takes_too_much_memory_blocks_are_computed_twice(monkeypatch, tmp_path):
    size = saved_bytes_of_the_longest_example()
    usual, _ = run(lora_model(torch.float64), epochs=1, batch_size=16)
    monkeypatch.setattr(MICRO, "free_bytes", short_of_memory(size))
    model, notes = lora_model(torch.float64), Notes()
    seen = checkpointed(model)
    with pytest.warns(UserWarning, match="an example of .* tokens alone takes too much memory: every block"):
        run(model, out=tmp_path, callbacks=[notes], epochs=1, batch_size=16)
    assert seen[0] is False  # the measurement
    assert len(seen) > 2
    assert all(seen[1:])
    assert len(notes.notes) == 1
    assert "train.gradient_checkpointing" in notes.notes[0]
    assert notes.notes[0] in (tmp_path / "metrics.jsonl").read_text()
    assert not any(block.gradient_checkpointing or block.training for block in model.get_decoder().layers)
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-6, atol=1e-7)


def test_blocks_are_not_computed_twice_if_the_setting_forbids_it(monkeypatch):
    size = saved_bytes_of_the_longest_example()
    monkeypatch.setattr(MICRO, "free_bytes", short_of_memory(size))
    model = lora_model(torch.float64)
    seen = checkpointed(model)
    run(model, epochs=1, batch_size=16, gradient_checkpointing=False)
    assert len(seen) > 2
    assert not any(seen)


def test_if_memory_runs_out_with_one_example_blocks_are_computed_twice():
    usual, _ = run(lora_model(torch.float64), data_of(4, 0), epochs=2)
    model, notes = lora_model(torch.float64), Notes()
    memory, block = Full(model, 3, back=False), model.get_decoder().layers[1]
    check = memory.check
    memory.check = lambda columns: None if block.gradient_checkpointing else check(columns)
    with pytest.warns(UserWarning, match="memory ran out at step 1 with .* tokens at once: every block"):
        run(model, data_of(4, 0), callbacks=[notes], epochs=2, micro_batch_tokens=1)
    assert memory.failures == len(notes.notes) == 1
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_single_example_that_does_not_fit_ends_the_run_with_one_line(tmp_path):
    model = lora_model()
    before = weights(model)
    Full(model, 3, back=False)
    with pytest.raises(
        TrainingError, match=r"^step 1: memory ran out with .* tokens at once; .*gradient_check"
    ) as error:
        run(model, data_of(4, 0), out=tmp_path, micro_batch_tokens=1)
    assert "\n" not in str(error.value)
    assert_equal(weights(model), before)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_memory_that_runs_out_later_loses_no_step(tmp_path):
    """The weights of the last step are saved, though they are copied every few steps only."""
    model, seen = lora_model(), []

    class FillMemory(Callback):
        def on_step(self, record):
            seen.append(weights(model))
            if record.step == 2:
                Full(model, 3, back=False)

    with pytest.raises(
        TrainingError, match=r"^step 3: memory ran out .* the weights \(after step 2\) are in .*adapter"
    ):
        run(model, out=tmp_path, callbacks=[FillMemory()], micro_batch_tokens=1, gradient_checkpointing=False)
    assert_equal(weights(model), seen[-1])


def test_an_example_that_does_not_fit_when_the_memory_is_measured(tmp_path):
    model = lora_model()
    Full(model, 3, back=False)
    with pytest.raises(TrainingError, match=r"^step 1: memory ran out with .* tokens at once"):
        run(model, data_of(4, 0))


def test_another_error_is_not_mistaken_for_a_lack_of_memory():
    model = lora_model()
    model.get_decoder().layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("of shapes")))
    with pytest.raises(RuntimeError, match="of shapes"):
        run(model, micro_batch_tokens=1)
