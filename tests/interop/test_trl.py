"""TRL's trainers on adapted models: their losses are those of the formulas, and what they cannot train is refused."""

import math

import pytest
import torch
import transformers as tf
import trl
from datasets import Dataset
from references import DEFAULTS, of_each_kind
from tiny import perturb

from peftly import METHODS, LoRA, attach, detach, load_adapter, trainable_parameters
from peftly.errors import MethodError

MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["The train was late again", "What time do you open on Sunday?", "thanks", "I love the new store! I do"]
COMMON = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "logging_steps": 1, "bf16": False}
SUPPORTED = ["lora", "dora", "ia3", "adapter", "prompt_tuning", "p_tuning", "prefix_tuning"]


@pytest.fixture
def tokenizer(tiny_llama_folder):
    return tf.AutoTokenizer.from_pretrained(tiny_llama_folder)


def adapted(folder, method="lora", **settings):
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    attach(model, METHODS[method].config(**DEFAULTS[method] | settings))
    perturb(trainable_parameters(model).values())
    return model


def losses_by_hand(model, sequences, kept):
    """Return the mean loss of the targets that `kept` marks, each sequence alone."""
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids, keep in zip(sequences, kept, strict=True):
            logits = model(torch.tensor([ids])).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
            mask = torch.tensor(keep[1:], dtype=torch.bool)
            total, count = total + losses[mask].sum().item(), count + int(mask.sum())
    return total / count


def first_loss(trainer):
    trainer.train()
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


@pytest.mark.parametrize("settings", [{}, {"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
@pytest.mark.parametrize("method", of_each_kind(SUPPORTED))
def test_sft_has_the_loss_of_each_text_alone(method, settings, tiny_llama_folder, tokenizer, tmp_path):
    if method == "prefix_tuning" and settings:
        pytest.skip("refused, see below")
    model = adapted(tiny_llama_folder, method)
    sequences = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in TEXTS]
    expected = losses_by_hand(model, sequences, [[1] * len(ids) for ids in sequences])
    arguments = trl.SFTConfig(
        str(tmp_path), per_device_train_batch_size=4, learning_rate=0.01, **COMMON | {"max_length": 128} | settings
    )
    data = Dataset.from_dict({"text": TEXTS})
    trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    before = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    assert first_loss(trainer) == pytest.approx(expected, rel=2e-5)
    after = trainable_parameters(model)
    unchanged = [name for name, value in before.items() if torch.equal(after[name], value)]
    assert not unchanged, "every parameter is trained"


def test_sft_on_the_answers_alone(tiny_llama_folder, tokenizer, tmp_path):
    model = adapted(tiny_llama_folder)
    tokenizer.chat_template = MARKED
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(TEXTS[::2], TEXTS[1::2], strict=True)
    ]
    encoded = [
        tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True) for chat in chats
    ]
    kept = [row["assistant_masks"] for row in encoded]
    assert all(0 < sum(mask) < len(mask) for mask in kept)
    expected = losses_by_hand(model, [row["input_ids"] for row in encoded], kept)
    for settings in ({}, {"packing": True, "max_length": 256}):
        arguments = trl.SFTConfig(
            str(tmp_path),
            per_device_train_batch_size=2,
            assistant_only_loss=True,
            learning_rate=0.0,
            **COMMON | settings,
        )
        data = Dataset.from_dict({"messages": chats})
        trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
        assert first_loss(trainer) == pytest.approx(expected, rel=2e-5)


PAIRS = Dataset.from_dict(
    {
        "prompt": ["The train was", "What time"],
        "chosen": [" late again", " do you open?"],
        "rejected": [" on time today", " is love"],
    }
)


@pytest.mark.parametrize("method", of_each_kind(SUPPORTED))
def test_dpo_starts_at_log_2_with_the_adapter_as_its_own_reference(method, tiny_llama_folder, tokenizer, tmp_path):
    """`precompute_ref_log_probs=True` does it: without this line TRL opens the base again as the reference."""
    model = adapted(tiny_llama_folder, method)
    arguments = trl.DPOConfig(str(tmp_path), precompute_ref_log_probs=True, per_device_train_batch_size=2, **COMMON)
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=PAIRS, processing_class=tokenizer)
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", of_each_kind(["lora", "dora", "adapter"]))
def test_dpo_disables_the_dropout_of_an_adapter(method, tiny_llama_folder, tokenizer, tmp_path):
    model = adapted(tiny_llama_folder, method, dropout=0.5)
    arguments = trl.DPOConfig(str(tmp_path), precompute_ref_log_probs=True, per_device_train_batch_size=2, **COMMON)
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=PAIRS, processing_class=tokenizer)
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)


