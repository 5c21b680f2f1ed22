"""The mathematics of DoRA, piece by piece."""

import pytest
import torch
from lora_numbers import numbers
from torch.nn import functional as F

from peftly.kernels.low_rank_linear import low_rank_linear
from peftly.methods.dora import dora_scale, row_lengths
from peftly.methods.low_rank import lora_delta


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lengths_are_those_of_the_changed_rows(dtype):
    weight, a, b = numbers(7, 30, seed=1).to(dtype), numbers(4, 30, seed=2), numbers(7, 4, seed=3)
    expected = (weight.double() + lora_delta(a, b, 0.7)).norm(dim=1)
    bound = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    torch.testing.assert_close(row_lengths(weight, a, b, 0.7).double(), expected, rtol=bound, atol=0)


def test_a_row_that_cancels_has_no_length():
    weight = torch.ones(1, 2)
    assert row_lengths(weight, torch.ones(1, 2), -torch.ones(1, 1), 1.0).item() == 0.0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
def test_the_fused_layer_equals_the_formula(bias, shape):
    x, a, b, m = numbers(*shape), numbers(4, 6, seed=1), numbers(7, 4, seed=2), numbers(7, seed=5)
    weight, offset = numbers(7, 6, seed=3).detach(), numbers(7, seed=4) if bias else None
    fused = low_rank_linear(x, weight, offset, a, b, 0.7, scale=dora_scale(weight, a, b, 0.7, m))
    changed = weight + lora_delta(a, b, 0.7)
    plain = F.linear(x, m[:, None] * changed / changed.norm(dim=1, keepdim=True).detach(), offset)
    torch.testing.assert_close(fused, plain)
    seed, inputs = torch.randn_like(plain), (x, a, b, m, *([offset] if bias else []))
    for ours, theirs in zip(
        torch.autograd.grad(fused, inputs, seed), torch.autograd.grad(plain, inputs, seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
