import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import EncodedExample, collate, collate_packed, epoch_order, epoch_steps

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


def causal(ids: list[int], trained_from: int) -> EncodedExample:
    return EncodedExample(ids, [index >= trained_from for index in range(len(ids))])


SHARING = [causal([5, 6, 7, 8], 1), causal([5, 6, 9], 2), causal([5, 6, 3, 3], 4)]
"""Examples with a common prefix of 2 tokens."""


def test_packed_examples_have_their_common_prefix_once():
    batch = collate_packed(SHARING)
    assert (batch.shared, batch.lengths) == (2, (2, 1, 2))
    assert batch.tensors["input_ids"].tolist() == [[5, 6, 7, 8, 9, 3, 3]]
    # 6 comes after 5, 7 after 6 and 8 after 7; 9 of the second example after the 6 that all share.
    assert batch.tensors["targets"].tolist() == [6, 7, 8, 9]
    assert batch.tensors["target_indices"].tolist() == [0, 1, 2, 1]
    assert {tensor.dtype for tensor in batch.tensors.values()} == {torch.int64}


def test_a_prefix_is_not_shared_where_attention_sees_both_ways_or_nobody_shares_it():
    batch = collate_packed(SHARING, shares_prefix=False)
    assert (batch.shared, batch.lengths) == (0, (4, 3, 4))
    assert batch.tensors["input_ids"].tolist() == [[5, 6, 7, 8, 5, 6, 9, 5, 6, 3, 3]]
    assert batch.tensors["target_indices"].tolist() == [0, 1, 2, 5]
    assert collate_packed(SHARING[:1]).shared == 0


def test_every_packed_example_has_a_token_of_its_own():
    batch = collate_packed([causal([5, 6], 1), causal([5, 6], 1), causal([5, 6, 7], 1)])
    assert (batch.shared, batch.lengths) == (1, (1, 1, 2))
    assert batch.tensors["target_indices"].tolist() == [0, 0, 0, 3]


def test_the_first_token_of_a_packed_text_is_not_a_target():
    assert collate_packed([causal([5, 6], 0)]).tensors["targets"].tolist() == [6]


def test_virtual_tokens_are_packed_with_the_text():
    first, second = causal([5, 6, 7], 1), causal([5, 8], 1)
    batch = collate_packed([first, second], virtual_tokens=[[(90, 0), (91, 2)], [(90, 0), (91, 1)]])
    assert (batch.shared, batch.lengths) == (2, (3, 2))
    assert batch.tensors["input_ids"].tolist() == [[90, 5, 6, 91, 7, 91, 8]]
    # A token is predicted by the column before it in its own example, be that a virtual token.
    assert batch.tensors["targets"].tolist() == [6, 7, 8]
    assert batch.tensors["target_indices"].tolist() == [1, 3, 5]
    after = collate_packed([second], virtual_tokens=[[(90, 2), (91, 2)]])
    assert after.tensors["input_ids"].tolist() == [[5, 8, 90, 91]]


@pytest.mark.parametrize("shares_prefix", [True, False])
def test_tags_are_targets_at_their_own_tokens(shares_prefix):
    tagged = [
        EncodedExample([1, 5, 6], [True] * 3, tags=[2, -100, 0], token_type_ids=[0, 1, 1]),
        EncodedExample([1, 7], [True] * 2, tags=[1, 3], token_type_ids=[0, 0]),
    ]
    batch = collate_packed(tagged, virtual_tokens=[[(90, 1)], [(90, 1)]], shares_prefix=shares_prefix)
    tensors = {name: tensor.tolist() for name, tensor in batch.tensors.items()}
    assert tensors["targets"] == [2, 0, 1, 3]
    if shares_prefix:
        assert tensors["input_ids"] == [[1, 90, 5, 6, 7]]
        assert tensors["token_type_ids"] == [[0, 0, 1, 1, 0]]
        assert tensors["target_indices"] == [0, 3, 0, 4]
    else:
        assert tensors["input_ids"] == [[1, 90, 5, 6, 1, 90, 7]]
        assert tensors["token_type_ids"] == [[0, 0, 1, 1, 0, 0, 0]]
        assert tensors["target_indices"] == [0, 3, 4, 6]


@pytest.mark.parametrize("target", [{"label": 1}, {"answer": [3]}])
def test_other_targets_are_not_packed(target):
    with pytest.raises(ValueError, match="trained tokens or with tags"):
        collate_packed([EncodedExample([5], [False], **target)])
    with pytest.raises(ValueError, match="empty batch"):
        collate_packed([])


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
