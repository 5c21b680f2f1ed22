"""A run that is killed at any moment leaves whole adapters or none: every folder that looks like one loads."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from peftly import detach, load_adapter, load_base

KILLS = 30


@pytest.mark.soak
def test_every_adapter_of_a_killed_run_loads(tiny_llama_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(f'{{"text": "row {n}", "label": "{"complaint" if n % 2 else "no complaint"}"}}\n' for n in range(64))
    )
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    draw, loaded, killed = random.Random(0), 0, 0
    for attempt in range(KILLS):
        out = tmp_path / f"run-{attempt}"
        words = ["train", "--base", tiny_llama_folder, "--data", rows, "--method", "lora", "--out", out]
        words += ["--batch-size", 1, "--epochs", 50, "--set", "train.save_every=1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "peftly", *map(str, words)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(out.glob("step-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() / 2)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for folder in out.glob("step-*"):
            load_adapter(model, folder)
            assert all(bool(torch.isfinite(p).all()) for n, p in model.named_parameters() if "peftly" in n)
            detach(model)
            loaded += 1
    assert killed == KILLS
    assert loaded >= KILLS
