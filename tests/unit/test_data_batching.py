import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import Encoded, collate, epoch_order, epoch_steps, pack

BATCH = [Encoded([5, 2, 7], [False, True, True]), Encoded([9, 2], [False, True])]


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


def trained_from(first, ids):
    return Encoded(ids, [place >= first for place in range(len(ids))])


def test_rows_laid_end_to_end():
    batch = pack([trained_from(1, [5, 2, 7]), trained_from(1, [9, 2])])
    assert batch["input_ids"].tolist() == [[5, 2, 7, 9, 2]]
    assert batch["labels"].tolist() == [[-100, 2, 7, -100, 2]]
    assert batch["lengths"].tolist() == [3, 2]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    with pytest.raises(ValueError, match="empty batch"):
        pack([])


def test_what_all_rows_begin_with_stands_once():
    batch = pack([trained_from(3, [5, 6, 7, 8]), trained_from(4, [5, 6, 9, 9, 3])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 9, 3]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, -100, -100, 3]]
    assert batch["lengths"].tolist() == [2, 3]


@pytest.mark.parametrize(
    ("rows", "own"),
    [
        ([trained_from(3, [5, 6, 7, 8])], [4]),  # one row shares with nobody
        ([trained_from(2, [5, 6, 7]), trained_from(3, [5, 6, 7, 8])], [2, 3]),  # the 6 foretells different tokens
        ([trained_from(0, [5, 6]), trained_from(1, [5, 6])], [2, 2]),
        ([trained_from(1, [5, 6]), trained_from(1, [5, 6])], [2, 2]),
        ([trained_from(3, [5, 6, 7, 8]), trained_from(3, [5, 6, 7, 8])], [2, 2]),
    ],
)
def test_a_word_whose_output_is_compared_is_each_rows_own(rows, own):
    assert pack(rows)["lengths"].tolist() == own


@given(st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(3, 5), min_size=5, max_size=9)), min_size=1))
def test_packed_rows_hold_every_row(given_rows):
    rows = [trained_from(first, ids) for first, ids in given_rows]
    batch = pack(rows)
    (ids,), (labels,), lengths = batch["input_ids"].tolist(), batch["labels"].tolist(), batch["lengths"].tolist()
    shared = len(ids) - sum(lengths)
    place = shared
    for row, length in zip(rows, lengths, strict=True):
        assert ids[:shared] + ids[place : place + length] == row.input_ids
        assert labels[:shared] + labels[place : place + length] == [-100, *row.targets[1:]]
        assert length > 0
        place += length


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
