"""The examples run as they stand, and show what they say."""

import importlib.util
from pathlib import Path

import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    try:
        return module.main()
    finally:
        torch.set_num_threads(threads)


def test_every_example_is_tested_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"digits_lora"}


def test_digits(capsys):
    found = run("digits_lora")
    assert found["0-4, base"] > 0.97
    assert found["5-9, base"] < 0.05
    assert found["5-9, with LoRA"] > 0.88
    assert found["0-4, LoRA switched off"] == found["0-4, base"]
    assert abs(found["5-9, merged"] - found["5-9, with LoRA"]) < 0.005
    assert found["share of parameters trained"] < 1 / 30
    assert "the base is the same, bit for bit" in capsys.readouterr().out
