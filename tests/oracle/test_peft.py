"""The same weights in Hugging Face PEFT and here: outputs and gradients on one unpadded text, through files of both."""

import copy
import json

import peft
import pytest
import torch
from peft_models import assert_same_gradients
from references import assert_close
from safetensors.torch import load_file
from tiny import ARCHITECTURES, perturb, random_token_ids, tiny_model

from peftly import (
    IA3,
    DoRA,
    LoRA,
    PromptTuning,
    attach,
    attached,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import AdapterError
from peftly.injection.targets import find_targets

IDS = torch.tensor(random_token_ids([9]))
LOW_RANK = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
CASES = {
    "prompt_tuning": (
        PromptTuning(num_virtual_tokens=4, init="random"),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ),
    "lora": (LoRA(rank=4), peft.LoraConfig(**LOW_RANK)),
    "lora rslora lora_only": (
        LoRA(rank=4, rslora=True, bias="lora_only"),
        peft.LoraConfig(**LOW_RANK, use_rslora=True, bias="lora_only"),
    ),
    "lora bias all": (LoRA(rank=4, bias="all"), peft.LoraConfig(**LOW_RANK, bias="all")),
    "lora patterns": (
        LoRA(rank=4, rank_pattern={"0..*": 2}, alpha_pattern={r"layers\.1\..*": 5, "1.mlp.c_fc": 3}),
        peft.LoraConfig(**LOW_RANK, rank_pattern={"0..*": 2}, alpha_pattern={r"layers\.1\..*": 5, "1.mlp.c_fc": 3}),
    ),
    "dora": (DoRA(rank=4), peft.LoraConfig(**LOW_RANK, use_dora=True)),
    "dora bias rslora": (
        DoRA(rank=4, bias="lora_only", rslora=True),
        peft.LoraConfig(**LOW_RANK, use_dora=True, bias="lora_only", use_rslora=True),
    ),
    "ia3": (IA3(), None),
}
"""Our settings and the same settings in PEFT; None: those in our file."""

WITH_BIAS = ("bloom", "gpt2", "opt")
CELLS = [
    (architecture, case)
    for architecture in ARCHITECTURES
    for case in CASES
    if architecture in WITH_BIAS or ("lora_only" not in case and "bias" not in case)
]


def their_config(architecture, case):
    config, theirs = CASES[case]
    if theirs is None:
        said = attached(attach(fp32(architecture), config))["default"].peft_config()
        theirs = peft.IA3Config(task_type="CAUSAL_LM", **said)
    return copy.deepcopy(theirs)


def fp32(architecture):
    return tiny_model(architecture, torch.float32)


def loss_and_gradients(model, parameters):
    """Return the logits at the text, without those that PEFT gives at the prompt, and the gradients of the loss."""
    logits = model(IDS).logits[:, -IDS.shape[1] :]
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:])
    names = list(parameters)
    return logits.detach(), dict(zip(names, torch.autograd.grad(loss, [parameters[n] for n in names]), strict=True))


def theirs_by_our_names(model):
    """Return the trained parameters of PEFT by their names in its files."""
    named = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
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
        theirs = peft.get_peft_model(fp32(architecture), their_config(architecture, case))
        perturb(theirs_by_our_names(theirs).values())
        theirs.save_pretrained(tmp_path / "adapter")
        model = load_adapter(fp32(architecture), tmp_path / "adapter")
        logits, gradients = loss_and_gradients(model, attached(model)["default"].parameters())
        their_logits, their_gradients = loss_and_gradients(theirs, theirs_by_our_names(theirs))
        assert_close(logits, their_logits)
        assert_same_gradients(gradients, their_gradients)

    def test_files_have_the_same_tensors_and_keys(self, architecture, case, tmp_path):
        config, _ = CASES[case]
        theirs = peft.get_peft_model(fp32(architecture), their_config(architecture, case))
        theirs.save_pretrained(tmp_path / "theirs")
        save_adapter(attach(fp32(architecture), config), tmp_path / "ours")
        ours, expected = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("ours", "theirs"))
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
        read = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
        ignored = {"base_model_name_or_path"}
        for key in read[0].keys() - ignored:
            a, b = (found[key] for found in read)
            if key in ("target_modules", "feedforward_modules"):  # other names for the same layers
                a, b = (list(find_targets(fp32(architecture), names)) for names in (a, b))
            assert a == b, key


def theirs_by_our_names_frozen(model, wanted):
    """Return `theirs_by_our_names` of a model that PEFT loaded for inference."""
    found = {}
    for name, parameter in model.named_parameters():
        name = name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector")
        name = "prompt_embeddings" if name.startswith("prompt_encoder") else name
        if name in wanted:
            found[name] = parameter
    return found


