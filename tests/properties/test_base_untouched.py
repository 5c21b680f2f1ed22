"""Promise 2: whatever was done with an adapter, `detach` gives back the very same model."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from model_state import everything
from quantized import quantized
from references import CELLS, DEFAULTS, HOMES
from tiny import padded, perturb, random_rows, tiny_model

from peftly import LoRA, PromptTuning, attach, detach, load_adapter, merge, save_adapter, trainable_parameters
from peftly.errors import MethodError
from peftly.methods import METHODS

IDS, MASK = padded(random_rows([4, 9]), "left")


def settings(method):
    return METHODS[method].config(**DEFAULTS[method])


@pytest.mark.parametrize(("architecture", "method"), CELLS)
def test_detach_gives_back_the_same_model(architecture, method):
    model = tiny_model(architecture)
    model.get_parameter(next(name for name, _ in model.named_parameters())).requires_grad_(False)
    before = everything(model)
    attach(model, settings(method))
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    for _ in range(2):
        model(IDS, attention_mask=MASK, labels=IDS).loss.backward()
        optimizer.step()
    model.generate(IDS, attention_mask=MASK, max_new_tokens=2)
    detach(model)
    after = everything(model)
    assert after.keys() == before.keys()
    assert [key for key in before if before[key] != after[key]] == []


SWITCHED = ("attach enable", "attach enable enable", "attach enable disable", "enable attach enable")


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("calls", SWITCHED)
@pytest.mark.parametrize("opened", [tiny_model, quantized])
def test_detach_leaves_the_switches_of_checkpointing_as_they_were(opened, calls):
    model = opened("llama", dtype=torch.float32)
    for call in calls.split():
        if call == "attach":
            before = everything(model)
            attach(model, LoRA(rank=2))
        else:
            getattr(model, f"gradient_checkpointing_{call}")()
    detach(model)
    after = everything(model)
    assert [key for key in before | after if before.get(key) != after.get(key)] == []


@pytest.mark.parametrize(("architecture", "method"), HOMES)
def test_only_the_adapter_is_trained_and_named_once(architecture, method):
    model = attach(tiny_model(architecture), settings(method))
    trained = trainable_parameters(model)
    assert trained
    assert all(".peftly.default." in name for name in trained)
    assert len({id(parameter) for parameter in trained.values()}) == len(trained)
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())


@pytest.mark.parametrize(("architecture", "method"), HOMES)
def test_identity_at_init_is_what_the_registry_says(architecture, method):
    model = tiny_model(architecture, torch.float32)
    before = model(IDS[1:]).logits
    changed = {"init": "identity"} if method == "adapter" else {}
    attach(model, METHODS[method].config(**DEFAULTS[method] | changed))
    difference = (model(IDS[1:]).logits - before).norm() / before.norm()
    assert (difference < 1e-6) == METHODS[method].identity_at_init


@pytest.mark.parametrize(("architecture", "method"), HOMES)
def test_copies_and_pickles_live_on_their_own(architecture, method):
    model = attach(tiny_model(architecture), settings(method))
    perturb(trainable_parameters(model).values())
    logits = model(IDS, attention_mask=MASK).logits
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    perturb(trainable_parameters(model).values(), seed=7)
    assert not torch.equal(model(IDS, attention_mask=MASK).logits, logits)
    for other in copies:
        torch.testing.assert_close(other(IDS, attention_mask=MASK).logits, logits, rtol=0, atol=0)
        detach(other)
    assert trainable_parameters(model)


MERGEABLE = [(*cell, {}) for cell in CELLS if METHODS[cell[1]].mergeable]
MERGEABLE += [(a, m, {"bias": bias}) for a, m, _ in MERGEABLE for bias in ("all", "lora_only") if m in ("lora", "dora")]


@pytest.mark.parametrize(("architecture", "method", "more"), MERGEABLE)
def test_merge_keeps_the_outputs(architecture, method, more):
    model = tiny_model(architecture)
    config = METHODS[method].config(**DEFAULTS[method] | more)
    lacks = more and not any(name.endswith("bias") for name, _ in model.named_parameters())
    with pytest.warns(UserWarning, match="trains no bias") if lacks else nullcontext():
        attach(model, config)
    perturb(trainable_parameters(model).values())
    expected = model(IDS[1:]).logits
    tears = method == "selective" and architecture in ("bloom", "gpt2", "opt", "gemma3")  # the head from the words
    with pytest.warns(UserWarning, match="^untied") if tears else nullcontext():
        actual = merge(model)(IDS[1:]).logits
    assert (actual - expected).norm() / expected.norm() < 1e-5
    assert all("peftly" not in name for name, _ in model.named_parameters())


def test_a_prompt_cannot_be_merged():
    model = attach(tiny_model("llama"), PromptTuning(init="random"))
    with pytest.raises(MethodError, match="cannot be merged"):
        merge(model)


def test_save_pretrained_writes_the_adapter(tmp_path):
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=4))
    perturb(trainable_parameters(model).values())
    model.save_pretrained(tmp_path / "checkpoint", safe_serialization=True)
    assert sum(file.stat().st_size for file in (tmp_path / "checkpoint").iterdir()) < 60_000
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "checkpoint")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_resized_vocabulary_moves_the_virtual_ids(tmp_path):
    model = attach(tiny_model("llama", torch.float32), PromptTuning(num_virtual_tokens=4, init="random"))
    perturb(trainable_parameters(model).values())
    before = model(IDS).logits
    save_adapter(model, tmp_path / "adapter")
    model.resize_token_embeddings(120)
    torch.testing.assert_close(model(IDS).logits[..., : before.shape[-1]], before)
    model(torch.tensor([[100, 119]]))


def test_two_adapters_at_once_and_impossible_ones_leave_the_model_alone():
    model = tiny_model("llama")
    before = everything(model)
    with pytest.raises(MethodError, match=r"target_modules=\['nothing'\] match no linear layer.*q_proj"):
        attach(model, LoRA(target_modules=("nothing",)))
    with pytest.raises(MethodError, match="matches no linear layer"):
        attach(model, LoRA(target_modules="nothing.*"))
    with pytest.raises(MethodError, match="without dots"):
        attach(model, LoRA(), name="a.b")
    with pytest.raises(MethodError, match="carries no adapter"):
        detach(model)
    assert everything(model) == before
    attach(model, LoRA())
    with pytest.raises(MethodError, match="has an adapter 'default' already"):
        attach(model, LoRA())
