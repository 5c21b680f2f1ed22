"""The head of a classifier in a run, and the probe that it starts from."""

import json
import re

import pytest
import torch
import yaml
from peft import PeftModel
from tiny_tasks import labelled_rows, prepared, tagged_rows, tiny_base, write_rows
from transformers import BertForSequenceClassification

from peftly import METHODS, Callback, detach, evaluate, load, load_base, open_run
from peftly.errors import ConfigError, TrainingError
from peftly.evaluation import evaluate_probe, fit_probes
from peftly.models import Base, pooling_of
from peftly.runs import RunConfig, held_out_split, run
from peftly.runs.baselines import PROBE
from peftly.runs.probing import start_from
from peftly.runs.run import attach_method

pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")


@pytest.fixture
def mean_base(tmp_path):
    """A base that was trained to be pooled by the mean, as its files say."""
    base = tiny_base("bert", tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return base


def settings_for(base, tmp_path, rows=labelled_rows, name="run", **others):
    file = write_rows(tmp_path / "rows.jsonl", rows())
    train = {"epochs": 1, "batch_size": 8, **others.pop("train", {})}
    values = {"base": str(base), "data": {"train": str(file)}, "method": "lora", "dtype": "float32"}
    return RunConfig.model_validate({**values, "train": train, "out": str(tmp_path / name), **others})


def state(folder):
    return json.loads((folder / "evaluation.json").read_text()), yaml.safe_load((folder / "config.yaml").read_text())


def test_a_run_trains_the_head_that_its_base_was_trained_for(mean_base, tmp_path):
    lines = []
    result = run(settings_for(mean_base, tmp_path), log=lines.append)
    (line,) = [line for line in lines if line.startswith("head: ")]
    assert re.search(
        r"the mean of the token states, which its base was trained for, starting from a linear probe .*the first token",
        line,
    )
    evaluation, config = state(tmp_path / "run")
    assert config["head"] == "mean"
    assert evaluation["baselines"][PROBE]["accuracy"] == result.baselines[PROBE].accuracy > 0.7
    assert ">linear probe</th>" in (tmp_path / "run" / "report.html").read_text()
    assert pooling_of(load(tmp_path / "run").model) == "mean"


def test_the_epochs_of_a_head_are_said_and_stored(mean_base, tmp_path):
    lines = []
    config = settings_for(mean_base, tmp_path, train={"epochs": None, "learning_rate": 1e-12})
    result = run(config, log=lines.append)
    assert "epochs: 15" in lines
    assert state(tmp_path / "run")[1]["train"]["epochs"] == 15
    assert result.training.steps == 15 * 5


def test_the_head_of_transformers_starts_from_a_probe_and_peft_loads_it(mean_base, tmp_path):
    # The learning rate leaves the start as it is.
    config = settings_for(mean_base, tmp_path, head="transformers", train={"learning_rate": 1e-12})
    result = run(config)
    assert result.evaluation.loss == pytest.approx(result.baselines[PROBE].loss, rel=1e-5)
    model = load(tmp_path / "run", dtype="float32").model
    assert type(model) is BertForSequenceClassification
    plain = BertForSequenceClassification.from_pretrained(mean_base, num_labels=2)
    peft = PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    ids = torch.tensor([[1, 20, 30, 40, 2]])
    with torch.no_grad():
        torch.testing.assert_close(peft(ids).logits, model(ids).logits)


@pytest.mark.parametrize("method", ["prompt_tuning", "full"])
def test_a_pooled_head_is_trained_by_other_methods(method, mean_base, tmp_path):
    result = run(settings_for(mean_base, tmp_path, method=method, head="mean", train={"epochs": 2}))
    opened = open_run(str(tmp_path / "run"))
    held_out = held_out_split(opened, None)
    assert pooling_of(opened.model) == "mean"
    again = evaluate(opened.model, opened.tokenizer, held_out.split, held_out.row_format)
    assert again.loss == pytest.approx(result.evaluation.loss, rel=1e-5)


def test_a_choice_for_the_class_of_transformers_is_stored(task_base, tmp_path, monkeypatch):
    monkeypatch.setattr("peftly.runs.probing.choose_probe", lambda probes, expected: probes["own"])
    run(settings_for(task_base("distilbert"), tmp_path))
    assert state(tmp_path / "run")[1]["head"] == "transformers"


class _Stops(Callback):
    def on_step(self, record):
        if record.step == 3:
            raise RuntimeError("stopped here")


def test_a_run_with_a_chosen_head_continues_to_the_same_weights(mean_base, tmp_path):
    whole, stopped = (
        settings_for(mean_base, tmp_path, name=name, train={"checkpoint_steps": 1}) for name in ("whole", "stopped")
    )
    expected = run(whole).evaluation.loss
    with pytest.raises(TrainingError, match="stopped here"):
        run(stopped, callbacks=[_Stops()])
    stored = stopped.model_copy(
        update={"head": yaml.safe_load((tmp_path / "stopped" / "config.yaml").read_text())["head"]}
    )
    assert stored.head == "mean"
    assert run(stored, resume=True).evaluation.loss == pytest.approx(expected, rel=1e-6)


def test_the_batches_of_evaluations_change_no_bit_of_the_start(mean_base, tmp_path):
    for size in (32, 7):
        train = {"learning_rate": 1e-12, "max_steps": 1, "evaluation_batch_size": size}
        run(settings_for(mean_base, tmp_path, name=str(size), train=train))
    weights = [(tmp_path / size / "adapter" / "adapter_model.safetensors").read_bytes() for size in ("32", "7")]
    assert weights[0] == weights[1]


def test_tags_are_probed(task_base, tmp_path):
    result = run(settings_for(task_base("bert"), tmp_path, rows=tagged_rows, train={"learning_rate": 1e-12}))
    assert result.baselines[PROBE].token_accuracy > 0.7
    assert result.evaluation.loss == pytest.approx(result.baselines[PROBE].loss, rel=1e-5)


def test_the_base_of_a_caller_keeps_its_head_and_is_probed(task_base, tmp_path):
    labels = ("complaint", "no complaint")
    base = load_base(str(task_base("bert")), dtype="float32", task="sequence_classification", labels=labels)
    drawn = base.model.classifier.weight.clone()
    result = run(settings_for("given", tmp_path, train={"learning_rate": 1e-12}), base=base)
    assert result.evaluation.loss == pytest.approx(result.baselines[PROBE].loss, rel=1e-5), (
        "the adapter starts from the probe"
    )
    assert torch.equal(base.model.classifier.weight, drawn)
    with pytest.raises(ConfigError, match="head is mean, but the base has the head transformers"):
        run(settings_for("given", tmp_path, name="other", head="mean"), base=base)


def test_a_pooled_head_is_for_texts_with_labels_only(task_base, tmp_path):
    with pytest.raises(ConfigError, match="head: mean is for sequence_classification, and the task is token_class"):
        run(settings_for(task_base("bert"), tmp_path, rows=tagged_rows, head="mean"))


def test_several_adapters_of_a_run_start_from_one_probe_together(mean_base, tmp_path):
    config = settings_for(mean_base, tmp_path, method=["lora", "ia3"], train={"learning_rate": 1e-12, "seed": 3})
    result = run(config)
    assert result.evaluation.loss == pytest.approx(result.baselines[PROBE].loss, rel=1e-5)


def test_a_probe_without_bias_is_a_start_too(task_base, tmp_path):
    config = settings_for(task_base("llama"), tmp_path, task="sequence_classification", train={"learning_rate": 1e-12})
    result = run(config)
    assert isinstance(result.baselines[PROBE].loss, float)
    assert result.evaluation.loss == pytest.approx(result.baselines[PROBE].loss, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_from_a_probe_of_the_states_that_its_head_reads(method, task_base, tmp_path):
    model, tokenizer, data = prepared("sequence_classification", task_base("bert"), tmp_path)
    base, config = Base(model, tokenizer), settings_for("given", tmp_path, method=method)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = fit_probes(model, tokenizer, data.train.encoded, batch_size=8)["own"]
    attach_method(base, "default", config.method, config, data, print)
    drawn = evaluate(model, tokenizer, data.train, data.row_format).loss
    start_from(base, ["default"], data, probe)
    start = evaluate(model, tokenizer, data.train, data.row_format).loss
    assert start < 0.8 * drawn
    if METHODS[method].identity_at_init:
        of_probe = evaluate_probe(model, tokenizer, probe, data.train, data.row_format, batch_size=8)
        assert start == pytest.approx(of_probe.loss, rel=1e-5)
    detach(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
