"""The quickstart on a tiny base and a few rows, which takes seconds."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from commands import Peftly, peftly_here


@pytest.fixture(scope="module", name="told")
def _told(tmp_path_factory, tiny_llama_folder) -> tuple[Path, str]:
    """The folder of a quickstart and its output."""
    folder = tmp_path_factory.mktemp("quick") / "start"
    flags = ["--base", tiny_llama_folder, "--out", folder, "--epochs", "1", "--limit", "24", "--seed", "3"]
    outcome = peftly_here("quickstart", *flags, "--json", folder.parent / "results.json")
    assert outcome.code == 0, outcome.err
    return folder, outcome.out


@pytest.fixture(scope="module")
def quickstart_folder(told) -> Path:
    return told[0]


def test_quickstart_compares_four_and_names_next_commands(peftly: Peftly, told, tiny_llama_folder):
    quickstart_folder, out = told
    for words in (
        "untouched base",
        "linear probe",
        "prompt tuning",
        "LoRA",
        "accuracy",
        "macro-F1",
        "Answers before and after training",
        "prompt tuning: ",
        " beside a base of ",
        "report: ",
        "Next:",
    ):
        assert words in out

    results = json.loads((quickstart_folder.parent / "results.json").read_text())
    assert results == json.loads((quickstart_folder / "quickstart.json").read_text())
    base, probe, prompt_tuning, lora = results["rows"]
    assert (base["parameters"], probe["parameters"], probe["bytes"]) == (0, 0, 0)
    assert base["bytes"] == (tiny_llama_folder / "model.safetensors").stat().st_size
    assert results["task"] == "messages"
    assert set(results["gold"]) == {"billing", "delivery", "jobs", "technical"}
    assert prompt_tuning["parameters"] == 10 * 32
    assert lora["parameters"] > prompt_tuning["parameters"]
    assert all(
        len(row["predictions"]) == len(results["gold"]) == len(results["texts"]) == 24 for row in results["rows"]
    )
    assert results["seed"] == 3
    assert results["environment"]["versions"]["torch"]

    for name in ("prompt_tuning", "lora"):
        assert (quickstart_folder / name / "report.html").is_file()
        assert f'href="{name}/report.html"' in (quickstart_folder / "report.html").read_text()

    # The commands that it names are run as they stand, but for a shorter training.
    commands = [line.strip() for line in out.partition("Next:")[2].splitlines() if line.strip()]
    assert len(commands) == 4
    for command in commands:
        program, *words = shlex.split(command)
        assert shutil.which(program), "no shell would find it"
        shorter = ["--epochs", "1"] if words[0] == "train" else []
        assert peftly(*words, *shorter).code == 0, command


def test_the_page_shows_the_commands_that_it_names(told):
    folder, out = told
    page = (Path(__file__).resolve().parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    shown = [shlex.split(line) for line in page.splitlines() if line.startswith("peftly ")]
    commands = [line.replace(str(folder), "runs/quickstart") for line in out.partition("Next:")[2].splitlines()]
    for command in [shlex.split(line)[1:] for line in commands if line.strip()][:3]:
        assert ["peftly", *command] in shown


def test_both_start_from_the_same_base(quickstart_folder, peftly: Peftly, tiny_llama_folder, tweets, tmp_path):
    """LoRA after prompt tuning gives the same adapter as LoRA alone."""
    import torch
    from safetensors.torch import load_file

    alone = tmp_path / "alone"
    config = quickstart_folder / "lora" / "config.yaml"
    assert peftly("train", config, "--out", alone).code == 0
    first, second = (
        load_file(run / "adapter" / "adapter_model.safetensors") for run in (quickstart_folder / "lora", alone)
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_a_second_quickstart_replaces_the_first_only(peftly: Peftly, tiny_llama_folder, quickstart_folder):
    (quickstart_folder / "notes.txt").write_text("mine")
    (quickstart_folder / "data" / "more.jsonl").write_text("mine")
    flags = ["--base", tiny_llama_folder, "--out", quickstart_folder, "--epochs", "1", "--limit", "8"]
    outcome = peftly("quickstart", "--task", "tweets", *flags)
    assert outcome.code == 0, outcome.err
    assert "replacing the earlier quickstart" in outcome.out
    gold = json.loads((quickstart_folder / "quickstart.json").read_text())["gold"]
    assert sorted(gold) == ["complaint"] * 4 + ["no complaint"] * 4
    assert (quickstart_folder / "notes.txt").read_text() == "mine"
    assert (quickstart_folder / "data" / "more.jsonl").read_text() == "mine"
