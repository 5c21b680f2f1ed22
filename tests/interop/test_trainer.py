"""transformers' Trainer on adapted models: checkpoints, the best model, resuming, generation and the Hub."""

from pathlib import Path

import pytest
import torch
import transformers as tf
from references import DEFAULTS, METHOD_CELLS, of_each_kind
from tiny import LABELS, random_token_ids, tiny_model

from peftly import IA3, METHODS, LoRA, attach, load_adapter, trainable_parameters

TEXTS = random_token_ids([8] * 8)
LANGUAGE = [{"input_ids": text, "labels": text} for text in TEXTS]
CLASSES = [{"input_ids": text, "labels": index % LABELS} for index, text in enumerate(TEXTS)]
WEIGHTS = "adapter_model.safetensors"


def fresh(architecture, method, task="causal_lm"):
    model = tiny_model(architecture, torch.float32, task=task)
    return attach(model, METHODS[method].config(**DEFAULTS[method]))


def trainer(model, folder, **settings):
    examples = CLASSES if "Classification" in type(model).__name__ else LANGUAGE
    arguments = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05}
    arguments |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 3}
    kind = settings.pop("kind", tf.Trainer)
    options = {"train_dataset": examples, "eval_dataset": examples, "callbacks": settings.pop("callbacks", None)}
    options |= {"processing_class": settings.pop("tokenizer", None)}
    arguments_of = tf.Seq2SeqTrainingArguments if kind is tf.Seq2SeqTrainer else tf.TrainingArguments
    return kind(model, arguments_of(str(folder), **arguments | settings), **options)


class StopAfterFour(tf.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def values(model):
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def same(actual, expected):
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("architecture", "method"), [*of_each_kind(METHOD_CELLS), ("llama", "classifier")])
def test_a_resumed_training_is_the_unbroken_one_bit_for_bit(architecture, method, tmp_path, caplog):
    def model():
        if method == "classifier":
            return fresh(architecture, "lora", "sequence_classification")
        return fresh(architecture, method)

    unbroken = trainer(model(), tmp_path / "unbroken")
    unbroken.train()
    broken = trainer(model(), tmp_path / "broken", callbacks=[StopAfterFour()])
    broken.train()
    resumed = trainer(model(), tmp_path / "broken")
    resumed.train(resume_from_checkpoint=True)
    assert same(values(resumed.model), values(unbroken.model))
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (resumed, unbroken)]
    assert losses[0] == losses[1]
    assert "missing keys" not in caplog.text
    file = Path("checkpoint-6") / WEIGHTS
    assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "unbroken" / file).read_bytes()


@pytest.mark.parametrize(("architecture", "method"), [*of_each_kind(METHOD_CELLS), ("bert", "classifier")])
def test_the_best_model_is_loaded_at_the_end(architecture, method, tmp_path, caplog):
    task = "sequence_classification" if method == "classifier" else "causal_lm"
    model = fresh(architecture, "lora" if method == "classifier" else method, task)
    seen = {}

    class Note(tf.TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen[state.global_step] = values(model)
            metrics["eval_score"] = -abs(state.global_step - 2)  # the best is the first

    training = trainer(
        model, tmp_path, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, callbacks=[Note()],
        metric_for_best_model="score", greater_is_better=True,
    )  # fmt: skip
    training.train()
    assert training.state.best_model_checkpoint.endswith("checkpoint-2")
    assert same(values(model), seen[2])
    assert not same(seen[6], seen[2])
    assert "missing keys" not in caplog.text
    other = tiny_model(architecture, torch.float32, task=task)
    load_adapter(other, tmp_path / "checkpoint-2")
    ids = torch.tensor(TEXTS)
    with torch.no_grad():
        assert torch.equal(other.eval()(ids).logits, model.eval()(ids).logits)


def test_a_training_with_dropout_and_two_adapters_resumes_in_the_middle_of_an_epoch(tmp_path):
    def model():
        adapted = attach(tiny_model("llama", torch.float32), LoRA(rank=2, dropout=0.5), name="a")
        return attach(adapted, IA3(), name="b")

    unbroken = trainer(model(), tmp_path)
    unbroken.train()
    expected = values(unbroken.model)
    resumed = trainer(model(), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(values(resumed.model), expected)
    names = {name.split(".peftly.")[1].split(".")[0] for name in expected}
    assert names == {"a", "b"}


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_seq2seq_trainer_predicts_by_generating(method, tmp_path, task_base):
    model = tf.AutoModelForSeq2SeqLM.from_pretrained(task_base("t5"))
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    found = {}

    def metrics(prediction):
        found["predictions"] = prediction.predictions
        return {"length": float(prediction.predictions.shape[1])}

    training = trainer(
        model, tmp_path, kind=tf.Seq2SeqTrainer, predict_with_generate=True, generation_max_length=7, max_steps=2
    )
    training.compute_metrics = metrics
    training.train()
    training.evaluate()
    generated = [model.generate(torch.tensor([text]), max_length=7)[0] for text in TEXTS]
    for row, expected in zip(found["predictions"], generated, strict=True):
        kept = [int(token) for token in row if token >= 0][: len(expected)]
        assert kept == expected.tolist()
