"""`torch.compile` without graph breaks, `torch.export`, `torch.func` and double backward of adapted models."""

import sys

import pytest
import torch
from references import assert_close
from tiny import padded, perturb, random_token_ids, tiny_model
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap

from peftly import (
    IA3,
    AdapterConfig,
    DoRA,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    peft,
    set_adapters,
    trainable_parameters,
    use_adapters,
)
from peftly.kernels import dropout, low_rank_linear
from peftly.methods.adapter import ACTIVATIONS, add_bottleneck

IDS = torch.tensor(random_token_ids([7, 7]))
METHODS = {
    "prompt": PromptTuning(num_virtual_tokens=3, init="random"),
    "prefix": PrefixTuning(num_virtual_tokens=3),
    "lora": LoRA(rank=2),
    "dora": DoRA(rank=2),
    "ia3": IA3(),
    "houlsby": AdapterConfig(bottleneck_dim=3),
    "parallel": AdapterConfig(bottleneck_dim=3, placement="parallel"),
}


LAYER_METHODS = [*METHODS][2:]
SOAK = pytest.mark.soak
"""Compilation takes seconds."""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def adapted(method, architecture="llama", task="causal_lm", implementation=None, **settings):
    model = tiny_model(architecture, task=task, **({"num_hidden_layers": 1} if architecture == "llama" else {}))
    if implementation is not None:
        model.set_attn_implementation(implementation)
    config = METHODS[method]
    attach(model, config.model_copy(update=settings))
    perturb(trainable_parameters(model).values())
    return model


def gradients(model):
    found = {name: p.grad.clone() for name, p in trainable_parameters(model).items() if p.grad is not None}
    model.zero_grad()
    return found


def compiled(model):
    return torch.compile(model, fullgraph=True, backend="eager")


@pytest.mark.parametrize("method", ["lora", *(pytest.param(name, marks=SOAK) for name in LAYER_METHODS[1:])])
def test_one_adapter_has_no_graph_break(method):
    """Loss and gradients in training mode, padding included."""
    model = adapted(method).train()
    ids, mask = padded(random_token_ids([7, 5]), "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids, "use_cache": False}
    call = compiled(model)
    model(**inputs).loss.backward()
    expected = gradients(model)
    call(**inputs).loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_close(found[name], gradient, 1e-8)


def test_a_model_can_be_compiled_before_its_first_call_and_after_a_step():
    """The first calls of an adapted model are checked, by hooks."""
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double(), torch.randn(2, 4).double()
    attach(model, LoRA(rank=2, target_modules=("0", "2")))
    perturb(trainable_parameters(model).values())
    call = compiled(model.train())
    for _ in range(2):
        first = call(x)
        first.square().sum().backward()
        assert_close(first, model(x), 1e-10)
        torch.optim.SGD(trainable_parameters(model).values(), lr=0.1).step()
        assert (model(x) - first).norm() > 1e-3 * first.norm()
    with torch.no_grad():
        assert_close(call.eval()(x), model.eval()(x), 1e-10)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("architecture", "task"),
    [("gpt2", "causal_lm"), ("bert", "sequence_classification"), ("t5", "seq2seq_lm"), ("bart", "seq2seq_lm")],
)
def test_other_architectures_have_no_graph_break(architecture, task):
    model = adapted("lora", architecture, task)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if task == "seq2seq_lm":
        inputs["decoder_input_ids"] = IDS
    with torch.no_grad():
        assert_close(compiled(model)(**inputs).logits, model(**inputs).logits, 1e-6)


@pytest.mark.soak
def test_dropout_has_no_graph_break():
    model = adapted("lora", dropout=0.5).train()
    call = compiled(model)
    outputs = [call(IDS, use_cache=False).logits for _ in range(2)]
    assert not torch.equal(*outputs)
    outputs[0].sum().backward()
    assert all(gradient.any() for gradient in gradients(model).values())
    with torch.no_grad():
        model.eval()
        assert_close(call(IDS, use_cache=False).logits, model(IDS).logits, 1e-10)


def test_compiled_code_follows_the_active_adapters():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double(), torch.randn(2, 4, dtype=torch.float64)
    for name, config in {
        "a": LoRA(rank=2, target_modules=("0", "1")),
        "b": DoRA(rank=2, target_modules=("1",)),
    }.items():
        attach(model, config, name=name)
    perturb(trainable_parameters(model).values())
    call, whole = torch.compile(model, backend="eager"), compiled(model)
    with torch.no_grad():
        for names in (["a"], ["b"], []):
            set_adapters(model, *names)
            assert_close(whole(x), model(x), 1e-10)
        base = model(x)
        with use_adapters(model, adapters=["b", None]):
            assert_close(call(x), model(x), 1e-10)
            assert_close(call(x)[1], base[1], 1e-10)
        with use_adapters(model, "a"):
            assert_close(call(x), model(x), 1e-10)
            assert not torch.equal(call(x), base)
        assert_close(call(x), base, 1e-10)


