"""A new method is one file and one entry of the registry: everything else finds it there."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from commands import peftly_here
from matrix import Cell, adapted_cell, cells
from matrix_properties import check, checks_of
from references import assert_close
from tiny import TASKS, perturb, tiny_model

from peftly import METHODS, attach, merge, trainable_parameters
from peftly.methods import Method

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
"""Toy method: the output of each linear layer is multiplied by one trained number, `exp(log_scale)`."""

from typing import ClassVar, Literal

import torch
from torch import nn

from peftly.injection import ALL_LINEAR, LayerAdapter, adapted_layers, add_layer_adapter, device_of, find_targets
from peftly.methods.method import MethodConfig, OwnFormat


class Toy(MethodConfig):
    """Settings of the toy method."""

    name: Literal["toy"] = "toy"
    target_modules: str | tuple[str, ...] = ALL_LINEAR


class ToyLayer(LayerAdapter):
    """Scale of the output of one layer."""

    def __init__(self, layer):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1, device=device_of(layer)))

    def run(self, layer, inner, x, *args, **kwargs):
        output = inner(x, *args, **kwargs)
        return output * self.log_scale.exp().to(output.dtype)

    def merge_into(self, layer):
        for parameter in layer.parameters(recurse=False):
            parameter.mul_(self.log_scale.exp())


class ToyAdapter(OwnFormat):
    """Scales of the target layers of a model."""

    settings: ClassVar[type[MethodConfig]] = Toy
    peft_types: ClassVar[tuple[str, ...]] = ("PEFTLY_TOY",)
    peft_limitation: ClassVar[str] = "PEFT has no toys"

    @classmethod
    def attach(cls, model, config, name, setup):
        for layer in find_targets(model, config.target_modules).values():
            add_layer_adapter(model, layer, name, ToyLayer(layer))
        return cls(model, config, name)

    def parameters(self):
        return {
            f"base_model.model.{path}.log_scale": adapter.log_scale
            for path, _, adapter in adapted_layers(self.model, self.name)
            if isinstance(adapter, ToyLayer)
        }
'''
CELLS = [Cell("toy", "causal_lm", "llama"), Cell("toy", "sequence_classification", "bert")]


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    """The module of the toy method, with its entry in the registry."""
    file = tmp_path_factory.mktemp("methods") / "toy.py"
    file.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("toy_method", file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "toy_method", module)
        spec.loader.exec_module(module)
        entry = Method(
            module.ToyAdapter,
            module.Toy,
            summary="one factor for each linear layer",
            paper="arXiv:0000.00000",
            learning_rate=1e-2,
            mergeable=True,
            identity_at_init=True,
        )
        patch.setitem(METHODS, "toy", entry)
        yield module
        adapted_cell.cache_clear()


@pytest.mark.parametrize(("cell", "name"), checks_of(CELLS))
def test_it_has_every_property_of_the_matrix(cell, name, tmp_path):
    check(cell, name, tmp_path)


def test_it_is_in_the_matrix():
    own = [cell for cell in cells() if cell.method == "toy"]
    assert {cell.task for cell in own} == TASKS.keys()
    assert set(CELLS) <= set(own)
    assert not any(cell.reason_left_out for cell in own)


def test_it_can_be_merged(toy):
    model, ids = attach(tiny_model("llama"), toy.Toy()), torch.tensor([[5, 17, 33, 60]])
    perturb(trainable_parameters(model).values())
    expected = model(ids).logits
    assert_close(merge(model)(ids).logits, expected, 1e-6)


def test_the_table_of_the_docs_shows_it(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    methods = importlib.import_module("methods")
    page = methods.PAGE.read_text(encoding="utf-8")
    line = {"base": "minilm-l6", "data": "tweets", "method": "toy", "learning_rate": 0.01, "seed": 0}
    line |= {"accuracy": 0.75, "parameters": 12, "bytes": 3456, "seconds": 7.0}
    shown = methods.with_table(page, [*methods.read(), line])
    assert "| `toy` | 75.0 | 1 | 0.01 | 12 | 3,456 | 7 |" in shown.splitlines()


def test_the_command_line_lists_trains_and_uses_it(tiny_llama_folder, tmp_path):
    listed = peftly_here("methods")
    assert listed.code == 0
    assert "toy" in listed.out
    assert "arXiv:0000.00000" in listed.out
    data, run = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text('{"prompt": "say it:", "completion": " yes"}\n' * 4, encoding="utf-8")
    flags = ["--base", tiny_llama_folder, "--data", data, "--set", "data.validation_fraction=0", "--epochs", 1]
    trained = peftly_here("train", *flags, "--method", "toy", "--out", run)
    assert trained.code == 0, trained.err
    assert "PEFTLY_TOY" in (run / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    answer = peftly_here("generate", run, "--prompt", "say it:", "--max-new-tokens", 2)
    assert answer.code == 0, answer.err
