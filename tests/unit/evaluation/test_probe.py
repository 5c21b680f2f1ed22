"""Linear probes of a frozen base."""

import pytest
import torch
import transformers as tf
from sklearn.linear_model import LogisticRegression
from tiny_tasks import prepared, tiny_tokenizer

from peftly import LoRA, attach, evaluate, load_base
from peftly.data import EncodedExample, collate
from peftly.evaluation import Probe, choose_probe, evaluate_probe, fit_probes
from peftly.evaluation.states import head_states

pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")
SEQUENCE, TOKENS = "sequence_classification", "token_classification"


def states_of(model, tokenizer, data):
    """States of the last layer and the attention mask of all examples in one batch."""
    batch = collate(data.train.encoded, pad_id=tokenizer.pad_token_id)
    inputs = {name: value for name, value in batch.items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.base_model(**inputs)[0], batch


def agrees(probe, states, classes):
    """Whether the most likely classes are those of scikit-learn on the same states."""
    scale = states.std(0, unbiased=False)
    has_bias = probe.bias is not None
    expected = LogisticRegression(fit_intercept=has_bias, max_iter=5000).fit((states / scale).numpy(), classes.numpy())
    bias = probe.bias if has_bias else 0
    predicted = (states @ probe.weight.T + bias).argmax(-1)
    return (predicted == torch.tensor(expected.predict((states / scale).numpy()))).double().mean() > 0.9


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "llama", "gpt2"])
def test_probes_of_texts_read_the_states_of_their_names(architecture, task_base, tmp_path):
    model, tokenizer, data = prepared(SEQUENCE, task_base(architecture), tmp_path)
    probes = fit_probes(model, tokenizer, data.train.encoded, batch_size=7, pooled=True)
    encoder = architecture in ("bert", "roberta", "distilbert")
    assert list(probes) == (["own", "mean", "first"] if encoder else ["own"])
    states, batch = states_of(model, tokenizer, data)
    mask, classes = batch["attention_mask"], batch["labels"][:, 0]
    lengths = mask.sum(1)
    if encoder:
        assert agrees(probes["first"], states[:, 0], classes)
        assert agrees(probes["mean"], (states * mask[..., None]).sum(1) / lengths[:, None], classes)
    else:
        assert agrees(probes["own"], states[torch.arange(len(states)), lengths - 1], classes)
        assert probes["own"].bias is None, "the layer has no bias"


@pytest.mark.parametrize(("architecture", "is_encoder"), [("mpnet", True), ("deberta-v2", True), ("opt", False)])
def test_pooled_states_are_those_of_encoders_of_every_class(architecture, is_encoder):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 200, "num_hidden_layers": 1}
    config = tf.AutoConfig.for_model(architecture, **sizes, num_attention_heads=4, pad_token_id=0, num_labels=2)
    model = tf.AutoModelForSequenceClassification.from_config(config)
    encoded = [EncodedExample([1, 20 + label, 2], [False] * 3, label=label) for label in (0, 1)]
    ((states, _),) = head_states(model, tiny_tokenizer("bert"), encoded, batch_size=2, pooled=True)
    assert list(states) == (["own", "mean", "first"] if is_encoder else ["own"])


@pytest.mark.parametrize(("task", "architecture"), [(SEQUENCE, "roberta"), (SEQUENCE, "llama"), (TOKENS, "bert")])
def test_a_probe_is_scored_as_the_head_of_the_untouched_base(task, architecture, task_base, tmp_path):
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = fit_probes(model, tokenizer, data.train.encoded, batch_size=8, pooled=True)["own"]
    scores = evaluate_probe(model, tokenizer, probe, data.train, data.row_format, batch_size=8)
    random_head = evaluate(model, tokenizer, data.train, data.row_format)
    assert scores.loss < 0.7 * random_head.loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    attach(model, LoRA())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(1.0 if "peftly" in name else 0.0)
    adapted = evaluate_probe(model, tokenizer, probe, data.train, data.row_format, batch_size=8)
    assert adapted.loss == pytest.approx(scores.loss), "the adapter takes no part"


def test_a_probe_needs_few_of_many_examples(task_base, tmp_path, monkeypatch):
    model, tokenizer, data = prepared(SEQUENCE, task_base("bert"), tmp_path)
    monkeypatch.setattr("peftly.evaluation.probe.MOST_EXAMPLES", 10)
    probe = fit_probes(model, tokenizer, data.train.encoded, batch_size=8)["own"]
    assert len(probe.losses) == 10
    assert torch.isfinite(probe.losses).all()
    model, tokenizer, data = prepared(TOKENS, task_base("bert"), tmp_path)
    monkeypatch.setattr("peftly.evaluation.probe.MOST_TARGETS", 6)
    words = len(fit_probes(model, tokenizer, data.train.encoded, batch_size=8)["own"].losses)
    assert 6 <= words < 6 + max(example.num_targets for example in data.train.encoded)


def probe_with(losses, head="own"):
    return Probe(head, torch.zeros(2, 1), None, torch.tensor(losses), 0.0)


def test_another_head_is_chosen_only_if_it_is_clearly_better():
    own = probe_with([0.5, 0.7, 0.4, 0.8])
    better = probe_with([0.2, 0.3, 0.1, 0.4], "mean")
    hardly = probe_with([0.9, 0.1, 0.9, 0.4], "first")
    assert choose_probe({"own": own, "mean": better, "first": hardly}).head == "mean"
    assert choose_probe({"own": own, "first": hardly}).head == "own"
    assert choose_probe({"own": own, "first": hardly}, "first").head == "first"
    assert choose_probe({"own": own}, "mean").head == "own"


def test_probes_that_are_worse_than_a_guess_choose_no_head():
    # As with one row of each label: cross-validation never sees the label of a row in another one.
    expected, other = probe_with([2.0, 2.5, 2.2, 2.4], "mean"), probe_with([1.0, 1.2, 1.1, 1.3], "first")
    assert choose_probe({"own": expected, "mean": expected, "first": other}, "mean").head == "mean"


def test_a_base_with_its_own_head_is_probed_too(task_base, tmp_path):
    model, tokenizer, data = prepared(SEQUENCE, task_base("bert"), tmp_path)
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    labels = data.row_format.labels
    again = load_base(str(tmp_path / "classifier"), dtype="float32", task=SEQUENCE, labels=labels).model
    assert list(fit_probes(again, tokenizer, data.train.encoded, batch_size=8)) == ["own"]
