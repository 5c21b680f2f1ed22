"""Adapted models in other modes of torch, and copies of them: deepcopy, pickle and `torch.save` of the whole model."""

import copy
import io
import pickle

import pytest
import torch
from references import DEFAULTS, assert_close
from tiny import perturb, random_token_ids, tiny_model

from peftly import METHODS, LoRA, attach, attached, cache_adapter_tensors, trainable_parameters, use_adapters

IDS = torch.tensor(random_token_ids([8, 8]))
KINDS = ["lora", "dora", "ia3", "adapter", "prompt_tuning", "prefix_tuning"]


def adapted(method):
    model = tiny_model("llama")
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    perturb(trainable_parameters(model).values())
    return model


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_torch_save,
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("in_block", [False, True])
def test_a_copy_is_trained_alone(method, kind, in_block):
    model = adapted(method)
    with torch.no_grad():
        expected = model(IDS).logits
    if in_block:
        with use_adapters(model), cache_adapter_tensors():  # a copy has the default
            again = COPIES[kind](model)
    else:
        again = COPIES[kind](model)
    assert torch.equal(again(IDS).logits, expected)
    assert attached(again).keys() == attached(model).keys()
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(IDS, **options), model.generate(IDS, **options))
    again.train()
    again(IDS, labels=IDS).loss.backward()
    torch.optim.SGD(trainable_parameters(again).values(), lr=0.5).step()
    again.eval()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
        assert (again(IDS).logits - expected).norm() > 1e-4 * expected.norm()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", KINDS)
def test_training_goes_on_after_inference_mode(method):
    model = adapted(method)
    attach(model, LoRA(rank=2), name="other")
    perturb(trainable_parameters(model).values())
    for adapters in ([None, "default"], ["other", ("default", "other")]):
        with torch.no_grad(), use_adapters(model, adapters=adapters):
            expected = model(IDS).logits
        with use_adapters(model, adapters=adapters), cache_adapter_tensors():
            with torch.inference_mode():
                assert_close(model(IDS).logits, expected, 1e-10)
                model.generate(IDS, max_new_tokens=3, do_sample=False)
            model(IDS, labels=IDS).loss.backward()
            with torch.no_grad():
                assert_close(model(IDS).logits, expected, 1e-10)
    assert any(parameter.grad is not None for parameter in trainable_parameters(model).values())


@pytest.mark.parametrize("method", KINDS)
def test_autocast_keeps_the_dtypes_of_the_base(method):
    model, base = adapted(method).float(), tiny_model("llama", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, of_base = model(IDS, labels=IDS), base(IDS, labels=IDS)
        assert output.logits.dtype == of_base.logits.dtype
        output.loss.backward()
    assert_close(output.logits.float(), model(IDS).logits, 0.05)
    for parameter in trainable_parameters(model).values():
        assert parameter.grad.dtype == parameter.dtype
        assert parameter.grad.isfinite().all()
