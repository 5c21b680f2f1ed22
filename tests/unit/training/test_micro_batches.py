from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model
from torch import nn
from training_jobs import assert_equal, data_of, lora_model, run, steps, weights

from peftly import PromptTuning, attach
from peftly.errors import TrainingError
from peftly.training.callbacks import Callback
from peftly.training.micro_batches import FAST_TOKENS_CPU, MicroBatches, saved_bytes
from peftly.training.steps import common_words

MICRO = import_module("peftly.training.micro_batches")


def sizes_seen(monkeypatch) -> list[list[int]]:
    """Return what will be a list of the rows' lengths in every micro-batch."""
    seen, collate = [], import_module("peftly.training.steps").collate

    def noted(rows, **settings):
        seen.append([row.num_tokens for row in rows])
        return collate(rows, **settings)

    monkeypatch.setattr("peftly.training.steps.collate", noted)
    return seen


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    limit=st.integers(1, 100),
    kind=st.sampled_from(["padded", "packed", "packed encoder"]),
    virtual=st.integers(0, 20),
    shared=st.integers(0, 40),
)
def test_every_row_is_in_one_micro_batch_that_keeps_to_the_limit(lengths, limit, kind, virtual, shared):
    shared = min(shared, *lengths)
    micro = MicroBatches(limit, packed=kind != "padded", causal=kind == "packed", virtual=virtual)
    cut = micro.cut(lengths, shared)
    assert sorted(place for places in cut for place in places) == list(range(len(lengths)))
    for places in cut:
        own = [lengths[place] for place in places]
        seen = {
            "padded": len(own) * (virtual + max(own)),
            "packed": virtual + shared + sum(length - shared for length in own),
            "packed encoder": sum(virtual + length for length in own),
        }[kind]
        assert len(own) == 1 or seen <= limit
    assert all(
        max(lengths[place] for place in left) <= min(lengths[place] for place in right) for left, right in pairwise(cut)
    )


def test_words_that_rows_share_count_once(monkeypatch):
    data = data_of(8, 0)
    rows = [
        replace(row, input_ids=[5] * 30 + row.input_ids, trained=[False] * 30 + row.trained)
        for row in data.train.encoded
    ]
    assert common_words(rows) == 30 + common_words(data.train.encoded)
    data = replace(data, train=replace(data.train, encoded=rows))
    limit = 30 + sum(row.num_tokens - 30 for row in rows)
    seen = sizes_seen(monkeypatch)
    run(data=data, epochs=1, batch_size=8, micro_batch_tokens=limit)
    run(data=data, epochs=1, batch_size=8, micro_batch_tokens=limit, packing=False)
    assert len(seen[0]) == 8
    assert len(seen) > 3


def test_halving_goes_on_until_each_row_goes_alone():
    micro, lengths, counts = MicroBatches(10_000), [5, 6, 7, 9], []
    while micro.halve(lengths):
        counts.append(len(micro.cut(lengths)))
    assert counts[0] == 2
    assert counts[-1] == len(micro.cut(lengths)) == 4


def test_saved_bytes_are_what_the_way_back_needs():
    layer = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).requires_grad_(False)
    x = torch.ones(10, 8, requires_grad=True)
    # Frozen weights are the model's own, and the output of the ReLU is all that is kept besides.
    assert saved_bytes(layer, lambda: layer(x).sum()) == 10 * 16 * 4
    assert saved_bytes(layer, lambda: layer(x[:5]).sum()) == 5 * 16 * 4


def test_short_of_memory_less_goes_through_at_once_and_the_weights_are_the_same(monkeypatch):
    row = saved_bytes_of_the_longest_row()
    seen = sizes_seen(monkeypatch)
    usual, _ = run(lora_model(torch.float64), epochs=1, batch_size=16)
    assert [len(lengths) for lengths in seen] == [16]
    monkeypatch.setattr(MICRO, "_free_bytes", lambda _: int(3.5 * row / MICRO.USED_SHARE))
    short, _ = run(lora_model(torch.float64), epochs=1, batch_size=16)
    longest = max(seen[0])
    assert len(seen) > 4
    assert all(sum(lengths) <= 3.5 * longest for lengths in seen[1:])
    assert max(sum(lengths) for lengths in seen[1:]) > 2.5 * longest
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(short)[name], tensor, rtol=1e-6, atol=1e-7)


