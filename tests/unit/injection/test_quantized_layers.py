"""Layers in 4 and 8 bits: their weights, their outputs, and that calls do not change them."""

import copy
import itertools
import os
import pickle
import subprocess
import sys
from collections import Counter

import bitsandbytes
import pytest
import torch
import transformers as tf
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code
from quantized import quantized
from references import assert_close
from tiny import perturb, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from peftly import DoRA, Full, LoRA, attach, detach, load_base, merge, trainable_parameters
from peftly.errors import BaseModelError, MethodError
from peftly.injection.quantized_layers import dequantize, patch_quantized_layers
from peftly.kernels.packed_attention import use_packed_attention
from peftly.kernels.quantized import dequantized_weight, is_quantized
from peftly.models.quantization import Quantization, as_quantization

# Appendix E of QLoRA (arXiv:2305.14314).
NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0]
KINDS = {
    "nf4": {"kind": "nf4"},
    "nf4 once": {"kind": "nf4", "double": False},
    "nf4 in large blocks": {"kind": "nf4", "block_size": 128},
    "fp4": {"kind": "fp4"},
    "int8": {"kind": "int8"},
}
IDS = torch.arange(3, 15).view(2, 6)


def layer_of(model):
    return model.model.layers[0].mlp.down_proj


def test_the_codes_are_those_of_the_paper():
    layer = bitsandbytes.nn.LinearNF4(64, 32, bias=False, compute_dtype=torch.float32)
    layer.weight.data.copy_(torch.tensor(NF4).repeat(32 * 4).view(32, 64) * torch.arange(1, 33)[:, None])
    layer.weight.compress_statistics = False
    layer.to("cpu")
    assert_close(
        dequantized_weight(layer), torch.tensor(NF4).repeat(32 * 4).view(32, 64) * torch.arange(1, 33)[:, None], 1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.sample(3)
def test_weights_are_those_of_bitsandbytes(kind, dtype):
    layer = layer_of(quantized("llama", dtype=dtype, **KINDS[kind]))
    if kind == "int8":
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        theirs = bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales).to(dtype)
        original = layer_of(tiny_model("llama", dtype)).weight
        assert_close(dequantized_weight(layer, dtype).float(), original.float(), 0.02)
        assert_close(dequantized_weight(layer, dtype).float(), theirs.float(), 1e-6)
    else:
        state = layer.weight.quant_state
        assert (state.blocksize, state.nested) == (KINDS[kind].get("block_size", 64), KINDS[kind].get("double", True))
        assert torch.equal(dequantized_weight(layer, dtype), reference_weight(layer.weight.data, state, dtype))


def reference_weight(codes, state, dtype):
    """Return the weight from bitsandbytes' implementation without a kernel; its CPU kernel fails for odd blocks."""
    scales = state.absmax
    if state.nested:
        scales = bitsandbytes.functional.dequantize_blockwise(scales, state.state2) + state.offset
    table = _get_4bit_code(state.quant_type, codes.device)
    return _dequantize_4bit_compute(codes.reshape(-1), scales, table, state.blocksize, state.shape, dtype)


