"""Thousands of damaged and hostile adapters: only our own errors come, and the model stays as it was.

`tests/unit/adapters/test_hostile_adapters.py` opens a small sample of them.
"""

import os

import pytest
import torch
from adapter_fuzz import Fuzzer
from tiny import tiny_model

from peftly import LoRA, attach, attached, load_adapter, save_adapter, use_adapters

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore:bias=")]

INPUTS = int(os.environ.get("PEFTLY_FUZZ_INPUTS", "10000"))


def test_mutated_adapters_raise_only_our_errors(tmp_path, capsys):
    fuzzer = Fuzzer(tmp_path, seed=int(os.environ.get("PEFTLY_FUZZ_SEED", "0")))
    grown = fuzzer.run(INPUTS)
    with capsys.disabled():
        print(f"\n{INPUTS} mutated adapters; the peak memory grew by {grown:.0f} MiB")
        for kind, count in fuzzer.outcomes.most_common():
            print(f"{count:6} {kind}")
    assert sum(fuzzer.outcomes.values()) == INPUTS + 1
    assert len(fuzzer.outcomes) >= 20
    assert grown < 200


def test_a_thousand_adapters_that_were_saved_together(tmp_path):
    model = tiny_model("llama", torch.float32)
    names = [f"adapter-{number}" for number in range(1000)]
    for seed, name in enumerate(names):
        attach(model, LoRA(rank=1, target_modules=("q_proj",)), name=name, seed=seed)
    save_adapter(model, tmp_path)
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path)
    assert list(attached(again)) == names
    ids = torch.tensor([[5, 6, 7]])
    for name in names[::100]:
        with use_adapters(again, name), use_adapters(model, name):
            assert torch.equal(again(ids).logits, model(ids).logits)
