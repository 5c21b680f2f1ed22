"""`peftly train` in several processes: one line of output, the weights of one process, and a process that dies."""

import subprocess
import sys

import pytest
import torch
from commands import command, environment, peftly_here
from launches import ended, launch
from safetensors.torch import load_file

from peftly.utils import program


@pytest.fixture(scope="module")
def options(tiny_llama_folder, tweets):
    """The options of a run that trains LoRA and a soft prompt together, with 8 examples in a step.

    In the last step of an epoch there is one example, and one of two processes has none.
    """
    settings = ("dtype=float32", "method=[{name: lora}, {name: prompt_tuning}]", "data.validation_fraction=0.175")
    chosen = ["--base", tiny_llama_folder, "--data", tweets, "--epochs", 2, "--target", "label"]
    return [*chosen, *(text for setting in settings for text in ("--set", setting))]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """The output of that run in one process, and its weights."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run = peftly_here("train", *options, "--batch-size", 8, "--out", out)
    assert run.code == 0, run.err
    return run.out, weights(out)


def weights(run):
    """Return all trained weights of a run by name, from its adapters."""
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted((run / "adapter").rglob("adapter_model.safetensors"))
        for name, tensor in load_file(file).items()
    }


def difference(found, expected):
    """Return the relative difference of the weights of each method."""
    assert found.keys() == expected.keys()
    assert len({name.split("/")[0] for name in expected}) == 2
    by_method = {}
    for name in expected:
        by_method.setdefault(name.split("/")[0], []).append(name)
    return max(
        float(
            torch.cat([(found[name] - expected[name]).double().flatten() for name in names]).norm()
            / torch.cat([expected[name].double().flatten() for name in names]).norm()
        )
        for names in by_method.values()
    )


def test_torchrun_prints_once_and_gives_the_weights_of_one_process(options, alone, tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "peftly"]
    arguments = ["train", *options, "--batch-size", 4, "--out", tmp_path / "new" / "run"]
    run = subprocess.run([*start, *map(str, arguments)], env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    output, expected = alone
    lines = run.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("step ")] == [
        line.split("  ")[0] for line in output.splitlines() if line.startswith("step ")
    ]
    assert sum(line.startswith("base: ") for line in lines) == sum(line.startswith("report: ") for line in lines) == 1
    assert not run.stderr
    assert difference(weights(tmp_path / "new" / "run"), expected) < 1e-7


@pytest.mark.soak
def test_a_dead_process_ends_the_others_and_the_run_continues_in_one(options, alone, peftly, tmp_path):
    out = tmp_path / "run"
    processes = launch(command("train", *options, "--batch-size", 4, "--out", out), **environment())
    while processes[0].stdout.readline()[:5] != "step ":  # the end of the output if there is no step
        assert processes[0].poll() is None
    processes[1].kill()
    (code, _, error), _ = ended(processes)
    assert code == 2
    reason = "error: another process of this run ended, so the run stops"
    assert error == f"{reason}; continue with: {program()} train --resume {out}\n"
    resumed = peftly("train", "--resume", out)  # from a checkpoint that the other process wrote
    assert resumed.code == 0, resumed.err
    assert "continuing after step" in resumed.out
    assert difference(weights(out), alone[1]) < 1e-7


def test_other_commands_are_refused_in_several_processes(peftly, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = peftly("methods")
    assert (outcome.code, outcome.out) == (2, "")
