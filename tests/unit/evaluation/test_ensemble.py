"""Ensembles of adapters: each member equals the adapter alone, and the vote equals a count by hand."""

import math

import pytest
from label_data import EVALUATE, LABELS, IdTokenizer, label_split
from references import DEFAULTS
from tiny import perturb, tiny_model

from peftly import LoRA, PrefixTuning, PromptTuning, attach, trainable_parameters, use_adapters
from peftly.errors import ConfigError
from peftly.evaluation.ensemble import _vote, evaluate_ensemble
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.metrics import Prediction

MEMBERS = {
    "first": PromptTuning(num_virtual_tokens=3, init="random"),
    "second": PromptTuning(num_virtual_tokens=5, init="random"),
    "third": LoRA(**DEFAULTS["lora"]),
    "fourth": PrefixTuning(num_virtual_tokens=2),
}


@pytest.fixture(name="model")
def _model(monkeypatch):
    # One token each: among labels of several lengths a random model takes the shortest, whatever the adapter.
    one_token = {label: [5 + index] for index, label in enumerate(LABELS)}
    monkeypatch.setattr(EVALUATE, "label_ids", lambda shape, tokenizer: one_token)
    model = tiny_model("llama")
    for seed, (name, config) in enumerate(MEMBERS.items()):
        attach(model, config, name=name, seed=seed)
    perturb(trainable_parameters(model).values(), scale=0.3)
    return model


@pytest.mark.parametrize("batch_size", [3, 64])
def test_members_score_as_they_do_alone(model, batch_size):
    split, shape = label_split()
    found = evaluate_ensemble(model, IdTokenizer(), split, shape, list(MEMBERS), batch_size=batch_size)
    for name in MEMBERS:
        with use_adapters(model, name):
            alone = evaluate(model, IdTokenizer(), split, shape)
        own = found.members[name]
        assert (own.accuracy, own.macro_f1, own.confusion) == (alone.accuracy, alone.macro_f1, alone.confusion)
        for found_one, expected in zip(own.predictions, alone.predictions, strict=True):
            assert (found_one.prompt, found_one.label) == (expected.prompt, expected.label)
            assert found_one.predicted == expected.predicted
            assert found_one.log_probabilities == pytest.approx(expected.log_probabilities, rel=1e-9)
    assert len({tuple(row.predicted for row in own.predictions) for own in found.members.values()}) > 1
    for index, prediction in enumerate(found.together.predictions):
        votes = [member.predictions[index].predicted for member in found.members.values()]
        assert votes.count(prediction.predicted) == max(map(votes.count, votes))


def member(predicted, **probabilities):
    return Prediction("p", "a", predicted, {label: math.log(value) for label, value in probabilities.items()})


def test_the_majority_wins_and_ties_go_to_the_higher_mean():
    members = [member("a", a=0.4, b=0.3, c=0.3), member("a", a=0.4, b=0.3, c=0.3), member("b", a=0.01, b=0.98, c=0.01)]
    assert _vote(members, "abc", "majority").predicted == "a"
    assert _vote(members, "abc", "mean").predicted == "b"
    assert _vote(members[1:], "abc", "majority").predicted == "b"
    mean = _vote(members, "abc", "mean").log_probabilities
    assert {label: math.exp(value) for label, value in mean.items()} == pytest.approx(
        {"a": 0.81 / 3, "b": 1.58 / 3, "c": 0.61 / 3}
    )


def test_probabilities_are_among_the_labels():
    """All labels together have little of the probability of all texts; an ensemble compares the labels only."""
    members = [member("a", a=2e-9, b=1e-9), member("b", a=0.1, b=0.2)]
    mean = _vote(members, "ab", "mean").log_probabilities
    assert math.exp(mean["a"]) == pytest.approx(0.5)


def test_fewer_than_two_members_and_unknown_votes_are_refused(model):
    split, shape = label_split()
    with pytest.raises(ConfigError, match="two members or more; got first"):
        evaluate_ensemble(model, IdTokenizer(), split, shape, ["first"])
    with pytest.raises(ConfigError, match="vote='median' is not one of majority, mean"):
        evaluate_ensemble(model, IdTokenizer(), split, shape, list(MEMBERS), vote="median")
