"""`peftly train --resume`: a run that was killed, or interrupted with Ctrl-C, continues as if nothing had happened."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import command, environment, peftly_here

SETTINGS = ["--method", "lora", "--batch-size", 4, "--epochs", 6, "--set", "train.checkpoint_steps=1"]
SETTINGS += ["--set", "method.dropout=0.2", "--set", "data.validation_fraction=0.2"]


def bytes_of(run, name="adapter"):
    return (run / name / "adapter_model.safetensors").read_bytes()


def steps_in(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def rows(tweets, tiny_llama_folder):
    return ["train", "--base", tiny_llama_folder, "--data", tweets]


def stopped(arguments, out, how):
    """Send a signal to a run after its first checkpoint; return its exit code and its error output."""
    process = subprocess.Popen(
        command(*arguments, "--out", out), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(out.glob("checkpoint-*.safetensors")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory):
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    done = peftly_here(*rows, *SETTINGS, "--out", out)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def killed_run(rows, tmp_path_factory):
    """A run that was killed after its first checkpoint."""
    out = tmp_path_factory.mktemp("killed") / "run"
    code, _ = stopped([*rows, *SETTINGS], out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    return out


@pytest.fixture
def killed(killed_run, tmp_path):
    """A copy of the killed run in another folder."""
    return Path(shutil.copytree(killed_run, tmp_path / "killed"))


@pytest.fixture(scope="module")
def killed_ensemble(rows, tmp_path_factory):
    """An ensemble that was killed after its first checkpoint."""
    out = tmp_path_factory.mktemp("killed") / "ensemble"
    code, _ = stopped([*rows, *SETTINGS, "--ensemble", 2], out, signal.SIGKILL)
    assert code == -signal.SIGKILL
    return out


@pytest.fixture
def interrupted(rows, tmp_path):
    """A run that Ctrl-C interrupted, moved to another folder."""
    code, errors = stopped([*rows, *SETTINGS], tmp_path / "run", signal.SIGINT)
    assert code == 130
    assert re.search(rf"continue with: \S*peftly train --resume {tmp_path / 'run'}$", errors, re.MULTILINE)
    return Path(shutil.move(tmp_path / "run", tmp_path / "elsewhere"))


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_stopped_run_continues_to_the_same_bytes(peftly, rows, whole, how, request):
    moved = request.getfixturevalue(how)
    refused = peftly(*rows, *SETTINGS, "--out", moved)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "or continue it: " in refused.err
    done = peftly("train", "--resume", moved)
    assert done.code == 0, done.err
    assert "continuing after step" in done.out
    assert bytes_of(moved) == bytes_of(whole)
    assert steps_in(moved) == steps_in(whole)
    names = [sorted(file.name for file in run.iterdir()) for run in (moved, whole)]
    assert names[0] == names[1]
    again = peftly("train", "--resume", moved)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "is finished" in again.err


def test_a_stopped_run_continues_over_its_moved_base(peftly, whole, killed, tiny_llama_folder, tmp_path):
    config = (killed / "config.yaml").read_text()
    (killed / "config.yaml").write_text(config.replace(str(tiny_llama_folder), str(tmp_path / "before")))
    failed = peftly("train", "--resume", killed)
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert "before" in failed.err
    done = peftly("train", "--resume", killed, "--base", tiny_llama_folder)
    assert done.code == 0, done.err
    assert bytes_of(killed) == bytes_of(whole)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(peftly, rows, whole, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.yaml", "data.json"):
        shutil.copy(whole / name, out)
    (out / ".peftly.json").write_text('{"kind": "a run", "finished": false}')
    (out / "metrics.jsonl").write_text('{"kind": "step"')
    (out / ".peftly.lock").write_text('{"process": 1, "machine": "elsewhere"}')  # of a process that has died
    for folder in (out / ".peftly-new-0", out / "adapter" / ".peftly-new-1"):
        folder.mkdir(parents=True)
        (folder / "half").touch()
    assert peftly("train", "--resume", out).code == 0
    assert bytes_of(out) == bytes_of(whole)
    assert steps_in(out) == steps_in(whole)
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in whole.iterdir())


@pytest.mark.soak
def test_runs_side_by_side(peftly, rows, killed_ensemble, tmp_path):
    assert peftly(*rows, *SETTINGS, "--ensemble", 2, "--out", tmp_path / "whole").code == 0
    shutil.copytree(killed_ensemble, tmp_path / "run")
    done = peftly("train", "--resume", tmp_path / "run")
    assert done.code == 0, done.err
    for member in ("member_1", "member_2"):
        assert bytes_of(tmp_path / "run" / member) == bytes_of(tmp_path / "whole" / member)
    names = [sorted(file.name for file in (tmp_path / run).rglob("*")) for run in ("run", "whole")]
    assert names[0] == names[1]


def test_one_of_several_runs_does_not_continue_alone(peftly, killed_ensemble, tmp_path):
    shutil.copytree(killed_ensemble, tmp_path / "run")
    before = (tmp_path / "run" / "member_1" / "metrics.jsonl").read_bytes()
    refused = peftly("train", "--resume", tmp_path / "run" / "member_1")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert re.search(rf"continue together: \S*peftly train --resume {tmp_path / 'run'}$", refused.err, re.MULTILINE)
    assert (tmp_path / "run" / "member_1" / "metrics.jsonl").read_bytes() == before


def test_runs_that_cannot_continue(peftly, rows, whole, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(whole / "config.yaml", project)
    (project / "notes.md").write_text("mine")
    for words, said in [
        ([tmp_path / "none"], "holds no run to continue"),
        ([project], "holds no run to continue"),
        ([whole, "--epochs", 4], "--resume takes no other options"),
        ([whole, "--seed", 0], "--resume takes no other options"),
        ([whole, "--set", "train.seed=1"], "--resume takes no other options"),
        ([whole, "--overwrite"], "--resume takes no other options"),
    ]:
        refused = peftly("train", "--resume", *words)
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
        assert said in refused.err


def test_other_examples_than_those_of_the_checkpoint_are_refused_and_nothing_is_lost(peftly, tweets, killed, tmp_path):
    data, config = shutil.copy(tweets, tmp_path / "rows.jsonl"), killed / "config.yaml"
    config.write_text(config.read_text().replace(str(tweets), str(data)))
    with data.open("a") as file:
        file.write('{"text": "one more", "label": "complaint"}\n')
    (killed / ".peftly.lock").unlink()  # the killed process left it
    before = {file: file.read_bytes() for file in killed.rglob("*") if file.is_file()}
    refused = peftly("train", "--resume", killed)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "the checkpoint is of a run on other" in refused.err
    after = {file: file.read_bytes() for file in killed.rglob("*") if file.is_file()}
    assert after == before
