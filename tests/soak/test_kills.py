"""A run that is killed at any moment leaves complete adapters only, and continues to the same bytes."""

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
RESUMED_KILLS = 100


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    labels = ["complaint", "no complaint"]
    file.write_text("".join(f'{{"text": "row {n}", "label": "{labels[n % 2]}"}}\n' for n in range(64)))
    return file


def start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "peftly", "train", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def lines(out):
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.soak
def test_a_run_that_is_killed_a_hundred_times_ends_with_the_same_bytes(tiny_llama_folder, rows, tmp_path):
    words = ["--base", tiny_llama_folder, "--data", rows, "--method", "lora", "--set", "method.dropout=0.2"]
    words += ["--batch-size", 4, "--epochs", 60, "--set", "train.checkpoint_steps=3"]
    assert start(*words, "--out", tmp_path / "whole").wait() == 0
    expected = (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    draw, killed, ended = random.Random(0), 0, 0
    while killed < RESUMED_KILLS:
        out = tmp_path / f"run-{ended}"
        while True:
            resumes = (out / "config.yaml").exists()
            process, before = start(*(("--resume", out) if resumes else (*words, "--out", out))), lines(out)
            while lines(out) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(4 * draw.random())  # the report at the end takes two seconds
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            if (out / "summary.json").exists() and not (out / "checkpoint.safetensors").exists():
                break
        assert (out / "adapter" / "adapter_model.safetensors").read_bytes() == expected
        assert lines(out) == lines(tmp_path / "whole")
        ended += 1


@pytest.mark.soak
def test_every_adapter_of_a_killed_run_loads(tiny_llama_folder, rows, tmp_path):
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    draw, loaded, killed = random.Random(0), 0, 0
    for attempt in range(KILLS):
        out = tmp_path / f"run-{attempt}"
        words = ["--base", tiny_llama_folder, "--data", rows, "--method", "lora", "--out", out]
        process = start(*words, "--batch-size", 1, "--epochs", 50, "--set", "train.save_steps=1")
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