def saved_bytes_of_the_longest_row() -> int:
    """Return what `train` finds, by a run that it is noted in."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MICRO, "saved_bytes", lambda *given: found.append(saved_bytes(*given)) or found[-1])
        run(lora_model(torch.float64), epochs=1, batch_size=16)
    return found[0]


def test_without_packing_padding_and_virtual_tokens_count(monkeypatch):
    model = attach(tiny_model("llama", torch.float32), PromptTuning(num_virtual_tokens=5, init="random"))
    seen = sizes_seen(monkeypatch)
    run(model, packing=False, micro_batch_tokens=40, epochs=1, batch_size=16)
    assert sum(map(len, seen)) == 16
    assert all(len(lengths) * (5 + max(lengths)) <= 40 for lengths in seen)
    assert any(len(lengths) > 1 for lengths in seen)


def test_looking_at_the_memory_draws_no_number():
    """The order of draws, of dropout for instance, is that of a run whose limit is given."""
    models = []
    for tokens in (None, FAST_TOKENS_CPU):
        model = attach(tiny_model("llama", torch.float32), import_module("peftly").LoRA(rank=2, dropout=0.3), seed=1)
        models.append(weights(run(model, micro_batch_tokens=tokens)[0]))
    assert_equal(*models)


class Full:
    """A memory in which only so many columns have room; it runs out on the way there or back."""

    def __init__(self, model, columns: int, *, back: bool) -> None:
        self.columns, self.failures = columns, 0
        body = model.get_decoder()
        if back:
            body.register_forward_hook(lambda _, __, output: self.look_later(output.last_hidden_state))
        else:
            body.layers[1].register_forward_pre_hook(lambda _, args: self.look(args[0].shape[1]))

    def look(self, columns: int) -> None:
        if columns > self.columns and torch.is_grad_enabled():  # an evaluation needs far less
            self.fail()

    def look_later(self, states) -> None:
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
def test_when_memory_runs_out_it_goes_on_with_half(tmp_path, back):
    usual, expected = run(lora_model(torch.float64), epochs=2, batch_size=8)
    model, notes = lora_model(torch.float64), Notes()
    memory = Full(model, 33, back=back)
    with pytest.warns(UserWarning, match="memory ran out at step 1"):
        _, result = run(model, out=tmp_path, callbacks=[notes], epochs=2, batch_size=8)
    assert 1 <= memory.failures == len(notes.notes) < 4
    assert "at most" in notes.notes[0]
    assert notes.notes[0] in (tmp_path / "metrics.jsonl").read_text()
    for mine, his in zip(steps(result), steps(expected), strict=True):
        assert mine.loss == pytest.approx(his.loss, rel=1e-6)
        assert mine.grad_norm == pytest.approx(his.grad_norm, rel=1e-6)
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-6, atol=1e-7)


def checkpointed(model) -> list[bool]:
    """Return what will be a list of whether the blocks were checkpointed, pass by pass."""
    seen = []
    body = model.get_decoder()
    body.register_forward_pre_hook(
        lambda *_: seen.append(body.layers[0].gradient_checkpointing) if torch.is_grad_enabled() else None
    )
    return seen


def short_of_memory(row: int):
    """Return a memory with room for half of what one row saves."""
    return lambda _: int(0.5 * row / MICRO.USED_SHARE)


def test_where_a_row_alone_takes_too_much_blocks_are_computed_twice(monkeypatch, tmp_path):
    row = saved_bytes_of_the_longest_row()
    usual, _ = run(lora_model(torch.float64), epochs=1, batch_size=16)
    monkeypatch.setattr(MICRO, "_free_bytes", short_of_memory(row))
    model, notes = lora_model(torch.float64), Notes()
    seen = checkpointed(model)
    with pytest.warns(UserWarning, match="an example of .* tokens alone takes too much memory: every block"):
        run(model, out=tmp_path, callbacks=[notes], epochs=1, batch_size=16)
    assert seen[0] is False  # it looks
    assert len(seen) > 2
    assert all(seen[1:])
    assert len(notes.notes) == 1
    assert "train.gradient_checkpointing" in notes.notes[0]
    assert notes.notes[0] in (tmp_path / "metrics.jsonl").read_text()
    assert not any(block.gradient_checkpointing or block.training for block in model.get_decoder().layers)
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-6, atol=1e-7)


def test_blocks_are_not_computed_twice_against_a_persons_will(monkeypatch):
    row = saved_bytes_of_the_longest_row()
    monkeypatch.setattr(MICRO, "_free_bytes", short_of_memory(row))
    model = lora_model(torch.float64)
    seen = checkpointed(model)
    run(model, epochs=1, batch_size=16, gradient_checkpointing=False)
    assert len(seen) > 2
    assert not any(seen)


def test_when_memory_runs_out_over_one_row_blocks_are_computed_twice():
    usual, _ = run(lora_model(torch.float64), data_of(4, 0), epochs=2)
    model, notes = lora_model(torch.float64), Notes()
    memory, block = Full(model, 3, back=False), model.get_decoder().layers[1]
    look = memory.look
    memory.look = lambda columns: None if block.gradient_checkpointing else look(columns)
    with pytest.warns(UserWarning, match="memory ran out at step 1 with .* tokens at once: every block"):
        run(model, data_of(4, 0), callbacks=[notes], epochs=2, micro_batch_tokens=1)
    assert memory.failures == len(notes.notes) == 1
    for name, tensor in weights(usual).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_single_row_that_does_not_fit_ends_the_run_in_one_line(tmp_path):
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


def test_nor_does_it_fit_when_the_memory_is_looked_at(tmp_path):
    model = lora_model()
    Full(model, 3, back=False)
    with pytest.raises(TrainingError, match=r"^step 1: memory ran out with .* tokens at once"):
        run(model, data_of(4, 0))


def test_another_error_is_not_taken_for_a_lack_of_memory():
    model = lora_model()
    model.get_decoder().layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("of shapes")))
    with pytest.raises(RuntimeError, match="of shapes"):
        run(model, micro_batch_tokens=1)
