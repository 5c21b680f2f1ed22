"""`peftly.peft` has the numbers, names, files, outputs and gradients of PEFT."""

import warnings

import peft
import pytest
import torch
from references import assert_close
from tiny import perturb, random_token_ids, tiny_model

import peftly.peft as ours

IDS = torch.tensor(random_token_ids([7]))
MODELS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS"}
TASKS = {"CAUSAL_LM": "causal_lm", "SEQ_2_SEQ_LM": "seq2seq_lm", "SEQ_CLS": "sequence_classification"}
CONFIGS = {
    "LORA": {"r": 4},
    "DORA": {"r": 4, "use_dora": True, "bias": "lora_only"},
    "IA3": {},
    "PROMPT_TUNING": {"num_virtual_tokens": 5},
    "P_TUNING": {"num_virtual_tokens": 5, "encoder_hidden_size": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 5},
    "PROJECTED_PREFIX": {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 8},
}
CLASSES = {
    **dict.fromkeys(("LORA", "DORA"), "LoraConfig"),
    "IA3": "IA3Config",
    "PROMPT_TUNING": "PromptTuningConfig",
    "P_TUNING": "PromptEncoderConfig",
    **dict.fromkeys(("PREFIX_TUNING", "PROJECTED_PREFIX"), "PrefixTuningConfig"),
}
CELLS = [
    (family, method)
    for family in MODELS
    for method in CONFIGS
    if not (family == "bert" and "PREFIX" in method)  # PEFT has no prefixes for this BERT
]


def base_of(family):
    return tiny_model(family, torch.float32, task=TASKS[MODELS[family]]).eval()


def adapted_by(library, family, method):
    config = getattr(library, CLASSES[method])(task_type=MODELS[family], **CONFIGS[method])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return library.get_peft_model(base_of(family), config).eval()


def outputs(model, family):
    more = {"decoder_input_ids": IDS[:, :3]} if family == "t5" else {}
    return model(input_ids=IDS, **more).logits[:, -IDS.shape[1] :]  # those of PEFT have positions of virtual tokens


def gradients(model, tensors):
    """Return the gradients of parameters by the names of their tensors in a state dict."""
    by_pointer = {parameter.data_ptr(): parameter.grad for parameter in model.parameters()}
    found = {name: by_pointer.get(tensor.data_ptr()) for name, tensor in tensors.items()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_numbers_and_names_are_those_of_peft(family, method, capsys):
    printed, shapes = [], []
    for library in (peft, ours):
        model = adapted_by(library, family, method)
        model.print_trainable_parameters()
        printed.append(capsys.readouterr().out)
        tensors = library.get_peft_model_state_dict(model)
        shapes.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert printed[0] == printed[1]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_the_same_tensors_give_the_outputs_and_gradients_of_peft(family, method):
    if family == "t5" and "PREFIX" in method:
        pytest.skip("PEFT uses the prefix of an encoder-decoder in half of the layers")
    if family == "bert" and method in ("PROMPT_TUNING", "P_TUNING"):
        pytest.skip("PEFT pools a virtual token")
    theirs, model = (adapted_by(library, family, method) for library in (peft, ours))
    perturb(theirs.parameters())
    model.load_state_dict(_of_base(theirs), strict=False)
    tensors = peft.get_peft_model_state_dict(theirs)
    if "prompt_embeddings" in tensors:
        perturb([theirs.prompt_encoder.default.embedding.weight], scale=1.0)
        tensors = peft.get_peft_model_state_dict(theirs)
    assert ours.set_peft_model_state_dict(model, tensors) == ([], [])
    assert_close(outputs(model, family), outputs(theirs, family))
    for each in (model, theirs):
        outputs(each, family).square().sum().backward()
    if method in ("P_TUNING", "PROJECTED_PREFIX", "PREFIX_TUNING"):
        return  # the prompt replaces the network here
    mine, of_peft = (
        gradients(each, library.get_peft_model_state_dict(each)) for each, library in ((model, ours), (theirs, peft))
    )
    if method == "PROMPT_TUNING":
        (prompt,) = (parameter.grad for parameter in model.parameters() if parameter.requires_grad)
        of_encoder = theirs.prompt_encoder.default.embedding.weight.grad[: len(prompt)]
        mine, of_peft = {"prompt": prompt}, {"prompt": of_encoder}
    assert mine.keys() == of_peft.keys() > set()
    for name, gradient in of_peft.items():
        assert_close(mine[name].flatten(), gradient.flatten())


def _of_base(model):
    """Return the tensors of the base of a model of PEFT, by their names in the base."""
    prefix = "base_model." if model.active_peft_config.is_prompt_learning else "base_model.model."
    names = {name: name.removeprefix(prefix).replace(".base_layer.", ".") for name in model.state_dict()}
    return {names[name].replace(".original_module.", "."): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("method", CONFIGS)
def test_files_go_both_ways(method, tmp_path):
    model = adapted_by(ours, "llama", method)
    perturb([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.save_pretrained(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(base_of("llama"), tmp_path / "ours")
    assert_close(outputs(theirs, "llama"), outputs(model, "llama"))
    theirs.save_pretrained(tmp_path / "theirs")
    again = ours.PeftModel.from_pretrained(base_of("llama"), tmp_path / "theirs")
    assert_close(outputs(again, "llama"), outputs(model, "llama"))
    assert not again.training
    assert again.get_nb_trainable_parameters()[0] == 0
