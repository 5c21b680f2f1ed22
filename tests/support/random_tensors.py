"""Random tensors for gradient checks."""

import torch


def random_double(*shape, seed=0):
    """Return a tensor from N(0, 1) in float64 that requires a gradient."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