@pytest.mark.parametrize("method", ["prompt", pytest.param("prefix", marks=SOAK), "lora"])
def test_adapted_models_can_be_exported(method):
    model = adapted(method)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "use_cache": False}
    with torch.no_grad():
        expected = model(**inputs).logits
        exported = torch.export.export(model, (), inputs).module()
        assert_close(exported(**inputs).logits, expected, 1e-10)


# --- transforms


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_functional_transforms(method):
    model = adapted(method, implementation="eager", **({"dropout": 0.5} if method == "lora" else {}))
    parameters = {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}

    def loss(parameters):
        return functional_call(model, parameters, (IDS,), {"labels": IDS, "use_cache": False}).loss

    model(IDS, labels=IDS).loss.backward()
    expected = gradients(model)
    found = grad(loss)(parameters)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, 1e-6)
    directions = {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
    _, tangent = jvp(loss, (parameters,), (directions,))
    assert_close(tangent, sum(gradient.sum() for gradient in expected.values()), 1e-4)
    each = vmap(lambda ids: model(ids[None], use_cache=False).logits[0])(IDS)
    assert_close(each, model(IDS).logits, 1e-8)


@pytest.mark.parametrize("method", ["lora", "dora", "houlsby", "parallel"])
def test_gradients_of_gradients(method, monkeypatch):
    """Of ‖gradient‖², and the same by plain operations."""
    model = adapted(method, implementation="eager")
    parameters = [*trainable_parameters(model).values()]

    def second():
        found = torch.autograd.grad(model(IDS, labels=IDS).loss, parameters, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in found), parameters)

    found = second()
    for module in ("kernels.low_rank_linear", "methods.adapter"):
        monkeypatch.setattr(sys.modules[f"peftly.{module}"], "is_transformed", lambda: True)
    for gradient, expected in zip(found, second(), strict=True):
        assert expected.any()
        assert_close(gradient, expected, 1e-5)


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize(
    ("with_scale", "probability", "recomputed"),
    [pytest.param(False, 0.0, False, marks=SOAK), (True, 0.0, True), (False, 0.5, True)],
)
def test_low_rank_linear_passes_gradgradcheck(with_scale, probability, recomputed):
    x, bias, lora_a, lora_b, scale = tensors((2, 2, 3), (4,), (2, 3), (4, 2), (4,))
    weight = tensors((4, 3))[0].detach()
    scale = scale if with_scale else None

    def function(x, bias, lora_a, lora_b, *scale):
        torch.manual_seed(0)
        return low_rank_linear(
            *(x, weight, bias, lora_a, lora_b, 1.5),
            scale=scale[0] if scale else None,
            dropout=probability,
            recompute_weight=weight.clone if recomputed else None,
        )

    inputs = (x, bias, lora_a, lora_b, *([] if scale is None else [scale]))
    assert gradcheck(function, inputs, check_batched_grad=False)
    assert gradgradcheck(function, inputs)
    if not probability:
        assert gradcheck(function, inputs, check_forward_ad=True)


@pytest.mark.parametrize(("with_output", "activation", "probability"), [(False, "gelu", 0.5), (True, "tanh", 0.0)])
def test_bottlenecks_pass_gradgradcheck(probability, with_output, activation):
    output, h, *weights = tensors((2, 2, 3), (2, 2, 3), (2, 3), (2,), (3, 2), (3,))

    def function(h, *weights):
        torch.manual_seed(0)
        given = output if with_output else None
        return add_bottleneck(given, h, weights, ACTIVATIONS[activation], 1.5, probability=probability)

    assert gradcheck(function, (h, *weights))
    assert gradgradcheck(function, (h, *weights))


def test_dropout_passes_gradgradcheck():
    (x,) = tensors((3, 5))

    def function(x):
        torch.manual_seed(0)
        return dropout(x, 0.3, training=True) ** 2

    assert gradcheck(function, (x,))
    assert gradgradcheck(function, (x,))


def test_forward_mode_without_functions():
    model = attach(nn.Sequential(nn.Linear(4, 3)).double(), LoRA(rank=2, target_modules=("0",)))
    perturb(trainable_parameters(model).values())
    x, tangent = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, tangent))).tangent
    assert_close(found, model(x + tangent) - model(x), 1e-6)


def test_a_compiled_model_of_peft_takes_adapter_names():
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(2, 4)
    model = peft.get_peft_model(network, peft.LoraConfig(target_modules=["0", "2"]))
    perturb(trainable_parameters(model).values())
    compiled, names = torch.compile(model, backend="eager"), ["default", "__base__"]
    assert_close(compiled(x), model(x))
    assert_close(compiled(x, adapter_names=names), model(x, adapter_names=names))
