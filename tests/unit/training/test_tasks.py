"""Training on every task: steps are exact, the loss falls, the base does not change, and labels are saved."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from task_jobs import ready, trained
from tiny_tasks import TASK_CELLS, labelled_rows, prepared, tagged_rows, write_rows

from peftly import LoRA, attach, load, load_adapter, load_base, save_adapter, trainable_parameters
from peftly.adapters.adapter_set import open_adapters
from peftly.data import Data, DataConfig, Example
from peftly.errors import AdapterError, ConfigError, DataError
from peftly.inference.classification import classify
from peftly.models.tasks import labels_of, task_of
from peftly.runs.config import RunConfig
from peftly.runs.run import run
from peftly.training.callbacks import StepRecord

pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")  # masked language models have no pooler


def losses(result):
    return [record.loss for record in result.history if isinstance(record, StepRecord)]


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


@pytest.mark.parametrize(("task", "architecture"), TASK_CELLS)
@pytest.mark.sample(4)
def test_accumulated_batches_are_one_large_batch(task, architecture, task_base, tmp_path):
    """1 x 8 = 8 x 1, one example after the other or all at once; the last step of an epoch is short."""
    found = []
    for size, tokens in ((1, 1), (8, 10_000)):
        model, tokenizer, data = ready(task, architecture, task_base, tmp_path)
        assert len(data.train.encoded) % 8
        result = trained(
            model,
            tokenizer,
            data,
            batch_size=size,
            gradient_accumulation_steps=8 // size,
            optimizer="sgd",
            micro_batch_tokens=tokens,
        )
        found.append((losses(result), weights(model)))
    (alone, of_one), (together, of_eight) = found
    assert alone == pytest.approx(together, rel=1e-9)
    for name, tensor in of_one.items():
        torch.testing.assert_close(of_eight[name], tensor, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("task", ["sequence_classification", "token_classification"])
def test_cached_states_train_the_same_weights(task, packing, task_base, tmp_path):
    found = []
    for once in (True, False):
        model, tokenizer, data = prepared(task, task_base("bert"), tmp_path, None)
        attach(model, LoRA(rank=2, target_modules=r".*layer\.1\..*(query|dense)"), seed=1)
        for parameter in trainable_parameters(model).values():
            parameter.data = parameter.data.double()
        calls = []
        model.get_decoder().encoder.layer[0].attention.register_forward_hook(
            lambda *_, calls=calls: calls.append(None) if torch.is_grad_enabled() else None
        )
        settings = {"packing": packing, "frozen_layers_once": once, "optimizer": "sgd", "epochs": 3}
        result = trained(model, tokenizer, data, micro_batch_tokens=40, **settings)
        found.append((len(calls), losses(result), weights(model)))
    (fewer, kept, own), (every, computed, expected) = found
    assert fewer < every / 2
    assert kept == pytest.approx(computed, rel=1e-9)
    for name, tensor in expected.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("task", "architecture"), TASK_CELLS)
def test_the_loss_falls_and_the_base_stays(task, architecture, task_base, tmp_path):
    model, tokenizer, data = ready(task, architecture, task_base, tmp_path)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    result = trained(model, tokenizer, data, epochs=6)
    assert losses(result)[-1] < 0.7 * losses(result)[0]
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    counts = [record.trained_tokens for record in result.history if isinstance(record, StepRecord)]
    assert sum(counts) == 6 * sum(row.num_targets for row in data.train.encoded)


def test_the_best_can_be_chosen_by_entities(task_base, tmp_path):
    model, tokenizer, data = ready("token_classification", "bert", task_base, tmp_path)
    result = trained(model, tokenizer, data, epochs=6, metric_for_best_model="entity_f1")
    assert result.best.entity_f1 == max(r.entity_f1 for r in result.history if not isinstance(r, StepRecord)) > 0
    with pytest.raises(
        ConfigError, match=r"train\.metric_for_best_model accuracy is no score of examples of kind 'tags'; .* entity_f1"
    ):
        trained(model, tokenizer, data, metric_for_best_model="accuracy")
    with pytest.raises(ConfigError, match="entity_f1 is no score"):
        trained(*ready("sequence_classification", "bert", task_base, tmp_path), metric_for_best_model="entity_f1")


def test_examples_of_another_task_are_refused(task_base, tmp_path):
    model, tokenizer, _ = ready("sequence_classification", "bert", task_base, tmp_path)
    tags = prepared("token_classification", task_base("bert"), tmp_path, tagged_rows())[2]
    with pytest.raises(DataError, match="load the data with task='sequence_classification'"):
        trained(model, tokenizer, tags)


def answers(model, architecture):
    ids = torch.tensor([[1, 20, 30, 40, 2], [1, 25, 35, 2, 0]])
    mask = torch.tensor([[1] * 5, [1] * 4 + [0]])
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, **more).logits
    return logits[mask.bool()] if logits.shape[:2] == mask.shape else logits


@pytest.mark.parametrize(("task", "architecture"), TASK_CELLS)
def test_a_saved_adapter_is_opened_for_its_task(task, architecture, task_base, tmp_path):
    classifies = task.endswith("classification")
    labels = ("first", "second", "third") if classifies else ()
    base = load_base(str(task_base(architecture)), dtype="float32", task=task, labels=labels, seed=1)
    model = attach(base.model, LoRA(rank=2), seed=1)
    if architecture == "bert" and task == "sequence_classification":  # the base's files have no pooler; see test_tasks
        return
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05)
    save_adapter(model, tmp_path / "adapter", notes={"row_format": None})
    again = load(tmp_path / "adapter", dtype="float32").model
    assert task_of(again) == task
    assert torch.equal(answers(again, architecture), answers(model, architecture))
    if classifies:
        assert labels_of(again) == list(labels)
        assert open_adapters(tmp_path / "adapter").notes["labels"] == list(labels)
    names = {
        "sequence_classification": "SEQ_CLS", "token_classification": "TOKEN_CLS", "seq2seq_lm": "SEQ_2_SEQ_LM"
    }  # fmt: skip
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == names[task]


@pytest.mark.parametrize(
    ("task", "architecture", "target"),
    [
        ("SEQ_CLS", "roberta", "query"),
        ("SEQ_CLS", "distilbert", "q_lin"),
        ("SEQ_CLS", "llama", "q_proj"),
        ("SEQ_CLS", "gpt2", "c_attn"),
        ("TOKEN_CLS", "bert", "query"),
    ],
)
def test_an_adapter_of_peft_opens_with_the_labels_of_its_head(task, architecture, target, task_base, tmp_path):
    peft = pytest.importorskip("peft")
    auto = tf.AutoModelForSequenceClassification if task == "SEQ_CLS" else tf.AutoModelForTokenClassification
    base = auto.from_pretrained(task_base(architecture), num_labels=5)
    base.config.pad_token_id = 0
    settings = peft.LoraConfig(task_type=task, r=2, target_modules=[target], init_lora_weights=False)
    model = peft.get_peft_model(base, settings).eval()
    model.save_pretrained(tmp_path / "peft")
    assert not (tmp_path / "peft" / "peftly.json").exists()
    again, tokenizer = load(tmp_path / "peft", dtype="float32")
    assert labels_of(again) == [f"LABEL_{number}" for number in range(5)]
    torch.testing.assert_close(answers(again, architecture), answers(model, architecture), rtol=1e-5, atol=1e-6)
    if task == "SEQ_CLS":
        assert len(classify(again, tokenizer, [Example("late again")])[0]) == 5


def test_an_adapter_without_a_part_of_its_head_is_refused(task_base, tmp_path):
    """PEFT saves the classifier, but a new pooler would be initialised with other weights at every opening."""
    peft = pytest.importorskip("peft")
    base = tf.AutoModelForSequenceClassification.from_pretrained(task_base("bert"), num_labels=2)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "peft")
    with pytest.raises(AdapterError, match=r"has weights for bert\.pooler\.dense, so its answers would be random"):
        load(tmp_path / "peft")


def test_peft_opens_our_classifier(task_base, tmp_path):
    peft = pytest.importorskip("peft")
    base = load_base(str(task_base("roberta")), dtype="float32", task="sequence_classification", labels=("a", "b"))
    model = attach(base.model, LoRA(rank=2), seed=1)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05)
    save_adapter(model, tmp_path / "ours")
    theirs = tf.AutoModelForSequenceClassification.from_pretrained(task_base("roberta"), num_labels=2)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    torch.testing.assert_close(answers(theirs, "roberta"), answers(model, "roberta"), rtol=1e-5, atol=1e-6)


def test_an_adapter_for_other_labels_is_refused(task_base, tmp_path):
    base = load_base(str(task_base("roberta")), dtype="float32", task="sequence_classification", labels=("a", "b"))
    save_adapter(attach(base.model, LoRA(rank=2)), tmp_path / "two")
    three = load_base(str(task_base("roberta")), task="sequence_classification", labels=("a", "b", "c")).model
    with pytest.raises(ValueError, match="does not fit this base"):
        load_adapter(three, tmp_path / "two")
    assert load_file(tmp_path / "two" / "adapter_model.safetensors")


def test_a_split_may_be_missing(task_base, tmp_path):
    model, tokenizer, data = ready("sequence_classification", "distilbert", task_base, tmp_path)
    result = trained(model, tokenizer, Data(data.train, None, None, data.row_format, data.report), epochs=1)
    assert result.best is None


def test_a_run_refuses_a_base_of_another_task(task_base, tmp_path):
    file = str(write_rows(tmp_path / "rows.jsonl", labelled_rows()))
    base = load_base(str(task_base("roberta")), task="token_classification", labels=("a", "b"))
    config = RunConfig(
        base="x", task="sequence_classification", data=DataConfig(train=file), method=LoRA(), out=str(tmp_path / "out")
    )
    with pytest.raises(
        ConfigError, match="task is sequence_classification, but the given base was opened for token_class"
    ):
        run(config, base=base)
    assert not (tmp_path / "out").exists()
