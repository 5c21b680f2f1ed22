"""sentence-transformers around adapted models: embeddings, training, files and rerankers."""

import numpy as np
import pytest
import torch
import transformers as tf
from datasets import Dataset
from references import of_each_kind
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tiny import perturb
from tiny_tasks import tiny_base

from peftly import METHODS, LoRA, attach, detach, load_adapter, trainable_parameters

TEXTS = ["late again", "great service today", "the app crashed twice", "love the store"]
PAIRS = [("late", "again"), ("great service", "love the store today")]


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return tiny_base("bert", tmp_path_factory.mktemp("bases") / "body", head="none")


def encoder(body, method="lora"):
    model = SentenceTransformer(str(body), device="cpu")
    base = model.encode(TEXTS)
    attach(model[0].model, METHODS[method].config(**{"lora": {"rank": 4}}.get(method, {})))
    return model, base


@pytest.mark.parametrize("method", of_each_kind(["lora", "dora", "ia3", "adapter"]))
def test_embeddings_are_those_of_the_adapted_body(method, body):
    model, base = encoder(body, method)
    if method in ("lora", "ia3"):
        assert np.array_equal(model.encode(TEXTS), base)
    perturb(trainable_parameters(model).values())
    inputs = tf.AutoTokenizer.from_pretrained(body)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model[0].model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = (states * mask).sum(1) / mask.sum(1)
    adapted = model.encode(TEXTS)
    np.testing.assert_allclose(adapted, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert np.abs(adapted - base).max() > 1e-3
    detach(model[0].model)
    assert np.array_equal(model.encode(TEXTS), base)


def test_training_changes_the_adapter_alone_and_its_folder_opens_everywhere(body, tmp_path):
    model, base = encoder(body)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if ".peftly." not in name}
    data = Dataset.from_dict({"anchor": TEXTS * 2, "positive": TEXTS[1:] * 2 + TEXTS[:1] * 2})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=4, save_steps=2, eval_strategy="steps", eval_steps=2, learning_rate=0.01,
        per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=data, eval_dataset=data, loss=MultipleNegativesRankingLoss(model)
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    now = model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    trained = model.encode(TEXTS)
    assert np.abs(trained - base).max() > 1e-3

    model.save_pretrained(str(tmp_path / "saved"))
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")  # with PEFT
    np.testing.assert_allclose(opened.encode(TEXTS), trained, rtol=1e-5, atol=1e-6)
    other = SentenceTransformer(str(body), device="cpu")
    load_adapter(other[0].model, tmp_path / "saved")
    assert np.array_equal(other.encode(TEXTS), trained)
    load_adapter(detach(other[0].model), tmp_path / "run" / "checkpoint-4")  # as the page says of the best checkpoint
    assert np.array_equal(other.encode(TEXTS), trained)


def test_a_reranker_trains_its_score_with_the_adapter(body, tmp_path):
    torch.manual_seed(0)
    model = CrossEncoder(str(body), num_labels=1, device="cpu")
    base = model.predict(PAIRS)
    attach(model[0].model, LoRA(rank=4))
    assert np.array_equal(model.predict(PAIRS), base)
    assert {"classifier.peftly.default.copy.weight"} <= set(trainable_parameters(model[0].model))
    perturb(trainable_parameters(model).values())
    scores = model.predict(PAIRS)
    assert np.abs(scores - base).max() > 1e-4
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(CrossEncoder(str(tmp_path), device="cpu").predict(PAIRS), scores, rtol=1e-5)
    detach(model[0].model)
    assert np.array_equal(model.predict(PAIRS), base)


class StopAfterTwo(tf.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


@pytest.mark.parametrize("method", of_each_kind(["lora", "ia3"]))
def test_a_training_resumes_and_the_best_model_is_loaded(method, body, tmp_path):
    def run(folder, *callbacks, **settings):
        model, _ = encoder(body, method)
        data = Dataset.from_dict({"anchor": TEXTS * 2, "positive": TEXTS[1:] * 2 + TEXTS[:1] * 2})
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / folder), max_steps=4, save_steps=2, learning_rate=0.01, per_device_train_batch_size=4,
            use_cpu=True, report_to=[], disable_tqdm=True, **settings,
        )  # fmt: skip
        loss = MultipleNegativesRankingLoss(model)
        return SentenceTransformerTrainer(
            model, arguments, train_dataset=data, eval_dataset=data, loss=loss, callbacks=[*callbacks]
        )

    def trained(trainer):
        return [value.detach().clone() for value in trainable_parameters(trainer.model).values()]

    unbroken = run("a")
    unbroken.train()
    run("b", StopAfterTwo()).train()
    resumed = run("b")
    resumed.train(resume_from_checkpoint=True)
    assert all(map(torch.equal, trained(resumed), trained(unbroken)))
    seen = {}

    class Note(tf.TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            metrics["eval_score"] = -state.global_step  # the best is the first
            seen[state.global_step] = trained(best)

    best = run(
        "c", Note(), eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="score"
    )
    best.train()
    assert all(map(torch.equal, trained(best), seen[2]))
    assert not all(map(torch.equal, trained(best), seen[4]))
