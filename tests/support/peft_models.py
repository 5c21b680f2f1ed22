"""Comparison with models of PEFT."""

import torch
from references import assert_close


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys()
    flat = [torch.cat([gradients[name].flatten() for name in sorted(ours)]) for gradients in (ours, theirs)]
    assert flat[1].norm() > 0
    assert_close(*flat)
