import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import EncodedExample, collate, epoch_order, epoch_steps

BATCH = [EncodedExample([5, 2, 7], [False, True, True]), EncodedExample([9, 2], [False, True])]


def test_padding_on_the_right():
    batch = collate(BATCH, pad_id=2)
    assert batch["input_ids"].tolist() == [[5, 2, 7], [9, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 7], [-100, 2, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_padding_on_the_left():
    batch = collate(BATCH, pad_id=2, side="left")
    assert batch["input_ids"].tolist() == [[5, 2, 7], [2, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 7], [-100, -100, 2]]


def test_what_cannot_be_a_batch():
    with pytest.raises(ValueError, match="empty batch"):
        collate([], pad_id=0)
    with pytest.raises(ValueError, match="'middle'"):
        collate(BATCH, pad_id=0, side="middle")


@given(st.integers(0, 300), st.integers(0, 2**70), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_an_order_has_every_example_once_and_is_the_same_when_asked_again(count, seed, epoch):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed=seed, epoch=epoch)


def test_orders_differ_between_epochs_and_seeds():
    orders = [epoch_order(50, seed=seed, epoch=epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order(10, seed=7, epoch=3) == [2, 5, 9, 7, 3, 0, 6, 8, 4, 1]


@given(st.lists(st.integers(1, 60), max_size=200), st.integers(1, 9), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_steps_have_every_example_once_and_only_one_step_is_short(lengths, size, seed, epoch):
    steps = epoch_steps(lengths, size, seed=seed, epoch=epoch)
    assert sorted(index for step in steps for index in step) == list(range(len(lengths)))
    assert sorted(map(len, steps), reverse=True) == [size] * (len(lengths) // size) + [len(lengths) % size] * (
        len(lengths) % size > 0
    )
    assert steps == epoch_steps(lengths, size, seed=seed, epoch=epoch)
    assert all([lengths[index] for index in step] == sorted(lengths[index] for index in step) for step in steps)


def test_steps_hold_examples_of_much_the_same_length_and_little_padding():
    lengths = [epoch_order(60, seed=index, epoch=0)[0] + 1 for index in range(400)]

    def read(steps):
        return sum(max(lengths[index] for index in step) * len(step) for step in steps) / sum(lengths)

    order = epoch_order(400, seed=0, epoch=0)
    assert read([order[at : at + 8] for at in range(0, 400, 8)]) > 1.6
    assert read(epoch_steps(lengths, 8, seed=0, epoch=0)) < 1.15


def test_examples_meet_others_in_every_epoch_and_the_longest_do_not_make_up_the_short_step():
    lengths = list(range(1, 42))
    epochs = [epoch_steps(lengths, 4, seed=0, epoch=epoch) for epoch in range(20)]
    mates = {frozenset(step) for steps in epochs for step in steps if 40 in step}
    assert len(mates) > 10
    alone = [step[0] for steps in epochs for step in steps if len(step) == 1]
    assert len(set(alone)) > 10


def test_no_global_generator_is_read_or_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_order(10, seed=1, epoch=1)
    assert torch.equal(before, torch.get_rng_state())
