"""An error or a signal ends a run in several processes with one line."""

import signal
import time

import pytest
from commands import command, environment
from launches import ended, launch


@pytest.mark.soak
def test_an_error_of_all_processes_is_printed_once(tmp_path):
    ends = ended(launch(command("train", "--out", tmp_path, "--set", "train.rate=1"), 4, **environment()))
    assert [code for code, *_ in ends] == [2, 2, 2, 2]
    assert "".join(error for *_, error in ends).count("error: ") == 1
    assert not any(out for _, out, _ in ends)
    assert not any(tmp_path.iterdir())


@pytest.mark.soak
def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny_llama_folder, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text('{"text": "late again", "label": "complaint"}\n{"text": "great", "label": "praise"}\n' * 8)
    options = ("--base", tiny_llama_folder, "--data", rows, "--method", "lora", "--epochs", 500, "--batch-size", 1)
    processes = launch(command("train", *options, "--out", out), **environment())
    while not (out / "metrics.jsonl").exists() and processes[0].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    (code, _, error), (other_code, _, other_error) = ended(processes)
    assert (code, other_code) == (143, 143)
    assert "stopped by SIGTERM; stopped at step" in error
    assert f"train --resume {out}" in error
    assert error.count("\n") == 1
    assert not other_error
    assert list(out.glob("checkpoint-*.safetensors"))