@pytest.mark.parametrize("shape", [(32, 48), (3, 32), (64, 576), (5, 7), (96, 2)])
@pytest.mark.parametrize("block_size", [64, 128])
def test_a_row_of_a_weight_need_not_consist_of_whole_blocks(shape, block_size):
    layer = bitsandbytes.nn.LinearNF4(shape[1], shape[0], bias=False)
    layer.weight = bitsandbytes.nn.Params4bit(torch.randn(shape), quant_type="nf4", blocksize=block_size).to("cpu")
    assert torch.equal(
        dequantized_weight(layer), reference_weight(layer.weight.data, layer.weight.quant_state, torch.float32)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_with_its_weight_and_so_does_its_gradient(kind):
    layer = layer_of(quantized("llama", **KINDS[kind]))
    patch_quantized_layers(layer)
    x = torch.randn(3, 5, layer.in_features, requires_grad=True)
    y = layer(x)
    expected = F.linear(x, dequantized_weight(layer))
    assert_close(y, expected, 1e-6)
    direction = torch.randn_like(y)
    assert_close(*(torch.autograd.grad(out, x, direction)[0] for out in (y, expected)), 1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_hooks_of_a_user_stay_and_a_replaced_forward_is_refused(kind):
    model = quantized("llama", kind)
    called = []
    handles = [layer_of(model).register_forward_hook(lambda *call: called.append(call[0]))]
    handles.append(layer_of(model).register_forward_pre_hook(lambda *call: called.append(call[0])))
    attach(model, LoRA(rank=2))
    dequantize(model)(IDS)
    assert called == [layer_of(model)] * 2
    for handle in handles:
        handle.remove()
    model(IDS)
    assert len(called) == 2

    model = quantized("llama", kind)
    forward = layer_of(model).forward = lambda x: x
    for call in (lambda: attach(model, LoRA(rank=2)), lambda: dequantize(model)):
        with pytest.raises(MethodError, match=r"^the forward of model\.layers\.0\.mlp\.down_proj.* was replaced"):
            call()
    assert layer_of(model).forward is forward
    del layer_of(model).forward
    attach(model, LoRA(rank=2))


def test_batch_elements_in_8_bits_do_not_depend_on_each_other():
    layer = layer_of(quantized("llama", "int8"))
    x = torch.randn(4, layer.in_features)
    x[3, :5] = 50.0  # an outlier, whose columns bitsandbytes treats differently in all batch elements
    difference = layer(x)[:3] - layer(x[:3])
    assert difference.norm() > 1e-4
    patch_quantized_layers(layer)
    assert_close(layer(x)[:3], layer(x[:3]), 1e-6)


def test_calls_without_gradients_change_nothing():
    model = quantized("llama", dtype=torch.bfloat16)
    for layer in model.modules():
        if is_quantized(layer):
            layer.support_avx512bf16_for_cpu = True  # where bitsandbytes repacks
    attach(model, LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    before = model(IDS, labels=IDS)
    weights = [layer.weight.data.clone() for layer in model.modules() if is_quantized(layer)]
    with torch.no_grad():
        model(IDS)
        model.generate(IDS, max_new_tokens=3)
    after = model(IDS, labels=IDS)
    assert torch.equal(before.logits, after.logits)
    layers = [layer for layer in model.modules() if is_quantized(layer)]
    assert all(torch.equal(a, layer.weight.data) for a, layer in zip(weights, layers, strict=True))


def test_repacked_weights_are_refused():
    model = quantized("llama", dtype=torch.bfloat16)
    layer_of(model).weight.quant_state.packing_format_for_cpu = True
    before = sorted(vars(model))
    with pytest.raises(MethodError, match="has repacked the weights"):
        attach(model, LoRA())
    assert sorted(vars(model)) == before


@pytest.mark.parametrize("method", [LoRA(rank=2), DoRA(rank=2), None], ids=lambda method: method and method.name)
def test_a_weight_is_dequantised_once_per_pass_for_all_examples(method, monkeypatch):
    model = quantized("llama")
    patch_quantized_layers(model)
    if method is not None:
        attach(model, method)
    calls, original = Counter(), torch.ops.bitsandbytes.dequantize_4bit.default
    ids = torch.arange(3, 27)[None]
    with use_packed_attention(model):
        inputs = {"attention_mask": torch.ones(6, 4, dtype=torch.long), "input_ids": ids.view(6, 4)}
        embeddings = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()
        with _counting(calls, original):
            loss = model(inputs_embeds=embeddings, **inputs, use_cache=False).logits.sum()
            forward = calls["dequantized"]
            loss.backward()
    layers = sum(map(is_quantized, model.modules()))
    assert (forward, calls["dequantized"] - forward) == (layers, layers)


def _counting(calls, operation):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls["dequantized"] += func is operation
            return func(*args, **(kwargs or {}))

    return Counting()


@pytest.mark.parametrize(("architecture", "kind"), itertools.product(["llama", "gpt2", "bert"], ["nf4", "int8"]))
def test_dequantize_makes_the_plain_model(architecture, kind):
    task = "sequence_classification" if architecture == "bert" else "causal_lm"
    model = attach(quantized(architecture, kind, task), LoRA(rank=2, target_modules=r".*(proj|c_\w+|query|dense)"))
    perturb(trainable_parameters(model).values())
    expected = model(IDS).logits
    dequantize(model)
    assert_close(model(IDS).logits, expected, 1e-6)
    detach(model)
    plain = tiny_model(architecture, torch.float32, task=task)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert any(isinstance(module, Conv1D) for module in model.modules()) == (architecture == "gpt2")
    assert "quantization_config" not in model.config.to_dict()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in plain.state_dict().items()
    }
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear | Conv1D):
            assert_close(model.get_submodule(name).weight, layer.weight, 0.15)


def test_a_base_that_was_saved_quantised_opens_as_it_was(tiny_llama_folder, tmp_path):
    for kind in ("nf4", "int8"):
        base = load_base(str(tiny_llama_folder), quantization=kind, dtype="float32")
        base.model.save_pretrained(tmp_path / kind)
        base.tokenizer.save_pretrained(tmp_path / kind)
        again = load_base(str(tmp_path / kind), dtype="float32")
        assert torch.equal(again.model(IDS).logits, base.model(IDS).logits)
        with pytest.raises(BaseModelError, match="is quantised already, by bitsandbytes: leave quantization=nf4 out"):
            load_base(str(tmp_path / kind), quantization="nf4")


def test_embeddings_and_heads_keep_their_dtype(tiny_llama_folder):
    model = load_base(str(tiny_llama_folder), quantization="nf4", dtype="bfloat16").model
    in_bf16 = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= in_bf16
    quantized_layers = [name for name, layer in model.named_modules() if is_quantized(layer)]
    assert len(quantized_layers) == 2 * 7
    assert not in_bf16 & {f"{name}.weight" for name in quantized_layers}


def test_compute_dtype(tiny_llama_folder):
    settings = Quantization(kind="nf4", compute_dtype="float32")
    wide = load_base(str(tiny_llama_folder), quantization=settings, dtype="bfloat16").model
    narrow = load_base(str(tiny_llama_folder), quantization="nf4", dtype="bfloat16").model
    layer, x = layer_of(wide), torch.randn(3, 64, dtype=torch.bfloat16)
    assert torch.equal(layer(x), F.linear(x.float(), dequantized_weight(layer, torch.float32)).bfloat16())
    assert not torch.equal(layer(x), layer_of(narrow)(x))
    attach(wide, LoRA(rank=2))
    assert torch.equal(layer(x), F.linear(x.float(), dequantized_weight(layer, torch.float32)).bfloat16())


def test_settings():
    assert as_quantization("none") is as_quantization(None) is None
    assert as_quantization("nf4") == Quantization(kind="nf4")
    with pytest.raises(BaseModelError, match="'q4' is not one of nf4, fp4, int8, none"):
        as_quantization("q4")
    with pytest.raises(ValueError, match="and no block_size; leave it out"):
        Quantization(kind="int8", block_size=128)


IMPORTS = (
    "peftly.kernels.bitsandbytes.import_bitsandbytes()",
    "peftly.training.optimizer.make_optimizer([{'params': [weight], 'lr': 1.0}], TrainConfig(optimizer='adafactor'))",
)


@pytest.mark.soak
def test_no_package_downloads_binaries(tmp_path):
    """bitsandbytes downloads them from the Hub if `kernels` is installed."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*args, **kwargs):\n    raise SystemExit('downloaded')\n")
    code = f"""
import os, sys, torch, peftly.training.optimizer
from peftly.training.config import TrainConfig
weight = torch.nn.Parameter(torch.ones(2, 2))
for call in {IMPORTS}:
    if os.fork() == 0:  # a process imports bitsandbytes once
        eval(call)
        assert "bitsandbytes" in sys.modules
        import kernels; print(kernels.__file__, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, call
"""
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths, check=True)
    assert completed.stdout.split() == [str(tmp_path / "kernels.py")] * len(IMPORTS)
    assert completed.stderr == ""


def test_copies_of_a_model_are_independent():
    model = quantized("llama")
    attach(model, LoRA(rank=2))
    clone = copy.deepcopy(model)
    perturb(trainable_parameters(clone).values())
    assert vars(layer_of(clone))["forward"].original.replaced.layer is layer_of(clone)
    assert not torch.equal(model(IDS).logits, clone(IDS).logits)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", [LoRA(rank=2), DoRA(rank=2)], ids=lambda method: method.name)
def test_autocast(kind, method):
    model = attach(quantized("llama", kind), method)
    perturb(trainable_parameters(model).values())
    results = []
    for is_on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_on):
            loss = model(IDS, labels=IDS).loss
        results.append([loss.detach(), *torch.autograd.grad(loss, trainable_parameters(model).values())])
    for plain, cast in zip(*results, strict=True):
        assert_close(cast, plain, 0.1)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_pickle_keeps_the_replaced_forward(kind):
    model = quantized("llama", kind)
    patch_quantized_layers(model)
    again = pickle.loads(pickle.dumps(model))
    assert [is_quantized(layer) for layer in again.modules()] == [is_quantized(layer) for layer in model.modules()]
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert_close(dequantize(again)(IDS).logits, model(IDS).logits, 1e-6)


def test_quantised_weights_may_be_stored_as_floats():
    model = quantized("llama")
    for layer in model.modules():
        if is_quantized(layer):
            layer.weight.data = layer.weight.data.view(1, -1).view(torch.bfloat16).view(-1, 1)
    usual = quantized("llama")
    patch_quantized_layers(usual)
    expected = usual(IDS).logits
    attach(model, LoRA(rank=2))
    assert_close(model(IDS).logits, expected, 1e-6)
    with pytest.raises(MethodError, match="is quantised"):
        merge(model)
    detach(model)
    attach(model, Full())
    assert_close(model(IDS).logits, expected, 1e-6)


def test_a_layer_that_the_files_lack_is_plain(task_base, tmp_path):
    folder = task_base("bert")
    tf.BertForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path)
    tf.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no weights for"):
        model = load_base(
            str(tmp_path), quantization="nf4", task="sequence_classification", labels=["a", "b"], dtype="float32"
        ).model
    assert type(model.bert.pooler.dense) is nn.Linear
    attach(model, LoRA(rank=2))
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()


def test_a_body_without_a_head_is_quantised_too(task_base, tmp_path):
    folder = task_base("bert")
    tf.BertModel.from_pretrained(folder).save_pretrained(tmp_path)
    tf.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert sum(map(is_quantized, load_base(str(tmp_path), quantization="nf4").model.modules())) >= 12
