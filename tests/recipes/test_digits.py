"""Digits: the script of Lightning finds a rate, stops early and keeps the best adapter; the plain script runs too."""

import csv

import pytest
import torch

pytest.importorskip("lightning")


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_lightning(example, tmp_path):
    found = example("digits_lightning").main(str(tmp_path), max_epochs=4)
    assert found["0-4, base"] > 0.95
    assert found["0-4, LoRA switched off"] == found["0-4, base"]
    assert 1e-5 < found["learning rate"] < 1
    assert found["epochs"] == 4
    assert found["bytes of the adapter"] * 20 < found["bytes of the checkpoint"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert {"loss", "validation_loss", "validation_accuracy"} <= set(rows[0])
    losses = [float(row["validation_loss"]) for row in rows if row["validation_loss"]]
    assert found["best validation loss"] == min(losses) < losses[0]


def test_plain(example):
    script = example("digits_lora")
    found = script.main()
    assert found["5-9, base"] < 0.05 < 0.88 < found["5-9, with LoRA"]
