"""Every method has the same results on a base in memory and on disk as on a base on one device."""

import pytest
import torch
from references import DEFAULTS, assert_close
from tiny import perturb

from peftly import METHODS, Full, LoRA, attach, detach, load_base, merge, trainable_parameters
from peftly.errors import BaseModelError, MethodError

DEVICES = {
    "model.embed_tokens": "cpu",
    "lm_head": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
}
IDS = torch.arange(3, 15).view(2, 6)
METHODS_OF_A_DECODER = [name for name in METHODS if name not in ("p_tuning_v2", "bitfit")]


@pytest.fixture(scope="module")
def spread(tiny_llama_folder):
    model = load_base(str(tiny_llama_folder), dtype="float32", device_map=DEVICES).model
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    return model


@pytest.fixture(scope="module")
def whole(tiny_llama_folder):
    return load_base(str(tiny_llama_folder), dtype="float32").model


def logits_and_gradients(model, method):
    attach(model, METHODS[method].config(**DEFAULTS[method]))
    trained = trainable_parameters(model)
    assert {parameter.device.type for parameter in trained.values()} == {"cpu"}
    perturb(trained.values())
    output = model(IDS, labels=IDS)
    gradients = torch.autograd.grad(output.loss, trained.values())
    detach(model)
    return output.logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])


@pytest.mark.parametrize("method", METHODS_OF_A_DECODER)
def test_every_method(spread, whole, method):
    before = sorted(vars(spread.model.layers[1].mlp.up_proj))
    for found, expected in zip(*(logits_and_gradients(model, method) for model in (spread, whole)), strict=True):
        assert_close(found, expected, 1e-6)
    assert sorted(vars(spread.model.layers[1].mlp.up_proj)) == before


@pytest.mark.parametrize("method", [LoRA(), Full()], ids=lambda method: method.name)
def test_a_merge_into_weights_on_disk_is_refused(spread, method):
    attach(spread, method)
    with pytest.raises(MethodError, match=r"layers\.1\.self_attn\.q_proj is on disk: open the base without"):
        merge(spread)
    detach(spread)


def test_auto_on_one_device_is_that_device(tiny_llama_folder, whole):
    model = load_base(str(tiny_llama_folder), dtype="float32", device_map="auto").model
    assert torch.equal(model(IDS.to(model.device)).logits.cpu(), whole(IDS).logits)


def test_impossible_device_maps_are_refused(tiny_llama_folder):
    for settings, message in (
        ({"device_map": "auto", "device": "cpu"}, "device='cpu' is for the whole base and device_map for its parts"),
        ({"device_map": {**DEVICES, "model.embed_tokens": "disk"}}, "leaves the embeddings of .* waiting on disk"),
        ({"device_map": {**DEVICES, "model.norm": "moon"}}, "cannot be opened"),
        ({"device_map": {**DEVICES, "model.layer.0": "cpu"}}, r"do not match any .*'model.layer.0'"),
        ({"device_map": "fast"}, "'fast' is not one of auto, balanced"),
        ({"device_map": DEVICES, "quantization": "nf4"}, "quantised layers cannot be offloaded to cpu"),
    ):
        with pytest.raises(BaseModelError, match=message):
            load_base(str(tiny_llama_folder), **settings)
