"""The script of the reward model, with a tiny BERT: its loss, its file, and pairs that are no riddle of length."""

import math

import pytest
import torch

import peftly as library


def test_the_script_trains_saves_and_opens_the_reward_model(example, task_base, tmp_path):
    found = example("reward_model").main(base=str(task_base("bert")), folder=str(tmp_path), epochs=1, max_length=128)
    assert all(0 <= value <= 1 for value in found.values())
    model, tokenizer = library.load(tmp_path / "adapter", dtype="float32")
    assert model.config.num_labels == 1
    (rewards,) = library.classify(model, tokenizer, [("late again", "thanks for the help")])
    assert list(rewards) == ["reward"]


def test_the_loss_of_a_pair_is_that_of_bradley_and_terry(example):
    class Model(torch.nn.Module):
        def forward(self, rewards):
            return type("Output", (), {"logits": rewards[:, None]})

    loss_of = example("reward_model").PreferenceTrainer.compute_loss
    loss = loss_of(None, Model(), {"rewards": torch.tensor([2.0, 0.0, 1.0, 3.0])})
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(3))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_longer_answer_is_as_often_the_rejected_one(rows_of):
    train, test = rows_of("reward_pairs"), rows_of("reward_pairs_test")
    assert (len(train), len(test)) == (76, 35)
    for rows in (train, test):
        assert 0.4 < sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows) < 0.6
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
