"""The same weights in Hugging Face PEFT and here: outputs and gradients, on one unpadded sequence, both ways."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny import ARCHITECTURES, perturb, random_rows, tiny_model

from peftly import LoRA, PromptTuning, attach, load_adapter, merge, save_adapter, trainable_parameters
from peftly.adapt import attached
from peftly.methods._layers import find_targets

IDS = torch.tensor(random_rows([9]))
CASES = {
    "prompt_tuning": (
        PromptTuning(num_virtual_tokens=4, init="random"),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ),
    "lora": (LoRA(rank=4), peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear")),
    "lora rslora lora_only": (
        LoRA(rank=4, rslora=True, bias="lora_only"),
        peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear", use_rslora=True, bias="lora_only"
        ),
    ),
    "lora bias all": (
        LoRA(rank=4, bias="all"),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules="all-linear", bias="all"),
    ),
}
WITH_BIAS = ("bloom", "gpt2", "opt")
CELLS = [
    (architecture, case)
    for architecture in ARCHITECTURES
    for case in CASES
    if architecture in WITH_BIAS or ("lora_only" not in case and "bias" not in case)
]


def fp32(architecture):
    return tiny_model(architecture, torch.float32)


def loss_and_gradients(model, parameters):
    """Loss over the text and the gradient of each parameter; PEFT's prompt logits are as long as the prompt too."""
    logits = model(IDS).logits[:, -IDS.shape[1] :]
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:])
    names = list(parameters)
    return logits.detach(), dict(zip(names, torch.autograd.grad(loss, [parameters[n] for n in names]), strict=True))


def assert_close(actual, expected, bound=2e-5):
    error = (actual - expected).norm() / expected.norm()
    assert error <= bound, f"relative difference {error:.1e}"


def theirs_by_our_names(model):
    """PEFT's trained parameters under the names that its files give them."""
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".default", "")
            named["prompt_embeddings" if name.startswith("prompt_encoder") else name] = parameter
    return named


@pytest.mark.parametrize(("architecture", "case"), CELLS)
class TestBothWays:
    def test_ours_loads_there(self, architecture, case, tmp_path):
        config, _ = CASES[case]
        model = attach(fp32(architecture), config)
        perturb(trainable_parameters(model).values())
        save_adapter(model, tmp_path / "adapter")
        theirs = peft.PeftModel.from_pretrained(fp32(architecture), tmp_path / "adapter")
        found = theirs_by_our_names_frozen(theirs, attached(model)["default"].parameters())
        for parameter in found.values():
            parameter.requires_grad_(True)
        logits, gradients = loss_and_gradients(model, attached(model)["default"].parameters())
        their_logits, their_gradients = loss_and_gradients(theirs, found)
        assert_close(logits, their_logits)
        assert_same_gradients(gradients, their_gradients)

    def test_theirs_loads_here(self, architecture, case, tmp_path):
        _, config = CASES[case]
        theirs = peft.get_peft_model(fp32(architecture), copy.deepcopy(config))
        perturb(theirs_by_our_names(theirs).values())
        theirs.save_pretrained(tmp_path / "adapter")
        model = load_adapter(fp32(architecture), tmp_path / "adapter")
        logits, gradients = loss_and_gradients(model, attached(model)["default"].parameters())
        their_logits, their_gradients = loss_and_gradients(theirs, theirs_by_our_names(theirs))
        assert_close(logits, their_logits)
        assert_same_gradients(gradients, their_gradients)

    def test_files_have_the_same_tensors_and_keys(self, architecture, case, tmp_path):
        config, their_config = CASES[case]
        theirs = peft.get_peft_model(fp32(architecture), copy.deepcopy(their_config))
        theirs.save_pretrained(tmp_path / "theirs")
        save_adapter(attach(fp32(architecture), config), tmp_path / "ours")
        ours, expected = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
        read = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
        ignored = {"base_model_name_or_path"}
        for key in read[0].keys() - ignored:
            a, b = (found[key] for found in read)
            if key == "target_modules":  # other names for the same layers
                a, b = (list(find_targets(fp32(architecture), names)) for names in (a, b))
            assert a == b, key


def theirs_by_our_names_frozen(model, wanted):
    """As `theirs_by_our_names`, for a model that PEFT loaded for inference."""
    found = {}
    for name, parameter in model.named_parameters():
        name = name.replace(".default", "")
        name = "prompt_embeddings" if name.startswith("prompt_encoder") else name
        if name in wanted:
            found[name] = parameter
    return found


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys()
    flat = [torch.cat([gradients[name].flatten() for name in sorted(ours)]) for gradients in (ours, theirs)]
    assert flat[1].norm() > 0
    assert_close(*flat)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_equal_theirs(architecture):
    model = attach(fp32(architecture), LoRA(rank=4))
    perturb(trainable_parameters(model).values())
    theirs = peft.get_peft_model(fp32(architecture), copy.deepcopy(CASES["lora"][1]))
    own = attached(model)["default"].parameters()
    with torch.no_grad():
        for name, parameter in theirs_by_our_names(theirs).items():
            parameter.copy_(own[name])
    merged, expected = merge(model).state_dict(), theirs.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name])
