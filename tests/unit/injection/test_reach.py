"""Adapters reach the output of any module, in training mode as in evaluation mode, or the layers are named."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from odd_modules import ODD_MODULES, WIDTH, Read, odd_module
from references import assert_close
from tiny import perturb
from torch import nn
from torch.nn import functional as F

from peftly import (
    AdapterConfig,
    BitFit,
    DoRA,
    Full,
    LoRA,
    Selective,
    attach,
    cache_adapter_tensors,
    detach,
    merge,
    use_adapters,
)
from peftly.adapters.state import trainable_parameters
from peftly.errors import MethodError

X = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))
METHODS = [LoRA(rank=2), DoRA(rank=2), BitFit(), Full()]
CELLS = [
    (name, config) for name in ODD_MODULES for config in (METHODS if name in ("encoder", "attention") else METHODS[:2])
]


@pytest.mark.parametrize(("name", "config"), CELLS, ids=lambda value: getattr(value, "name", value))
def test_evaluation_training_and_merged_outputs_are_equal(name, config):
    model = odd_module(name)
    with torch.no_grad():
        base = model(X)
        attach(model, config)
        with use_adapters(model):
            assert torch.equal(model(X), base)
        perturb(trainable_parameters(model).values(), 0.3)
        adapted = model(X)
        assert (adapted - base).norm() > 0.05 * base.norm()
    model.train()
    trained = model(X)
    trained.square().mean().backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())
    assert_close(trained, adapted, 1e-5)
    model.eval()
    with torch.no_grad():
        assert_close(model(X), adapted, 1e-5)
        assert_close(merge(copy.deepcopy(model))(X), adapted, 1e-5)
        detach(model)
        assert torch.equal(model(X), base)
    assert not any("forward" in vars(module) for module in model.modules())


def test_torch_keeps_its_fused_calls_for_other_models():
    model = attach(odd_module("encoder"), LoRA(rank=2))
    model(X)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_gradients_of_a_weight_that_is_read():
    model = attach(odd_module("reads a weight"), LoRA(rank=2, target_modules=("inner",)))
    perturb(trainable_parameters(model).values(), 0.3)
    lora = model.inner.peftly["default"]
    model(X).square().sum().backward()
    grads = lora.lora_a.grad.clone(), lora.lora_b.grad.clone()
    weight = model.inner.weight + lora.scaling * lora.lora_b @ lora.lora_a
    expected = model.out(F.linear(X, weight, model.inner.bias).tanh()).square().sum()
    torch.testing.assert_close(torch.autograd.grad(expected, [lora.lora_a, lora.lora_b]), grads)


@pytest.mark.parametrize("name", ["reads a weight", "attention"])
def test_a_weight_that_is_read_has_one_value_for_a_batch_and_no_dropout(name):
    target = ("inner",) if name == "reads a weight" else ("out_proj",)
    model = attach(odd_module(name), LoRA(rank=2, dropout=0.5, target_modules=target))
    with use_adapters(model, adapters=["default", None, None]), pytest.raises(MethodError, match="the same adapters"):
        model(X)
    model(X)
    with pytest.raises(MethodError, match="set dropout to 0"):
        model.train()(X)


def test_a_method_that_changes_no_weight_is_refused_where_weights_are_read():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.self_attn, self.down_proj = nn.MultiheadAttention(WIDTH, 2), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return self.down_proj(self.self_attn(x, x, x)[0])

    model = nn.Sequential(Encoder())
    with pytest.raises(MethodError, match=r"MultiheadAttention reads the weight of 0\.self_attn\.out_proj"):
        attach(model, AdapterConfig(bottleneck_dim=2))
    assert "forward" not in vars(model[0].self_attn)


def test_a_reader_without_source_code_is_refused_at_its_first_call():
    methods = {"__init__": _make_read, "forward": lambda self, x: self.out(F.linear(x, self.inner.weight))}
    hidden = type("Hidden", (nn.Module,), {**methods, "__module__": "nowhere"})
    model = attach(hidden(), LoRA(rank=2))
    for mode in (True, False):
        with pytest.raises(MethodError, match="Hidden reads the weights of inner instead of calling these layers"):
            model.train(mode)(X)


def _make_read(self):
    nn.Module.__init__(self)
    self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)


def test_layers_that_the_first_training_call_does_not_use_are_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

        def forward(self, x):
            return self.used(x)

    model = attach(Experts(), LoRA(rank=2))
    with pytest.warns(UserWarning, match="the first training call did not use unused: an adapter is not trained"):
        model.train()(X)


def test_a_module_that_changes_its_weights_in_place_is_refused():
    class Rescaled(Read):
        def forward(self, x):
            if not self.training:
                self.inner.weight.div_(2)
            return super().forward(x)

    with pytest.raises(MethodError, match=r"Rescaled\.forward changes the weights of its layers in place"):
        attach(Rescaled(), LoRA(rank=2))


@pytest.mark.parametrize("name", ["head", "block"])
def test_copies_of_modules_that_are_called_by_keyword(name):
    model = odd_module("by keyword")
    base = model(X)
    attach(model, LoRA(rank=2, target_modules=("query",) if name == "head" else ("0",), modules_to_save=(name,)))
    torch.testing.assert_close(model(X), base)
    perturb(trainable_parameters(model).values(), 0.3)
    adapted = model(X)
    with use_adapters(model, adapters=[None, "default", None]):
        mixed = model(X)
    torch.testing.assert_close(mixed, torch.stack([base[0], adapted[1], base[2]]))
    torch.testing.assert_close(merge(model)(X), adapted)


def test_copies_of_a_block_by_two_adapters_add_up():
    model = odd_module("by keyword")
    base = model(X)
    for name in ("a", "b"):
        attach(model, Selective(last_layers=0, modules=("output",)), name=name)
    perturb(trainable_parameters(model).values(), 0.1)
    with use_adapters(model, "a"):
        a = model.block(hidden_states=X)[0]
    with use_adapters(model, "b"):
        b = model.block(hidden_states=X)[0]
    both, (off, *_) = model.block(hidden_states=X)[0], odd_module("by keyword").block(X)
    torch.testing.assert_close(both - off, a + b - 2 * off)
    assert (model(X) - base).norm() > 0


def test_a_call_in_another_thread_does_not_end_the_check_of_the_first():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, x, during=None):
            if during is None:
                return self.out(x)
            getattr(self.inner, "weight")  # noqa: B009 -- not found in the source code
            during()
            return self.out(self.inner(x))

    model = attach(Forked(), LoRA(rank=2))
    with ThreadPoolExecutor(1) as other:
        model(X, during=lambda: other.submit(model, X).result())
    assert not any(type(module._parameters) is not dict for module in model.modules())


class Summed(nn.Module):
    """Gets a list of tensors, or no tensor."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, 2)

    def forward(self, parts):
        return self.inner(sum(parts) if parts else torch.ones(3, WIDTH))


def test_copies_of_modules_that_get_no_tensor():
    model = nn.Sequential(Summed(), nn.Linear(2, 2))
    base = model([X, X])
    attach(model, LoRA(rank=2, target_modules=("1",), modules_to_save=("0",)))
    perturb(trainable_parameters(model).values(), 0.3)
    adapted = model([X, X])
    assert (adapted - base).norm() > 0.1 * base.norm()
    with torch.no_grad(), cache_adapter_tensors():
        assert torch.equal(model([X, X]), adapted)
    with use_adapters(model, adapters=["default", None, None]), pytest.raises(MethodError, match="gets no tensor"):
        model([])
