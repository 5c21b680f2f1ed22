"""Frozen blocks keep less and compute the same."""

from importlib import import_module

import pytest
import torch
from references import assert_close
from tiny import perturb, tiny_model
from torch.nn import functional as F
from training_jobs import data_of, lora_model, run
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from peftly import METHODS, LoRA, attach, trainable_parameters
from peftly.injection.lean_blocks import lean_blocks
from peftly.kernels.lean_blocks import rms_norm, silu_product

LEAN_MODULES = {"llama": 7, "qwen3": 11, "glm4": 9, "gemma3": 0, "gpt2": 0, "bert": 0}
"""Of two layers: norms of both and behind them (qwen3 has two more in each layer's attention), and gated layers, which
glm4 has in another form."""


def replaced(model) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_is_that_of_transformers(dtype):
    generator = torch.Generator().manual_seed(0)
    layer = LlamaRMSNorm(16, eps=1e-3).to(dtype).requires_grad_(False)
    layer.weight.normal_(generator=generator)
    x, upstream = (torch.randn(2, 5, 16, generator=generator).to(dtype) for _ in range(2))
    outputs, grads = [], []
    for norm in (layer, lambda x: rms_norm(x, layer.weight, 1e-3)):
        given = x.clone().requires_grad_()
        outputs.append(norm(given))
        grads.append(torch.autograd.grad(outputs[-1], given, upstream)[0])
    assert torch.equal(*outputs)
    assert_close(grads[1].double(), grads[0].double(), 1e-3 if dtype == torch.bfloat16 else 1e-6)


def test_a_gated_product_and_its_gradient():
    gate, up = (torch.randn(3, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.equal(silu_product(gate, up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(silu_product, (gate, up))
    assert torch.autograd.gradcheck(lambda gate: silu_product(gate, up.detach()), gate)
    assert torch.autograd.gradcheck(lambda up: silu_product(gate.detach(), up), up)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_gated_product_of_two_dtypes(dtypes):
    pair = [torch.randn(3, 4).to(dtype).requires_grad_() for dtype in dtypes]
    results = []
    for product in (silu_product, lambda gate, up: F.silu(gate) * up):
        output = product(*pair)
        results.append([output, *torch.autograd.grad(output.sum(), pair)])
    for found, wanted in zip(*results, strict=True):
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("architecture", LEAN_MODULES)
def test_a_model_computes_the_same_and_is_as_before_afterwards(architecture):
    model = tiny_model(architecture, torch.bfloat16).eval().requires_grad_(False)
    ids = torch.arange(5, 15)[None]
    inputs = model.get_input_embeddings()(ids).requires_grad_()
    found, kept = [], []
    for lean in (False, True):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda saved, sizes=sizes: _noted(saved, sizes), lambda x: x):
            if lean:
                with lean_blocks(model):
                    assert len(replaced(model)) == LEAN_MODULES[architecture]
                    output = model(inputs_embeds=inputs)[0]
            else:
                output = model(inputs_embeds=inputs)[0]
        found.append([output, *torch.autograd.grad(output.sum(), inputs)])
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept.append(sum(size for place, size in sizes.items() if place not in weights))
        assert not replaced(model)
    assert torch.equal(found[0][0], found[1][0])
    assert_close(found[1][1].float(), found[0][1].float(), 1e-2)
    assert kept[1] < 0.9 * kept[0] if LEAN_MODULES[architecture] else kept[1] == kept[0]


def _noted(saved, sizes):
    storage = saved.untyped_storage()
    sizes[storage.data_ptr()] = storage.nbytes()
    return saved


def test_what_is_trained_or_changed_is_left_alone():
    model = tiny_model("llama", torch.float32).requires_grad_(False)
    attach(model, METHODS["adapter"].config(placement="parallel", bottleneck_dim=2))
    model.model.norm.weight.requires_grad_()
    model.model.layers[1].mlp.forward = taken = model.model.layers[1].mlp.forward
    before = replaced(model)
    with lean_blocks(model):
        own = set(replaced(model)) - set(before)
        assert own == {f"model.layers.{i}.{name}_layernorm" for i in (0, 1) for name in ("input", "post_attention")}
    assert replaced(model) == before
    assert model.model.layers[1].mlp.forward is taken


def test_training_uses_them(monkeypatch):
    seen = []
    loop_class = import_module("peftly.training.loop").Loop
    original = loop_class.go
    monkeypatch.setattr(loop_class, "go", lambda loop: seen.extend(replaced(loop.model)) or original(loop))
    model = lora_model()
    before = replaced(model)
    run(model, data_of(4, 0), epochs=1)
    assert {"model.norm", "model.layers.0.mlp", "model.layers.1.input_layernorm"} <= set(seen) - set(before)
    assert replaced(model) == before


def test_lora_inside_a_gated_layer_is_called():
    model = tiny_model("llama", torch.float64)
    ids = torch.arange(5, 15)[None]
    without = model(ids).logits
    attach(model, LoRA(rank=2, target_modules=["gate_proj"]))
    perturb(trainable_parameters(model).values())
    expected = model(ids).logits
    assert not torch.equal(expected, without)
    with lean_blocks(model):
        assert torch.equal(model(ids).logits, expected)
