"""QLoRA with the same weights in PEFT and here: outputs and gradients over the same base in 4 bits.

Not in 8 bits: there bitsandbytes rounds a layer's input too, which is left out here so that rows stay apart.
"""

import peft
import pytest
import torch
from quantized import quantized
from references import assert_close
from tiny import perturb, random_token_ids

from peftly import DoRA, LoRA, attach, attached, save_adapter, trainable_parameters

IDS = torch.tensor(random_token_ids([9]))
# PEFT goes through bitsandbytes' own kernel, which on a CPU needs rows of whole blocks.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("method", [LoRA(rank=4), DoRA(rank=4)], ids=lambda method: method.name)
def test_outputs_and_gradients(method, kind, tmp_path):
    model = attach(quantized("llama", kind, **WIDE), method)
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(quantized("llama", kind, **WIDE), tmp_path / "adapter", is_trainable=True)
    their_parameters = {
        name.replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector"): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    parameters = attached(model)["default"].parameters()
    assert their_parameters.keys() == parameters.keys()
    theirs.train()  # or bitsandbytes repacks where it can
    expected, found = theirs(IDS, labels=IDS), model(IDS, labels=IDS)
    assert_close(found.logits, expected.logits, 1e-5)
    gradients = torch.autograd.grad(found.loss, parameters.values())
    their_gradients = torch.autograd.grad(expected.loss, [their_parameters[name] for name in parameters])
    for own, other in zip(gradients, their_gradients, strict=True):
        assert_close(own, other, 1e-4)
