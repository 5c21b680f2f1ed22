"""Models of `peftly.peft` in Trainer, TRL, accelerate and pipelines: losses of PEFT, checkpoints, resuming."""

import accelerate
import peft
import pytest
import torch
import transformers as tf
import trl
from datasets import Dataset
from references import assert_close
from tiny import random_token_ids, tiny_model
from transformers.utils.generic import find_labels

import peftly.peft as ours
from peftly import trainable_parameters

TEXTS = random_token_ids([8] * 8)
ROWS = [{"input_ids": text, "labels": [-100, *text[1:]]} for text in TEXTS]
"""In PEFT the last virtual token predicts the first token of a text, if that is a target."""
CONFIGS = {
    "LoraConfig": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "IA3Config": {},
    "PromptTuningConfig": {"num_virtual_tokens": 3},
}


def adapted(library, kind):
    model = tiny_model("llama", torch.float32)
    return library.get_peft_model(model, getattr(library, kind)(task_type="CAUSAL_LM", **CONFIGS[kind]))


def trainer(model, folder, **settings):
    arguments = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05}
    arguments |= {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 3}
    callbacks = settings.pop("callbacks", None)
    settings = tf.TrainingArguments(str(folder), **arguments | settings)
    return tf.Trainer(model, settings, train_dataset=ROWS, eval_dataset=ROWS, callbacks=callbacks)


def losses(training):
    training.train()
    return [entry["loss"] for entry in training.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", CONFIGS)
def test_trainer_has_the_losses_of_peft_and_a_checkpoint_that_peft_opens(kind, tmp_path):
    theirs, model = adapted(peft, kind), adapted(ours, kind)
    ours.set_peft_model_state_dict(model, peft.get_peft_model_state_dict(theirs))
    expected = losses(trainer(theirs, tmp_path / "theirs"))
    assert losses(trainer(model, tmp_path / "ours")) == pytest.approx(expected, rel=1e-4)
    opened = peft.PeftModel.from_pretrained(tiny_model("llama", torch.float32), tmp_path / "ours" / "checkpoint-4")
    ids = torch.tensor(TEXTS)
    with torch.no_grad():
        assert_close(opened.eval()(ids).logits[:, -8:], model.eval()(ids).logits)


class StopAfterTwo(tf.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 2


def values(model):
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def test_training_resumes_bit_for_bit_and_loads_the_best_model(tmp_path):
    def model():
        tf.set_seed(0)
        return adapted(ours, "LoraConfig")

    seen = {}

    class Score(tf.TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, model, **kwargs):
            seen[state.global_step] = values(model)
            metrics["eval_score"] = -state.global_step  # the best is the first

    unbroken = trainer(model(), tmp_path / "unbroken")
    unbroken.train()
    trainer(model(), tmp_path / "broken", callbacks=[StopAfterTwo()]).train()
    resumed = trainer(model(), tmp_path / "broken")
    resumed.train(resume_from_checkpoint=True)
    expected, resumed = values(unbroken.model), values(resumed.model)
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    best = trainer(
        model(), tmp_path / "best", eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
        metric_for_best_model="score", greater_is_better=True, callbacks=[Score()],
    )  # fmt: skip
    best.train()
    assert isinstance(best.model, ours.PeftModel)
    assert all(torch.equal(value, seen[2][name]) for name, value in values(best.model).items())


def test_tools_see_the_class_of_the_base():
    for task in ("causal_lm", "sequence_classification"):
        base = tiny_model("bert" if task != "causal_lm" else "llama", torch.float32, task=task)
        kind, labels, can_generate = type(base), find_labels(type(base)), type(base).can_generate()
        model = ours.get_peft_model(base, ours.LoraConfig(r=2, target_modules="all-linear"))
        assert find_labels(type(model)) == labels
        assert type(model).can_generate() == can_generate
        assert model.config_class is kind.config_class


def test_trl_and_accelerate_train_the_adapter(tiny_llama_folder, tmp_path):
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_llama_folder)
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    model = ours.get_peft_model(model, ours.LoraConfig(task_type="CAUSAL_LM", r=4))
    before = values(model)
    arguments = trl.SFTConfig(
        str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, bf16=False, max_length=64
    )
    data = Dataset.from_dict({"text": ["The train was late again", "thanks"]})
    trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer).train()
    assert any(not torch.equal(value, before[name]) for name, value in values(model).items())
    accelerator = accelerate.Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    assert isinstance(accelerator.unwrap_model(prepared), ours.PeftModelForCausalLM)
    accelerator.unwrap_model(prepared).save_pretrained(
        tmp_path / "saved", is_main_process=True, state_dict=accelerator.get_state_dict(prepared)
    )
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()


def test_pipelines_know_the_class(tiny_llama_folder, caplog):
    tokenizer = tf.AutoTokenizer.from_pretrained(tiny_llama_folder)
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    model = ours.get_peft_model(model, ours.LoraConfig(task_type="CAUSAL_LM", r=4))
    pipeline = tf.pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert pipeline("The train", max_new_tokens=2, do_sample=False)[0]["generated_text"].startswith("The train")
    assert "not supported" not in caplog.text
