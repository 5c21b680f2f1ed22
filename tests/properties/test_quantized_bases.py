"""Every method on a quantised base, compared with the plain base that has the same weights."""

import copy
from functools import cache, lru_cache

import pytest
import torch
from matrix import TRAINED, batch_of, cells, change_of_logits, flat, results_of
from model_state import observable_state
from quantized import quantized
from references import DEFAULTS, assert_close
from tiny import perturb

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
from peftly.kernels.packed_attention import use_packed_attention

WITH_COPIES = (
    Full(),
    Selective(last_layers=1),
    LoRA(target_modules=("lm_head",), modules_to_save=("mlp",)),
)
IDS = torch.arange(3, 15).view(2, 6)
TASKS = {"causal_lm": ("llama", "gpt2"), "seq2seq_lm": ("t5",), "sequence_classification": ("bert",)}
CELLS = [(cell, kind) for cell in cells(TASKS) if cell.reason_left_out is None for kind in ("nf4", "int8")]
CAUSAL = [(cell, kind) for cell, kind in CELLS if cell.task == "causal_lm"]


@cache
def base_of(architecture, kind, task):
    """Return a quantised base that nobody changes."""
    return quantized(architecture, kind, task)


@lru_cache(maxsize=1)
def pair_of(cell, kind):
    """Return an adapted model on a quantised base, and its copy on the plain base that has the same weights."""
    model = copy.deepcopy(base_of(cell.architecture, kind, cell.task))
    attach(model, METHODS[cell.method].config(**DEFAULTS[cell.method]))
    perturb(trainable_parameters(model).values(), scale=0.05)
    return model, dequantize(copy.deepcopy(model))


def the_adapter_changes_the_logits(cell, model, plain):
    assert change_of_logits(model, cell.task) > 1e-3


def right_padded_batches_are_equal(cell, model, plain):
    assert_equal_results(*(results_of(each, cell.task, TRAINED, "right") for each in (model, plain)))


def left_padded_batches_are_equal(cell, model, plain):
    assert_equal_results(*(results_of(each, cell.task, TRAINED, "left") for each in (model, plain)))


def packed_batches_are_equal(cell, model, plain, *, gradient_checkpointing=False):
    found = []
    for each in (model, plain):
        with training_mode(each, gradient_checkpointing=gradient_checkpointing), use_packed_attention(each):
            found.append(results_of(each, cell.task, TRAINED))
    assert_equal_results(*found)


def packed_and_checkpointed_batches_are_equal(cell, model, plain):
    packed_batches_are_equal(cell, model, plain, gradient_checkpointing=True)


def generated_logits_are_equal(cell, model, plain):
    ids = batch_of(cell.task, [1])[0]["input_ids"]
    options = {"max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    assert_close(*(torch.stack(each.generate(ids, **options).logits) for each in (model, plain)), 1e-5)


CHECKS = {
    the_adapter_changes_the_logits: CELLS,
    right_padded_batches_are_equal: CELLS,
    left_padded_batches_are_equal: CAUSAL,
    packed_batches_are_equal: CELLS,
    packed_and_checkpointed_batches_are_equal: CELLS,
    generated_logits_are_equal: CAUSAL,
}


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("cell", "kind", "check"),
    [
        pytest.param(cell, kind, check, id=f"{cell}-{kind}-{check.__name__}")
        for cell, kind in CELLS
        for check in CHECKS
        if (cell, kind) in CHECKS[check]
    ],
)
def test_cell(cell, kind, check):
    check(cell, *pair_of(cell, kind))


@pytest.mark.sample(4)
@pytest.mark.parametrize(("cell", "kind"), CELLS, ids=str)
def test_a_file_holds_the_whole_adapter(cell, kind, tmp_path):
    model, _ = pair_of(cell, kind)
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapter(copy.deepcopy(base_of(cell.architecture, kind, cell.task)), tmp_path / "adapter")
    inputs, _ = batch_of(cell.task, TRAINED)
    assert_close(loaded(**inputs).logits, model(**inputs).logits, 1e-6)


def assert_equal_results(found, expected):
    assert_close(found.losses, expected.losses, 1e-5)
    assert_close(found.logits, expected.logits, 1e-5)
    assert found.gradients.keys() == expected.gradients.keys()
    assert_close(flat(found.gradients), flat(expected.gradients), 1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("config", WITH_COPIES, ids=lambda config: config.name)
def test_copies_start_from_the_dequantised_weights_and_can_be_merged(config, kind):
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


def test_copies_on_a_base_in_bf16_compute_in_bf16():
    model = attach(quantized("gpt2", dtype=torch.bfloat16), LoRA(rank=2, target_modules=["c_attn"]), name="lora")
    attach(model, Selective(modules=("mlp",), last_layers=0))
    perturb(trainable_parameters(model).values(), scale=0.05)
    plain = dequantize(copy.deepcopy(model)).float()
    assert model(IDS).logits.dtype == torch.bfloat16
    assert_close(model(IDS).logits.float(), plain(IDS).logits, 0.03)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", [LoRA(), Full()], ids=lambda method: method.name)
def test_detach_restores_the_base(method, kind):
    model = quantized("llama", kind)
    before = observable_state(model)
    attach(model, method)
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    detach(model)
    after = observable_state(model)
    assert after.keys() == before.keys()
    assert [key for key in before if before[key] != after[key]] == []


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_pissa_starts_from_the_dequantised_weight(kind):
    model = quantized("llama", kind)
    patch_quantized_layers(model)
    before = model(IDS).logits
    attach(model, LoRA(rank=4, init="pissa"))
    assert_close(model(IDS).logits, before, 1e-5)
    perturb(trainable_parameters(model).values(), scale=0.05)
    plain = dequantize(copy.deepcopy(model))
    assert_equal_results(*(results_of(each, "causal_lm", TRAINED) for each in (model, plain)))
