"""Fused kernels take inputs of any memory layout, and return tensors that may be changed in place."""

import pytest
import torch
from torch.nn import functional as F

from peftly.kernels import low_rank_linear
from peftly.methods.adapter import add_bottleneck, bottleneck

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


INPUTS = {
    "vector": random(4),
    "rows": random(3, 4),
    "batch": random(2, 3, 4),
    "transposed": random(3, 2, 4).transpose(0, 1),
    "channels last": random(2, 4, 3).transpose(1, 2),
    "expanded": random(1, 3, 4).expand(2, 3, 4),
    "slices": random(2, 3, 8)[..., ::2],
    "permuted": random(4, 2, 3, 4).permute(1, 2, 0, 3),
    "empty": random(0, 3, 4),
}


@pytest.mark.parametrize("with_scale", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_low_rank_linear(name, with_scale):
    x = INPUTS[name].clone(memory_format=torch.preserve_format).requires_grad_()
    weight, bias, lora_a, lora_b = random(5, 4), random(5), random(2, 4).requires_grad_(), random(5, 2).requires_grad_()
    scale = random(5).requires_grad_() if with_scale else None
    inputs = [x, lora_a, lora_b, *([scale] if with_scale else [])]
    output = low_rank_linear(x, weight, bias, lora_a, lora_b, 2.0, scale=scale)
    expected = F.linear(x, weight + 2 * lora_b @ lora_a) * (1 if scale is None else scale) + bias
    compare(output, expected, inputs)


PAIRS = [(name, after) for name, h in INPUTS.items() for after in INPUTS if INPUTS[after].shape == h.shape]


@pytest.mark.parametrize(("name", "after"), [*((name, None) for name in INPUTS), *PAIRS])
def test_bottleneck(name, after):
    h = INPUTS[name].clone(memory_format=torch.preserve_format).requires_grad_()
    output = None if after is None else INPUTS[after].clone(memory_format=torch.preserve_format).requires_grad_()
    weights = [weight.requires_grad_() for weight in (random(2, 4), random(2), random(4, 2), random(4))]
    found = add_bottleneck(output, h, weights, F.gelu, 0.5)
    expected = (h if output is None else output) + 0.5 * bottleneck(h, *weights, F.gelu)
    compare(found, expected, [h, *weights, *([] if output is None else [output])])


def compare(found, expected, inputs):
    torch.testing.assert_close(found, expected)
    gradient = random(*expected.shape)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, gradient, retain_graph=True), torch.autograd.grad(expected, inputs, gradient)
    )
    found.relu_()  # as `nn.ReLU(inplace=True)` does
