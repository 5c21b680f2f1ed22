"""Every method on a quantised base does what it does on the plain base that has the same weights."""

import copy

import pytest
import torch
from matrix import batch_of, changes_the_logits, flat, losses_and_gradients
from model_state import everything
from quantized import quantized
from references import DEFAULTS, assert_close
from tiny import perturb, tiny_model

from peftly import (
    METHODS,
    Full,
    LoRA,
    Selective,
    attach,
    detach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import MethodError
from peftly.injection.modes import training_mode
from peftly.injection.quantized_layers import dequantize, patch_quantized_layers
from peftly.kernels.packed_attention import packed

WITH_COPIES = (
    Full(),
    Selective(last_layers=1),
    LoRA(target_modules=("lm_head",), modules_to_save=("mlp",)),
)
IDS = torch.arange(3, 15).view(2, 6)
CELLS = [
    (task, architecture, method, kind)
    for task, architecture in (
        ("causal_lm", "llama"),
        ("causal_lm", "gpt2"),
        ("seq2seq_lm", "t5"),
        ("sequence_classification", "bert"),
    )
    for method in METHODS
    if METHODS[method].adapter.misfit(tiny_model(architecture, task=task)) is None
    for kind in ("nf4", "int8")
]


@pytest.mark.parametrize(("task", "architecture", "method", "kind"), CELLS)
def test_every_cell(task, architecture, method, kind, tmp_path):
    model = attach(quantized(architecture, kind, task), METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values(), scale=0.05)
    changes_the_logits(model, task)
    plain = copy.deepcopy(model)
    dequantize(plain)
    for side in ("right", "left") if task == "causal_lm" else ("right",):
        are_equal(*(losses_and_gradients(one, task, [0, 1, 2], side) for one in (model, plain)))
    for checkpointing in (False, True):
        found = []
        for one in (model, plain):
            with training_mode(one, gradient_checkpointing=checkpointing), packed(one):
                found.append(losses_and_gradients(one, task, [0, 1, 2]))
        are_equal(*found)
    if task == "causal_lm":
        ids = batch_of(task, [1])[0]["input_ids"]
        found = [
            one.generate(ids, max_new_tokens=5, output_logits=True, return_dict_in_generate=True)
            for one in (model, plain)
        ]
        assert_close(*(torch.stack(one.logits) for one in found), 1e-5)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(quantized(architecture, kind, task), tmp_path / "adapter")
    inputs, _ = batch_of(task, [0, 1, 2])
    assert_close(again(**inputs).logits, model(**inputs).logits, 1e-6)


def are_equal(found, expected):
    assert_close(found[0], expected[0], 1e-5)
    assert found[1].keys() == expected[1].keys()
    assert_close(flat(found[1]), flat(expected[1]), 1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("config", WITH_COPIES, ids=lambda config: config.name)
def test_copies_start_from_the_unpacked_weights_and_can_be_merged(config, kind):
    model = quantized("llama", kind)
    patch_quantized_layers(model)
    before = model(IDS).logits
    attach(model, config)
    assert all(parameter.dtype == torch.float32 for parameter in trainable_parameters(model).values())
    assert_close(model(IDS).logits, before, 1e-6)
    perturb(trainable_parameters(model).values(), scale=0.05)
    expected = model(IDS).logits
    with pytest.raises(MethodError, match=r"_proj is quantised: call peftly\.dequantize first"):
        merge(model)
    assert_close(merge(dequantize(model))(IDS).logits, expected, 1e-5)


def test_copies_over_a_base_in_bf16_answer_in_bf16():
    model = attach(quantized("gpt2", dtype=torch.bfloat16), LoRA(rank=2, target_modules=["c_attn"]), name="lora")
    attach(model, Selective(modules=("mlp",), last_layers=0))
    perturb(trainable_parameters(model).values(), scale=0.05)
    plain = dequantize(copy.deepcopy(model)).float()
    assert model(IDS).logits.dtype == torch.bfloat16
    assert_close(model(IDS).logits.float(), plain(IDS).logits, 0.03)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", [LoRA(), Full()], ids=lambda method: method.name)
def test_detach_gives_back_the_same_model(method, kind):
    model = quantized("llama", kind)
    before = everything(model)
    attach(model, method)
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    detach(model)
    after = everything(model)
    assert after.keys() == before.keys()
    assert [key for key in before if before[key] != after[key]] == []


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_pissa_starts_from_the_weight_as_it_is_kept(kind):
    model = quantized("llama", kind)
    patch_quantized_layers(model)
    before = model(IDS).logits
    attach(model, LoRA(rank=4, init="pissa"))
    assert_close(model(IDS).logits, before, 1e-5)
    perturb(trainable_parameters(model).values(), scale=0.05)
    plain = dequantize(copy.deepcopy(model))
    are_equal(*(losses_and_gradients(one, "causal_lm", [0, 1, 2]) for one in (model, plain)))
