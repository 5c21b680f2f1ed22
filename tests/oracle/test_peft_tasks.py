"""Layer methods in Hugging Face PEFT and here, on sequence-to-sequence and classification models, both ways."""

import copy

import peft
import pytest
import torch
from peft_models import assert_same_gradients
from references import assert_close
from tiny import TASKS, perturb, random_token_ids, tiny_model

from peftly import IA3, DoRA, LoRA, attach, attached, load_adapter, save_adapter, trainable_parameters
from peftly.injection.module_copies import copied_parameters

NAMES = {"seq2seq_lm": "SEQ_2_SEQ_LM", "sequence_classification": "SEQ_CLS", "token_classification": "TOKEN_CLS"}
IDS, ANSWER = torch.tensor(random_token_ids([9])), torch.tensor(random_token_ids([5], seed=1))
OURS = {"lora": LoRA(rank=3), "lora bias": LoRA(rank=3, bias="all"), "dora": DoRA(rank=3), "ia3": IA3()}
CELLS = [
    (task, architecture, case)
    for task in NAMES
    for architecture in TASKS[task]
    for case in OURS
    if case != "lora bias" or architecture not in ("llama", "gemma3", "t5", "mt5")  # which have none
]


def fresh(architecture, task):
    return tiny_model(architecture, torch.float32, task=task)


def their_config(architecture, task, case):
    """Return the settings of PEFT for the layers in our file."""
    said = attached(attach(fresh(architecture, task), OURS[case]))["default"].peft_config()
    if case == "ia3":
        return peft.IA3Config(task_type=NAMES[task], **said)
    keys = ("r", "lora_alpha", "target_modules", "bias", "use_dora", "use_rslora", "fan_in_fan_out")
    return peft.LoraConfig(task_type=NAMES[task], **{key: said[key] for key in keys})


def logits_and_gradients(model, parameters, task):
    extra = {"decoder_input_ids": ANSWER} if task == "seq2seq_lm" else {}
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **extra).logits
    names = sorted(parameters)
    gradients = torch.autograd.grad(logits.square().sum(), [parameters[name] for name in names])
    return logits.detach(), dict(zip(names, gradients, strict=True))


def own_parameters(model):
    adapter = attached(model)["default"]
    return {**adapter.parameters(), **copied_parameters(model, "default", adapter.copies_prefix)}


def their_parameters(model):
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for inner in (".default", ".modules_to_save"):
                name = name.replace(inner, "")
            named[name.replace("magnitude_vector.weight", "magnitude_vector")] = parameter
    return named


@pytest.mark.parametrize(("task", "architecture", "case"), CELLS)
@pytest.mark.sample(4)
def test_both_ways(task, architecture, case, tmp_path):
    config = copy.deepcopy(their_config(architecture, task, case))
    theirs = peft.get_peft_model(fresh(architecture, task), config).eval()
    perturb(their_parameters(theirs).values())
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_adapter(fresh(architecture, task), tmp_path / "theirs")
    logits, gradients = logits_and_gradients(model, own_parameters(model), task)
    their_logits, their_gradients = logits_and_gradients(theirs, their_parameters(theirs), task)
    assert_close(logits, their_logits)
    assert gradients.keys() == their_gradients.keys()
    flat = [{name: value.flatten() for name, value in found.items()} for found in (gradients, their_gradients)]
    assert_same_gradients(*flat)

    ours = attach(fresh(architecture, task), OURS[case])
    perturb(trainable_parameters(ours).values(), seed=2)
    save_adapter(ours, tmp_path / "ours")
    read = peft.PeftModel.from_pretrained(fresh(architecture, task), tmp_path / "ours").eval()
    extra = {"decoder_input_ids": ANSWER} if task == "seq2seq_lm" else {}
    assert_close(ours(IDS, **extra).logits, read(IDS, **extra).logits)
