"""Norms, scale and fused layer of DoRA, compared with their formulas."""

import pytest
import torch
from random_tensors import random_double
from torch.nn import functional as F

from peftly.kernels.low_rank_linear import low_rank_linear
from peftly.methods.dora import dora_scale, row_norms
from peftly.methods.low_rank import lora_delta


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_row_norms_equal_the_norms_of_the_updated_weight(dtype):
    weight, a, b = random_double(7, 30, seed=1).to(dtype), random_double(4, 30, seed=2), random_double(7, 4, seed=3)
    expected = (weight.double() + lora_delta(a, b, 0.7)).norm(dim=1)
    bound = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 5e-3}[dtype]
    torch.testing.assert_close(row_norms(weight, a, b, 0.7).double(), expected, rtol=bound, atol=0)


def test_the_norm_of_a_row_that_cancels_is_0():
    weight = torch.ones(1, 2)
    assert row_norms(weight, torch.ones(1, 2), -torch.ones(1, 1), 1.0).item() == 0.0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
def test_the_fused_layer_equals_the_formula(bias, shape):
    x, a, b, m = (
        random_double(*shape),
        random_double(4, 6, seed=1),
        random_double(7, 4, seed=2),
        random_double(7, seed=5),
    )
    weight, offset = random_double(7, 6, seed=3).detach(), random_double(7, seed=4) if bias else None
    fused = low_rank_linear(x, weight, offset, a, b, 0.7, scale=dora_scale(weight, a, b, 0.7, m))
    updated = weight + lora_delta(a, b, 0.7)
    plain = F.linear(x, m[:, None] * updated / updated.norm(dim=1, keepdim=True).detach(), offset)
    torch.testing.assert_close(fused, plain)
    seed, inputs = torch.randn_like(plain), (x, a, b, m, *([offset] if bias else []))
    for ours, theirs in zip(
        torch.autograd.grad(fused, inputs, seed), torch.autograd.grad(plain, inputs, seed), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
