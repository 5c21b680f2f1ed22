"""Layers that `target_modules` selects, what it leaves out, and modules that can have no adapter."""

import pytest
import torch
import transformers as tf
from tiny import perturb, tiny_config
from torch import nn

from peftly import (
    IA3,
    AdapterConfig,
    DoRA,
    LoRA,
    Selective,
    attach,
    attached,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import MethodError

TEXT = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def targets_of(model) -> set[str]:
    return {name.split(".peftly.")[0] for name in trainable_parameters(model)}


class TiedByHand(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.inner, self.to_words = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.to_words.weight = self.words.weight


HEADS = {
    "bert": (lambda: tf.BertForMaskedLM(tiny_config("bert")), "cls.predictions.decoder"),
    "roberta": (lambda: tf.RobertaForMaskedLM(tiny_config("roberta")), "lm_head.decoder"),
    "albert": (
        lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(**TEXT, embedding_size=16)),
        "predictions.decoder",
    ),
    "distilbert": (lambda: tf.DistilBertForMaskedLM(tiny_config("distilbert")), "vocab_projector"),
    "a plain module": (TiedByHand, "to_words"),
}


@pytest.mark.parametrize("name", HEADS)
def test_all_linear_leaves_out_the_head_of_the_vocabulary(name):
    make, head = HEADS[name]
    targets = targets_of(attach(make(), LoRA(rank=2)))
    assert targets
    assert not [path for path in targets if path.startswith(head)]


def test_all_linear_says_that_it_leaves_out_stacked_experts():
    config = tf.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=3)
    message = r"'all-linear' leaves out \['model.layers.0.mlp.experts.gate_up_proj', .*stacked in one tensor"
    with pytest.warns(UserWarning, match=message):
        attach(tf.MixtralForCausalLM(config), LoRA(rank=2))


def test_names_that_match_nothing_beside_others_are_passed_over_with_a_warning():
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    with pytest.warns(UserWarning, match=r"\['c'\] match no linear layer or embedding and are passed over"):
        attach(model, LoRA(rank=2, target_modules=("a", "c")))
    assert targets_of(model) == {"a"}


REFUSED = {
    "pissa": (lambda: nn.Sequential(nn.Linear(8, 3)), LoRA(rank=4, init="pissa"), "0 has 3 singular values.*rank to 3"),
    "ia3": (
        lambda: nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}),
        IA3(target_modules=("a",), feedforward_modules=("b",)),
        r"feedforward_modules=\('b',\) name b, which is not among target_modules",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), LoRA(), "0.weight has no values yet; call the model once"),
    "script": (lambda: torch.jit.script(nn.Sequential(nn.Linear(4, 4))), LoRA(), "is a TorchScript module"),
    "recurrent": (lambda: nn.Sequential(nn.LSTM(4, 4)), LoRA(target_modules=("0",)), "match no linear layer"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line(case):
    make, config, message = REFUSED[case]
    model = make()
    with pytest.raises(MethodError, match=message) as caught:
        attach(model, config)
    assert "\n" not in str(caught.value)
    assert attached(model) == {}


def test_a_pissa_adapter_is_loaded_without_its_decomposition(monkeypatch, tmp_path):
    model = attach(nn.Sequential(nn.Linear(8, 8)), LoRA(rank=2, init="pissa"))
    perturb(trainable_parameters(model).values())
    x = torch.randn(3, 8)
    expected, base = model(x), nn.Sequential(nn.Linear(8, 8))
    base.load_state_dict({name: value for name, value in model.state_dict().items() if "peftly" not in name})
    save_adapter(model, tmp_path / "adapter")
    monkeypatch.setattr(torch.linalg, "svd", None)
    torch.testing.assert_close(load_adapter(base, tmp_path / "adapter")(x), expected)


def test_a_scaling_of_zero_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        AdapterConfig(scaling=0.0)


class Int8(torch.Tensor):
    """Weight of a tensor class of another library: it can be multiplied and dequantised, and nothing else."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.scale = weight.abs().max() / 127
        self.values = (weight / self.scale).round().to(torch.int8)

    def __repr__(self):
        return "Int8"

    def dequantize(self):
        return self.values.float() * self.scale

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight, *rest = args
            return function(x, weight.dequantize(), *rest, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].dequantize())
        raise NotImplementedError(f"Int8 has no {function}")


def quantized_elsewhere() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model[0].weight = nn.Parameter(Int8(model[0].weight.detach()), requires_grad=False)
    return model


@pytest.mark.parametrize("config", [LoRA(rank=2), DoRA(rank=2), LoRA(rank=2, init="pissa")], ids=lambda c: f"{c.name}")
def test_a_weight_of_another_librarys_class_is_trained_over_and_not_merged_into(config):
    model, x = quantized_elsewhere(), torch.randn(4, 8)
    base = model(x)
    attach(model, config)
    torch.testing.assert_close(model(x), base)
    perturb(trainable_parameters(model).values())
    assert (model(x) - base).norm() > 1e-2
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())
    with pytest.raises(MethodError, match="0 has a weight of class Int8"):
        merge(model)


def test_no_copy_of_a_weight_of_another_librarys_class_is_trained():
    with pytest.raises(MethodError, match="weight of a Linear is a Int8, of which no copy can be trained"):
        attach(quantized_elsewhere(), Selective(last_layers=0, modules=("0",)))
