"""The tolerance of a merge follows the rounding in fp32 that is measured on the adapted model."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import perturb, tiny_model

from peftly import LoRA, attach, merge, trainable_parameters
from peftly.merging.parity import Parity, logits_of, relative_difference
from peftly.merging.rounding import rounding_in_fp32


@pytest.mark.parametrize(("rank", "scale"), [(4, 0.1), (256, 1.0)])
def test_a_merge_differs_by_less_than_the_measured_rounding_explains(rank, scale):
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=rank))
    perturb(trainable_parameters(model).values(), scale)
    samples = [SimpleNamespace(inputs={"input_ids": torch.arange(3 + shift, 23 + shift).tolist()}) for shift in (0, 40)]
    before = logits_of(model, samples)
    rounding = rounding_in_fp32(model, samples, before)
    exact = logits_of(copy.deepcopy(model).double(), samples)
    merging = relative_difference(logits_of(merge(model), samples), before)
    assert merging < 4 * rounding
    assert rounding < 20 * relative_difference(before, exact), "the margin is no room to hide in"


@pytest.mark.parametrize(
    ("rounding", "merging", "complains"), [(0, 9e-6, 0), (0, 2e-5, 1), (2e-5, 6e-5, 0), (2e-5, 9e-5, 1)]
)
def test_the_complaint_compares_with_the_rounding_in_fp32(rounding, merging, complains):
    facts = {"source": "texts", "texts": 1, "dtype": "float32", "largest": 0, "mean": 0, "rounding": 0, "files": 0}
    counts = {"agreeing": 1, "choices": 1, "same_texts": 0, "continuations": 0, "gap": None, "perplexity": None}
    parity = Parity(**facts, **counts, relative=merging, merging=merging, fp32_rounding=rounding)
    assert (parity.complaint is not None) == bool(complains)