def test_dpo_of_a_fresh_adapter_starts_at_log_2_with_the_base_as_the_reference(tiny_llama_folder, tokenizer, tmp_path):
    model = attach(tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder), LoRA(rank=2))
    arguments = trl.DPOConfig(str(tmp_path), per_device_train_batch_size=2, **COMMON)
    trainer = trl.DPOTrainer(model, args=arguments, train_dataset=PAIRS, processing_class=tokenizer)
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)


HEADS = {
    "target_modules": LoRA(rank=2, target_modules=["q_proj", "lm_head"]),
    "modules_to_save": LoRA(rank=2, modules_to_save=["lm_head"]),
    "selective": METHODS["selective"].config(head=True),
    "full": METHODS["full"].config(),
}


@pytest.mark.parametrize("kind", HEADS)
def test_an_adapter_of_the_head_which_trl_does_not_call_is_refused(kind, tiny_llama_folder, tokenizer, tmp_path):
    model = attach(tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder), HEADS[kind])
    arguments = trl.SFTConfig(str(tmp_path), max_length=64, **COMMON)
    data = Dataset.from_dict({"text": TEXTS})
    trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    with pytest.raises(MethodError, match="leave the head out of target_modules and modules_to_save"):
        trainer.train()
    model(torch.tensor([[1, 2]]))
    detach(model)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("settings", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_a_prefix_in_packed_texts_is_refused(settings, tiny_llama_folder, tokenizer, tmp_path):
    model = adapted(tiny_llama_folder, "prefix_tuning")
    arguments = trl.SFTConfig(str(tmp_path), per_device_train_batch_size=4, **COMMON | {"max_length": 128} | settings)
    data = Dataset.from_dict({"text": TEXTS})
    trainer = trl.SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    with pytest.raises(MethodError, match="a prefix cannot go into packed sequences"):
        trainer.train()


def test_a_reward_model_has_the_loss_of_bradley_and_terry_and_its_score_is_trained(
    tiny_llama_folder, tokenizer, tmp_path
):
    model = tf.AutoModelForSequenceClassification.from_pretrained(tiny_llama_folder, num_labels=1)
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    ends = {
        kind: [[*tokenizer(prompt + text)["input_ids"], tokenizer.eos_token_id] for prompt, text in
               zip(PAIRS["prompt"], PAIRS[kind], strict=True)]
        for kind in ("chosen", "rejected")
    }  # fmt: skip
    with torch.no_grad():
        scores = {kind: torch.cat([model.eval()(torch.tensor([ids])).logits for ids in ends[kind]]) for kind in ends}
    expected = -torch.nn.functional.logsigmoid(scores["chosen"] - scores["rejected"]).mean().item()
    rows = {kind: [prompt + text for prompt, text in zip(PAIRS["prompt"], PAIRS[kind], strict=True)] for kind in ends}
    arguments = trl.RewardConfig(str(tmp_path), per_device_train_batch_size=2, save_steps=1, **COMMON)
    before = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    trainer = trl.RewardTrainer(
        model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer
    )
    assert first_loss(trainer) == pytest.approx(expected, rel=2e-5)
    assert all(not torch.equal(value, before[name]) for name, value in trainable_parameters(model).items())
    other = tf.AutoModelForSequenceClassification.from_pretrained(tiny_llama_folder, num_labels=1)
    load_adapter(other, tmp_path / "checkpoint-1")
    ids = torch.tensor(ends["chosen"][:1])
    with torch.no_grad():
        assert torch.equal(other.eval()(ids).logits, model.eval()(ids).logits)


def test_grpo_trains_an_adapter_on_its_own_generations(tiny_llama_folder, tokenizer, tmp_path):
    model = adapted(tiny_llama_folder)
    arguments = trl.GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=4, max_completion_length=6, **COMMON
    )
    before = {name: value.detach().clone() for name, value in trainable_parameters(model).items()}
    seen = []

    def reward(completions, **_):
        seen.extend(completions)
        return [float(len(completion)) for completion in completions]

    data = Dataset.from_dict({"prompt": TEXTS[:2]})
    trainer = trl.GRPOTrainer(
        model, args=arguments, reward_funcs=reward, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    assert len(seen) == 4
    assert all(not torch.equal(value, before[name]) for name, value in trainable_parameters(model).items())
