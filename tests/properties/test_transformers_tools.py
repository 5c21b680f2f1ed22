"""`Trainer` and `pipeline` of transformers on adapted models."""

import numpy as np
import pytest
import torch
import transformers as tf
from quantized import quantized
from references import CELLS, DEFAULTS, METHOD_CELLS, adapted
from tiny import padded, perturb, random_token_ids

from peftly import METHODS, LoRA, attach, detach, load_adapter, trainable_parameters

TEXTS = random_token_ids([5, 9, 7, 12, 6, 8])


@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
def test_trainer_with_metrics_and_label_smoothing(architecture, method, tmp_path):
    model, _ = adapted(architecture, method, torch.float32)
    examples = [{"input_ids": text, "attention_mask": [1] * len(text), "labels": text} for text in TEXTS]

    def collate(batch):
        ids, mask = padded([example["input_ids"] for example in batch], "right")
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    shapes = []

    def metrics(prediction):
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        hit = prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]
        return {"accuracy": float(np.mean(hit[prediction.label_ids[:, 1:] != -100]))}

    trainer = tf.Trainer(
        model,
        tf.TrainingArguments(
            str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=3,
            per_device_eval_batch_size=6,
            learning_rate=0.05,
            label_smoothing_factor=0.1,
            save_steps=6,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collate,
        compute_metrics=metrics,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert {logits[:2] == labels for logits, labels in shapes} == {True}, "logits at the text only"
    loaded, _ = adapted(architecture, method, torch.float32)
    load_adapter(detach(loaded), tmp_path / "checkpoint-6")
    ids = torch.tensor([TEXTS[0]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("method", [method for architecture, method in CELLS if architecture == "llama"])
def test_a_pipeline_generates_the_same_in_a_batch_and_alone(method, tiny_llama_folder):
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_llama_folder)
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values(), scale=1.0)
    generator = tf.pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = ["The train was", "Tweet text : thanks for the quick help", "What"]
    tokenizer.padding_side = "left"
    options = {"max_new_tokens": 6, "do_sample": False}
    batched = generator(texts, batch_size=3, **options)
    alone = [generator(text, **options) for text in texts]
    assert [b[0]["generated_text"] for b in batched] == [a[0]["generated_text"] for a in alone]
    assert len({b[0]["generated_text"] for b in batched}) == 3


def test_trainer_takes_a_quantised_base_once_it_has_an_adapter(tmp_path):
    examples = [{"input_ids": text, "labels": text} for text in random_token_ids([8] * 6)]
    arguments = {"max_steps": 12, "per_device_train_batch_size": 3, "learning_rate": 0.02, "report_to": []}
    arguments |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 6}
    model = quantized("llama")

    def trainer():
        return tf.Trainer(model, tf.TrainingArguments(str(tmp_path), **arguments), train_dataset=examples)

    with pytest.raises(ValueError, match="purely quantized models"):
        trainer()
    attach(model, LoRA(rank=2))
    training = trainer()
    training.train()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    model.gradient_checkpointing_enable()
    model(**{key: torch.tensor([value]) for key, value in examples[0].items()}).loss.backward()
    model.gradient_checkpointing_disable()
    detach(model)
    with pytest.raises(ValueError, match="purely quantized models"):
        trainer()
