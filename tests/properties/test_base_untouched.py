"""Attach and detach: copies, switches, checkpoints and errors. That `detach` restores the base is in the matrix."""

import copy
import pickle

import pytest
import torch
from model_state import observable_state
from quantized import quantized
from references import DEFAULTS, METHOD_CELLS
from tiny import padded, perturb, random_token_ids, tiny_model

from peftly import LoRA, PromptTuning, attach, detach, load_adapter, merge, save_adapter, trainable_parameters
from peftly.errors import MethodError
from peftly.methods import METHODS

IDS, MASK = padded(random_token_ids([4, 9]), "left")


SWITCHED = ("attach enable", "attach enable enable", "attach enable disable", "enable attach enable")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("calls", SWITCHED)
@pytest.mark.parametrize("opened", [tiny_model, quantized])
def test_detach_leaves_gradient_checkpointing_as_it_was(opened, calls):
    model = opened("llama", dtype=torch.float32)
    for call in calls.split():
        if call == "attach":
            before = observable_state(model)
            attach(model, LoRA(rank=2))
        else:
            getattr(model, f"gradient_checkpointing_{call}")()
    detach(model)
    after = observable_state(model)
    assert [key for key in before | after if before.get(key) != after.get(key)] == []


@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
def test_copies_and_pickles_are_independent(architecture, method):
    model = attach(tiny_model(architecture), METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values())
    logits = model(IDS, attention_mask=MASK).logits
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    perturb(trainable_parameters(model).values(), seed=7)
    assert not torch.equal(model(IDS, attention_mask=MASK).logits, logits)
    for other in copies:
        torch.testing.assert_close(other(IDS, attention_mask=MASK).logits, logits, rtol=0, atol=0)
        detach(other)
    assert trainable_parameters(model)


def test_a_prompt_cannot_be_merged():
    model = attach(tiny_model("llama"), PromptTuning(init="random"))
    with pytest.raises(MethodError, match="cannot be merged"):
        merge(model)


def test_save_pretrained_writes_the_adapter(tmp_path):
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=4))
    perturb(trainable_parameters(model).values())
    model.save_pretrained(tmp_path / "checkpoint", safe_serialization=True)
    assert sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir()) < 60_000
    loaded = load_adapter(tiny_model("llama", torch.float32), tmp_path / "checkpoint")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_a_resized_vocabulary_moves_the_virtual_ids(tmp_path):
    model = attach(tiny_model("llama", torch.float32), PromptTuning(num_virtual_tokens=4, init="random"))
    perturb(trainable_parameters(model).values())
    before = model(IDS).logits
    save_adapter(model, tmp_path / "adapter")
    model.resize_token_embeddings(120)
    torch.testing.assert_close(model(IDS).logits[..., : before.shape[-1]], before)
    model(torch.tensor([[100, 119]]))


def test_an_adapter_that_is_refused_leaves_the_model_as_it_was():
    model = tiny_model("llama")
    before = observable_state(model)
    with pytest.raises(MethodError, match=r"target_modules=\['nothing'\] match no linear layer.*q_proj"):
        attach(model, LoRA(target_modules=("nothing",)))
    with pytest.raises(MethodError, match="matches no linear layer"):
        attach(model, LoRA(target_modules="nothing.*"))
    for name in ("a.b", "", 5, None):
        with pytest.raises(MethodError, match="without dots"):
            attach(model, LoRA(), name=name)
    with pytest.raises(MethodError, match="carries no adapter"):
        detach(model)
    assert observable_state(model) == before
    attach(model, LoRA())
    with pytest.raises(MethodError, match="has an adapter 'default' already"):
        attach(model, LoRA())
