"""Parameters that selective tuning, full fine-tuning and saved modules train."""

import pytest
import torch
from tiny import perturb, random_token_ids, tiny_model

from peftly import Full, LoRA, PromptTuning, Selective, attach, detach, trainable_parameters
from peftly.errors import MethodError

IDS = torch.tensor(random_token_ids([6]))


def trained(model) -> set[str]:
    """Return the names of the parameters of the base that have a trained copy."""
    return {name.replace("peftly.default.copy.", "") for name in trainable_parameters(model)}


def of_base(model, *starts) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(starts)}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_last_layers(architecture):
    stack = {"llama": "model.layers", "gpt2": "transformer.h", "opt": "model.decoder.layers"}[architecture]
    expected = of_base(tiny_model(architecture), f"{stack}.1.")
    assert trained(attach(tiny_model(architecture), Selective(last_layers=1))) == expected
    both = of_base(tiny_model(architecture), f"{stack}.")
    assert trained(attach(tiny_model(architecture), Selective(last_layers=9))) == both


def test_head_norms_and_patterns():
    def trained_with(**settings):
        return trained(attach(tiny_model("llama"), Selective(**{"last_layers": 0} | settings)))

    assert trained_with(head=True) == {"lm_head.weight"}
    norms = {name for name, _ in tiny_model("llama").named_parameters() if "norm" in name}
    assert trained_with(layer_norms=True) == norms
    assert len(norms) == 5
    assert trained_with(modules=("q_proj",)) == {f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)}
    assert trained_with(modules=r".*\.0\.mlp") == of_base(tiny_model("llama"), "model.layers.0.mlp.")
    assert trained_with(modules=("embed_tokens",), head=True) == {"lm_head.weight", "model.embed_tokens.weight"}


def test_full_trains_all_parameters_and_keeps_ties():
    for architecture in ("llama", "gpt2", "gemma3"):
        model = attach(tiny_model(architecture), Full())
        assert trained(model) == {name for name, _ in tiny_model(architecture).named_parameters()}
        if tiny_model(architecture).config.tie_word_embeddings:
            head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
            assert head.peftly.default.copy.weight is embedding.peftly.default.copy.weight


def test_selecting_no_module_is_refused():
    with pytest.raises(ValueError, match="nothing is selected"):
        Selective(last_layers=0)
    model = tiny_model("llama")
    with pytest.raises(MethodError, match="matches no module"):
        attach(model, Selective(modules=("nobody",)))
    with pytest.raises(MethodError, match=r"modules_to_save=.* match no module"):
        attach(model, LoRA(modules_to_save=("nobody",)))
    with pytest.raises(MethodError, match="changed twice by one adapter"):
        attach(model, LoRA(modules_to_save=("q_proj",)))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("peftly" in name for name, _ in model.named_modules())


def test_a_saved_module_adds_its_difference_to_another_adapter_of_its_layer():
    model = attach(tiny_model("llama"), LoRA(rank=2, target_modules=("lm_head",)), name="lora")
    attach(model, PromptTuning(init="random", modules_to_save=("lm_head",)), name="prompt")
    perturb(trainable_parameters(model).values())
    hidden = model.model(IDS).last_hidden_state
    logits = model.lm_head(hidden)
    changes = dict(model.lm_head.peftly.items())
    plain = detach(model).lm_head(hidden)
    lora = changes["lora"]
    update = lora.scaling * hidden @ lora.lora_a.double().T @ lora.lora_b.double().T
    copied = changes["prompt"].copy.double()(hidden)
    torch.testing.assert_close(logits, plain + update + (copied - plain), rtol=1e-5, atol=1e-5)


def test_a_copy_computes_in_fp32_over_a_bf16_base():
    model = attach(tiny_model("llama", torch.bfloat16), Selective(layer_norms=True, head=True))
    assert all(parameter.dtype == torch.float32 for parameter in trainable_parameters(model).values())
    assert model(IDS).logits.dtype == torch.bfloat16
