"""Lean blocks save fewer tensors and compute the same."""

import inspect
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from references import assert_close
from tiny import perturb, tiny_model
from torch import nn
from torch.nn import functional as F
from training_jobs import data_of, lora_model, run
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from peftly import METHODS, LoRA, attach, trainable_parameters
from peftly.injection.lean_blocks import lean_blocks
from peftly.injection.lean_classes import GATED_MLPS, RMS_NORMS
from peftly.kernels.lean_blocks import rms_norm, silu_product

LEAN_MODULES = {"llama": 7, "qwen3": 11, "glm4": 9, "gemma3": 0, "gpt2": 0, "bert": 0}
"""Lean modules of tiny models with two blocks: norms in and after the blocks (qwen3 has two more in each attention),
and gated layers, which glm4 computes in another way."""


FAMILIES = {"granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"}


def replaced(model) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_equals_that_of_transformers(dtype):
    generator = torch.Generator().manual_seed(0)
    layer = LlamaRMSNorm(16, eps=1e-3).to(dtype).requires_grad_(False)
    layer.weight.normal_(generator=generator)
    x, upstream = (torch.randn(2, 5, 16, generator=generator).to(dtype) for _ in range(2))
    outputs, grads = [], []
    for norm in (layer, lambda x: rms_norm(x, layer.weight, 1e-3)):
        copied = x.clone().requires_grad_()
        outputs.append(norm(copied))
        grads.append(torch.autograd.grad(outputs[-1], copied, upstream)[0])
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
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("architecture", LEAN_MODULES)
def test_a_model_computes_the_same_and_is_as_before_afterwards(architecture):
    model = tiny_model(architecture, torch.bfloat16).eval().requires_grad_(False)
    ids = torch.arange(5, 15)[None]
    inputs = model.get_input_embeddings()(ids).requires_grad_()
    results, saved_bytes = [], []
    for lean in (False, True):
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, sizes=sizes: record_size(saved, sizes), lambda x: x
        ):
            if lean:
                with lean_blocks(model):
                    assert len(replaced(model)) == LEAN_MODULES[architecture]
                    output = model(inputs_embeds=inputs)[0]
            else:
                output = model(inputs_embeds=inputs)[0]
        results.append([output, *torch.autograd.grad(output.sum(), inputs)])
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        saved_bytes.append(sum(size for pointer, size in sizes.items() if pointer not in weights))
        assert not replaced(model)
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[1][1].float(), results[0][1].float(), 1e-2)
    lean_bytes, usual_bytes = saved_bytes[1], saved_bytes[0]
    assert lean_bytes < 0.9 * usual_bytes if LEAN_MODULES[architecture] else lean_bytes == usual_bytes


def record_size(saved, sizes):
    storage = saved.untyped_storage()
    sizes[storage.data_ptr()] = storage.nbytes()
    return saved


def test_trained_and_adapted_layers_keep_their_forward():
    model = tiny_model("llama", torch.float32).requires_grad_(False)
    attach(model, METHODS["adapter"].config(placement="parallel", bottleneck_dim=2))
    model.model.norm.weight.requires_grad_()
    model.model.layers[1].mlp.forward = forward = model.model.layers[1].mlp.forward
    before = replaced(model)
    with lean_blocks(model):
        lean = set(replaced(model)) - set(before)
        assert lean == {f"model.layers.{i}.{name}_layernorm" for i in (0, 1) for name in ("input", "post_attention")}
    assert replaced(model) == before
    assert model.model.layers[1].mlp.forward is forward


def test_training_uses_lean_blocks(monkeypatch):
    seen = []
    loop_class = import_module("peftly.training.loop").TrainingLoop
    original = loop_class.run
    monkeypatch.setattr(loop_class, "run", lambda loop: seen.extend(replaced(loop.model)) or original(loop))
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


class Sizes(SimpleNamespace):
    """A configuration with the usual settings; other sizes are 12, other numbers 1, and other settings true."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 12 if name.endswith("size") else 1


SIZES = {"hidden_size": 8, "intermediate_size": 12, "output_size": 8, "hidden_act": "silu", "hidden_activation": "silu"}


def small(name):
    """A small instance of a listed class, with random parameters; None if this version of transformers lacks it."""
    module, _, attribute = name.rpartition(".")
    try:
        layer_class = getattr(import_module(module), attribute)
    except (AttributeError, ImportError):
        return None
    named = {key: value for key, value in SIZES.items() if key in inspect.signature(layer_class).parameters}
    more = {"config": Sizes(**SIZES)} if "config" in inspect.signature(layer_class).parameters else {}
    more |= {"layer_idx": 0} if "layer_idx" in inspect.signature(layer_class).parameters else {}
    layer = layer_class(**named, **more)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer.requires_grad_(False).eval()


@pytest.mark.parametrize("names", [RMS_NORMS, GATED_MLPS], ids=["norms", "gated layers"])
def test_every_listed_class_computes_the_same_bits(names):
    layers = {name: layer for name in sorted(names) if (layer := small(name))}
    assert len(layers) > 0.8 * len(names)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)) * 3
    for name, layer in layers.items():
        for dtypes in (
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.float32, torch.bfloat16),
        ):
            if names is GATED_MLPS and dtypes[0] != dtypes[1]:
                continue
            layer.to(dtypes[0])
            given = x.to(dtypes[1])
            expected = layer(given)
            with lean_blocks(layer):
                assert replaced(layer) == [""], name
                found = layer(given)
            assert found.dtype == expected.dtype, name
            assert torch.equal(found, expected), name


def test_the_lists_are_sorted_and_have_the_usual_families():
    for names, more in ((RMS_NORMS, {"phi3", "glm4"}), (GATED_MLPS, set())):
        assert FAMILIES | more <= {name.split(".")[2] for name in names}
    source = inspect.getsource(import_module("peftly.injection.lean_classes"))
    listed = [line.strip(' ",') for line in source.splitlines() if line.startswith('        "')]
    assert listed == sorted(RMS_NORMS) + sorted(GATED_MLPS)


def test_other_classes_keep_their_forward(monkeypatch):
    """A class with the same name elsewhere, another activation, and a forward that was assigned to the class."""
    mlp = small("transformers.models.llama.modeling_llama.LlamaMLP")

    class LlamaRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

        def forward(self, x):
            return x

    with lean_blocks(nn.ModuleList([mlp, LlamaRMSNorm()])) as _:
        assert "forward" in vars(mlp)
    others = nn.ModuleList([LlamaRMSNorm(), small("transformers.models.llama.modeling_llama.LlamaMLP")])
    others[1].act_fn = nn.GELU()
    with lean_blocks(others):
        assert not replaced(others)
    monkeypatch.setattr(type(mlp), "forward", lambda self, x: x)
    with lean_blocks(mlp):
        assert not replaced(mlp)


def test_a_subclass_that_inherits_the_forward_is_replaced():
    layer = type("Own", (LlamaRMSNorm,), {})(8).requires_grad_(False)
    with lean_blocks(layer):
        assert replaced(layer) == [""]