@pytest.mark.parametrize("case", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_weights_equal_theirs(architecture, case, tmp_path):
    model = attach(fp32(architecture), CASES[case][0])
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(fp32(architecture), tmp_path / "adapter")
    merged, expected = merge(model).state_dict(), theirs.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name])


MORE = {
    "an embedding": LoRA(rank=3, target_modules=("embed_tokens", "q_proj", "up_proj")),
    "saved modules": LoRA(rank=3, modules_to_save=("lm_head", "layers.1.mlp.up_proj"), target_modules=("q_proj",)),
    "saved modules beside a prompt": PromptTuning(num_virtual_tokens=3, init="random", modules_to_save=("lm_head",)),
    "saved modules of dora": DoRA(rank=3, target_modules=("q_proj", "down_proj"), modules_to_save=("lm_head",)),
    "pissa": LoRA(rank=3, init="pissa", target_modules=("q_proj", "up_proj")),
    "pissa rslora patterns": LoRA(
        rank=3, init="pissa", rslora=True, rank_pattern={"up_proj": 2}, alpha_pattern={"up_proj": 3}
    ),
}


@pytest.mark.parametrize("case", MORE)
def test_more_of_ours_loads_there(case, tmp_path):
    model = attach(fp32("llama"), MORE[case])
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(fp32("llama"), tmp_path / "adapter")
    expected = theirs(IDS).logits[:, -IDS.shape[1] :]
    assert_close(model(IDS).logits, expected)
    again = load_adapter(fp32("llama"), tmp_path / "adapter")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert trainable_parameters(again).keys() == trainable_parameters(model).keys()
    (tmp_path / "adapter" / "peftly.json").unlink()
    assert_close(load_adapter(fp32("llama"), tmp_path / "adapter")(IDS).logits, expected)


THEIRS = {
    "an embedding": peft.LoraConfig(r=3, target_modules=["embed_tokens", "q_proj"]),
    "saved modules": peft.LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "pissa": peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], lora_alpha=5),
}


@pytest.mark.parametrize("case", THEIRS)
def test_more_of_theirs_loads_here(case, tmp_path):
    theirs = peft.get_peft_model(fp32("llama"), copy.deepcopy(THEIRS[case]))
    perturb(theirs_by_our_names(theirs).values())
    theirs.save_pretrained(tmp_path / "adapter")
    assert_close(load_adapter(fp32("llama"), tmp_path / "adapter")(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"])
def test_their_initialisations_load_here_or_are_refused(init, tmp_path):
    """Some initialisations of PEFT subtract the initial factors from the base, also when an adapter is loaded."""
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=init)
    theirs = peft.get_peft_model(fp32("llama"), config)
    perturb(theirs_by_our_names(theirs).values())
    theirs.save_pretrained(tmp_path / "adapter")
    if init in ("gaussian", "orthogonal"):
        assert_close(load_adapter(fp32("llama"), tmp_path / "adapter")(IDS).logits, theirs(IDS).logits)
    else:
        with pytest.raises(AdapterError, match=f"init_lora_weights='{init}'.*path_initial_model_for_weight_conversion"):
            load_adapter(fp32("llama"), tmp_path / "adapter")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_pissa_trains_the_principal_part(architecture):
    """Compare with LoRA on a base without the principal part (section 3 of arXiv:2404.02948)."""
    names = ("q_proj", "up_proj") if architecture != "gpt2" else ("c_attn", "mlp.c_fc")
    config = LoRA(rank=3, alpha=6, init="pissa", target_modules=names)
    model = attach(fp32(architecture), config)
    assert_close(model(IDS).logits, fp32(architecture)(IDS).logits)
    plain = attach(fp32(architecture), LoRA(rank=3, alpha=6, target_modules=names))
    ours, theirs = attached(model)["default"], attached(plain)["default"]
    with torch.no_grad():
        for (_, (layer, start)), (_, (other, factors)) in zip(
            ours.targets().items(), theirs.targets().items(), strict=True
        ):
            weight = layer.weight if architecture != "gpt2" else layer.weight.T
            principal = 2.0 * start.lora_b @ start.lora_a
            values = torch.linalg.svdvals(weight)
            torch.testing.assert_close(torch.linalg.svdvals(principal)[:3], values[:3])
            torch.testing.assert_close(torch.linalg.svdvals(weight - principal)[:-3], values[3:])
            factors.lora_a.copy_(start.lora_a)
            factors.lora_b.copy_(start.lora_b)
            other.weight.sub_(principal if architecture != "gpt2" else principal.T)
    perturb(trainable_parameters(model).values())
    perturb(trainable_parameters(plain).values())
    logits, gradients = loss_and_gradients(model, ours.parameters())
    expected, their_gradients = loss_and_gradients(plain, theirs.parameters())
    assert_close(logits, expected)
    assert_same_gradients(gradients, their_gradients)
