"""`peftly train --resume`: a run that was killed, or stopped with Ctrl-C, goes on as if it had not been."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from commands import command, environment

SETTINGS = ["--method", "lora", "--batch-size", 4, "--epochs", 8, "--set", "train.checkpoint_steps=1"]
SETTINGS += ["--set", "method.dropout=0.2", "--set", "data.validation_fraction=0.2"]


def bytes_of(run, name="adapter"):
    return (run / name / "adapter_model.safetensors").read_bytes()


def steps_in(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def rows(tweets, tiny_llama_folder):
    return ["train", "--base", tiny_llama_folder, "--data", tweets]


def stopped(words, out, how):
    """Send a signal to a run once it has written a checkpoint and taken a step more; return its exit code and words."""
    process = subprocess.Popen(
        command(*words, "--out", out), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (out / "checkpoint.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(*rows, *SETTINGS, "--out", out), env=environment(), check=True, capture_output=True)
    return out


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_to_the_byte(peftly, rows, whole, how, tmp_path):
    code, errors = stopped([*rows, *SETTINGS], tmp_path / "run", how)
    if how == signal.SIGINT:
        assert code == 130
        assert f"go on with: peftly train --resume {tmp_path / 'run'}" in errors.replace(".venv/bin/", "")
    else:
        assert code == -signal.SIGKILL
    moved = shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    refused = peftly(*rows, *SETTINGS, "--out", moved)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "or go on with it: " in refused.err
    done = peftly("train", "--resume", moved)
    assert done.code == 0, done.err
    assert "going on after step" in done.out
    assert bytes_of(moved) == bytes_of(whole)
    assert steps_in(moved) == steps_in(whole)
    names = [sorted(file.name for file in run.iterdir()) for run in (moved, whole)]
    assert names[0] == names[1]
    again = peftly("train", "--resume", moved)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "has come to its end" in again.err


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(peftly, rows, whole, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(whole / "config.yaml", out)
    (out / "metrics.jsonl").write_text('{"kind": "step"')
    for name in (".checkpoint.safetensors-x", ".adapter-x", ".replaced-x"):  # as kills may leave them
        (out / name).mkdir()
        (out / name / "half").touch()
    assert peftly("train", "--resume", out).code == 0
    assert bytes_of(out) == bytes_of(whole)
    assert steps_in(out) == steps_in(whole)
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in whole.iterdir())


def test_runs_side_by_side(peftly, rows, tmp_path):
    words = [*rows, *SETTINGS, "--ensemble", 2]
    assert peftly(*words, "--out", tmp_path / "whole").code == 0
    stopped(words, tmp_path / "run", signal.SIGKILL)
    done = peftly("train", "--resume", tmp_path / "run")
    assert done.code == 0, done.err
    for member in ("member_1", "member_2"):
        assert bytes_of(tmp_path / "run" / member) == bytes_of(tmp_path / "whole" / member)
    names = [sorted(file.name for file in (tmp_path / run).rglob("*")) for run in ("run", "whole")]
    assert names[0] == names[1]


def test_one_of_several_runs_does_not_go_on_alone(peftly, rows, tmp_path):
    words = [*rows, *SETTINGS, "--ensemble", 2]
    stopped(words, tmp_path / "run", signal.SIGKILL)
    before = (tmp_path / "run" / "member_1" / "metrics.jsonl").read_bytes()
    refused = peftly("train", "--resume", tmp_path / "run" / "member_1")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"go on together: peftly train --resume {tmp_path / 'run'}" in refused.err.replace(".venv/bin/", "")
    assert (tmp_path / "run" / "member_1" / "metrics.jsonl").read_bytes() == before
    # As if it had been killed before its parts were begun.
    shutil.rmtree(tmp_path / "run" / "member_1")
    shutil.rmtree(tmp_path / "run" / "member_2")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    done = peftly("train", "--resume", tmp_path / "run")
    assert done.code == 0, done.err


def test_what_cannot_go_on(peftly, rows, whole, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(whole / "config.yaml", project)
    (project / "notes.md").write_text("mine")
    for words, said in [
        ([tmp_path / "none"], "there is no run in"),
        ([project], "there is no run in"),
        ([whole, "--epochs", 4], "--resume takes no other options"),
        ([whole, "--seed", 0], "--resume takes no other options"),
        ([whole, "--set", "train.seed=1"], "--resume takes no other options"),
        ([whole, "--overwrite"], "--resume takes no other options"),
    ]:
        refused = peftly("train", "--resume", *words)
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert said in refused.err


def test_rows_that_have_changed_since_are_refused_and_nothing_is_lost(peftly, rows, tweets, tmp_path):
    data = shutil.copy(tweets, tmp_path / "rows.jsonl")
    out = tmp_path / "run"
    words = [data if word == tweets else word for word in rows]
    stopped([*words, *SETTINGS], out, signal.SIGKILL)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with data.open("a") as file:
        file.write('{"text": "one more", "label": "complaint"}\n')
    refused = peftly("train", "--resume", out)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "the checkpoint is of a run on other rows" in refused.err
    after = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert after == before
