"""A new method is one file and one entry of the registry: everything else finds it there.

The method is the example of docs/add_a_method.md.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from commands import peftly_here
from matrix import Cell, adapted_cell, cells
from matrix_properties import check, checks_of
from page_blocks import blocks
from references import assert_close
from tiny import TASKS, perturb, tiny_model

from peftly import METHODS, attach, merge, trainable_parameters
from peftly.methods import Method

ROOT = Path(__file__).resolve().parents[2]
SOURCE = next(
    block.code
    for block in blocks((ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8"))
    if "class RescaleAdapter" in block.code
)
CELLS = [Cell("rescale", "causal_lm", "llama"), Cell("rescale", "sequence_classification", "bert")]


@pytest.fixture(scope="module", autouse=True)
def rescale(tmp_path_factory):
    """The module of the method, with its entry in the registry."""
    file = tmp_path_factory.mktemp("methods") / "rescale.py"
    file.write_text(SOURCE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("rescale_method", file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rescale_method", module)
        spec.loader.exec_module(module)
        entry = Method(
            module.RescaleAdapter,
            module.Rescale,
            summary="one factor for each output of linear layers",
            paper="arXiv:0000.00000",
            learning_rate=1e-2,
            mergeable=True,
            identity_at_init=True,
        )
        patch.setitem(METHODS, "rescale", entry)
        yield module
        adapted_cell.cache_clear()


@pytest.mark.parametrize(("cell", "name"), checks_of(CELLS))
def test_it_has_every_property_of_the_matrix(cell, name, tmp_path):
    check(cell, name, tmp_path)


def test_it_is_in_the_matrix():
    own = [cell for cell in cells() if cell.method == "rescale"]
    assert {cell.task for cell in own} == TASKS.keys()
    assert set(CELLS) <= set(own)
    assert not any(cell.reason_left_out for cell in own)


def test_it_can_be_merged(rescale):
    model, ids = attach(tiny_model("llama"), rescale.Rescale()), torch.tensor([[5, 17, 33, 60]])
    perturb(trainable_parameters(model).values())
    expected = model(ids).logits
    assert_close(merge(model)(ids).logits, expected, 1e-6)


def test_the_table_of_the_docs_shows_it(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    methods = importlib.import_module("methods")
    page = methods.PAGE.read_text(encoding="utf-8")
    line = {"base": "minilm-l6", "data": "tweets", "method": "rescale", "learning_rate": 0.01, "seed": 0}
    line |= {"accuracy": 0.75, "parameters": 12, "bytes": 3456, "seconds": 7.0}
    shown = methods.with_table(page, [*methods.read(), line])
    assert "| `rescale` | 75.0 | 1 | 0.01 | 12 | 3,456 | 7 |" in shown.splitlines()


def test_the_command_line_lists_trains_and_uses_it(tiny_llama_folder, tmp_path):
    listed = peftly_here("methods")
    assert listed.code == 0
    assert "rescale" in listed.out
    assert "arXiv:0000.00000" in listed.out
    data, run = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text('{"prompt": "say it:", "completion": " yes"}\n' * 4, encoding="utf-8")
    flags = ["--base", tiny_llama_folder, "--data", data, "--set", "data.validation_fraction=0", "--epochs", 1]
    trained = peftly_here("train", *flags, "--method", "rescale", "--out", run)
    assert trained.code == 0, trained.err
    assert "PEFTLY_RESCALE" in (run / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    answer = peftly_here("generate", run, "--prompt", "say it:", "--max-new-tokens", 2)
    assert answer.code == 0, answer.err
