"""Adapters and run folders that version 0.1.0 wrote (tests/fixtures/version_0_1_0) open with the same outputs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import peftly
import peftly.cli
from peftly.runs.config_file import dump_config, load_config

SOURCE = Path(__file__).resolve().parents[2] / "fixtures" / "version_0_1_0"
CELLS = json.loads((SOURCE / "cells.json").read_text())
RUNS = json.loads((SOURCE / "run_folders.json").read_text())
QUANTIZED = [name for name, cell in CELLS.items() if "quantization" in cell]
TRAINING = sorted(path.parent.name for path in SOURCE.glob("adapters/*/training.safetensors"))
ADDED_LATER: set[str] = set()
"""Methods that version 0.1.0 did not have."""

pytestmark = pytest.mark.filterwarnings("ignore:.*has no weights for")  # the adapter has the weights of a new head


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(SOURCE / "expected.safetensors")


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """A copy of the fixture, so that no test can change the committed files."""
    return shutil.copytree(SOURCE, tmp_path_factory.mktemp("written") / "version_0_1_0")


@pytest.fixture(autouse=True)
def folder(copied, monkeypatch) -> Path:
    """The copy as working directory: the files name bases and data by relative paths."""
    monkeypatch.chdir(copied)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("PEFTLY_DEBUG", raising=False)
    return copied


def open_cell(name: str, adapter: Path):
    """Open the base of a fixture without quantisation, and put `adapter` on it."""
    cell = CELLS[name]
    base = peftly.load_base(
        f"bases/{cell['base']}", dtype="float32", device="cpu", task=cell["task"], labels=cell["labels"]
    )
    return peftly.load_adapter(base.model, adapter)


def calls_of(base: str, expected) -> list[str]:
    """The names of the calls whose inputs are stored for a base: one example, and a batch of two with padding."""
    return sorted({key.split("/")[2] for key in expected if key.startswith(f"inputs/{base}/")})


def check_logits(model, base: str, key: str, expected, *, places=None, bound: float = 1e-5) -> None:
    """Compare the logits of every stored call with those of version 0.1.0."""
    calls = calls_of(base, expected)
    assert {"one", "right"} <= set(calls)
    for call in calls:
        prefix = f"inputs/{base}/{call}/"
        inputs = {name.removeprefix(prefix): value for name, value in expected.items() if name.startswith(prefix)}
        with torch.no_grad(), peftly.use_prompt_positions(model, places and places[: len(inputs["input_ids"])]):
            logits = model(**inputs).logits
        wanted = expected[f"{key}/{call}"]
        assert logits.shape == wanted.shape
        if "decoder_input_ids" not in inputs and logits.dim() == 3:
            logits = logits * inputs["attention_mask"][..., None]  # outputs at padding positions mean nothing
        error = float((logits - wanted).norm() / wanted.norm())
        assert error <= bound, f"{key}, call {call}: relative difference {error:.1e}"


def check_cell(model, name: str, expected) -> None:
    """Compare an opened adapter with version 0.1.0: its names, methods, size and outputs."""
    cell = CELLS[name]
    adapters = peftly.attached(model)
    assert {one: adapter.config.name for one, adapter in adapters.items()} == cell["adapters"]
    assert list(adapters) == list(cell["adapters"]), "the order of two prompts is the order of their virtual tokens"
    trained = sum(value.numel() for value in peftly.trainable_parameters(model).values())
    assert trained == cell["trained_parameters"]
    check_logits(model, cell["base"], f"logits/{name}", expected, places=cell.get("places"))


def test_every_method_has_a_fixture():
    assert len(CELLS) == 40
    assert {path.name for path in (SOURCE / "adapters").iterdir()} == set(CELLS)
    assert len(list(SOURCE.glob("adapters/**/adapter_config.json"))) == 42, "three adapters are in one folder"
    methods = {method for cell in CELLS.values() for method in cell["adapters"].values()}
    assert methods == set(peftly.METHODS) - ADDED_LATER
    assert len(TRAINING) == 5
    assert len(QUANTIZED) == 2


@pytest.mark.parametrize("base", ["llama", "t5"])
def test_a_base_gives_the_same_logits(base, expected):
    """Tells a change in the libraries from a change in peftly."""
    check_logits(
        peftly.load_base(f"bases/{base}", dtype="float32", device="cpu").model, base, f"logits/{base}", expected
    )


@pytest.mark.parametrize("name", CELLS)
def test_an_adapter_gives_the_same_logits(name, expected, tmp_path):
    model = open_cell(name, Path("adapters", name))
    check_cell(model, name, expected)
    again = peftly.save_adapter(model, tmp_path / "again")
    check_cell(open_cell(name, again), name, expected)


@pytest.mark.parametrize("name", [name for name in CELLS if name not in QUANTIZED])
def test_an_adapter_opens_with_the_base_and_task_that_it_names(name, expected):
    check_cell(peftly.load(Path("adapters", name), dtype="float32", device="cpu").model, name, expected)


@pytest.mark.parametrize("name", QUANTIZED)
def test_an_adapter_opens_with_the_quantization_that_it_notes(name, expected):
    pytest.importorskip("bitsandbytes")
    cell, bound = CELLS[name], 1e-3  # another processor may round a weight to the next of the 16 values
    key = f"logits/{name}/over_{cell['quantization']}"
    for call in calls_of(cell["base"], expected):
        plain, quantized = expected[f"logits/{name}/{call}"], expected[f"{key}/{call}"]
        assert (plain - quantized).norm() > 10 * bound * plain.norm()
    model = peftly.load(Path("adapters", name), dtype="float32", device="cpu").model
    check_logits(model, cell["base"], key, expected, bound=bound)


@pytest.mark.parametrize("name", TRAINING)
def test_an_adapter_file_is_complete_without_the_training_file(name, expected, tmp_path):
    """Adapters with a network that makes a prompt: the adapter file holds the prompt, the training file the network."""
    adapter = shutil.copytree(Path("adapters", name), tmp_path / "adapter")
    (adapter / "training.safetensors").unlink()
    cell = CELLS[name]
    check_logits(open_cell(name, adapter), cell["base"], f"logits/{name}", expected, places=cell.get("places"))


def peftly_command(*words: str) -> str:
    """Run a command of peftly in this process and return its standard output."""
    outcome = CliRunner().invoke(peftly.cli.app, [*map(str, words)])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def test_every_run_folder_has_a_cell():
    runs = {str(path.parent.relative_to(SOURCE / "run_folders")) for path in SOURCE.glob("run_folders/**/config.yaml")}
    assert len(RUNS) == 7
    assert runs - set(RUNS) == {"ensemble/member_1", "jobs"}, "of the ensemble one member is enough; jobs are two runs"


def scores_of(*words: str) -> dict[str, float]:
    return json.loads(peftly_command("evaluate", *words, "--json"))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_evaluated_with_the_same_scores(run):
    wanted = {key: value for key, value in RUNS[run].items() if key not in ("text", "generated")}
    assert "loss" in wanted
    scores = scores_of(f"run_folders/{run}")
    assert {key: scores[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)


def test_an_adapter_of_a_run_is_evaluated_on_a_file():
    """The adapter notes how an example becomes a prompt."""
    for adapter, data in (("labels/adapter", "labels_test"), ("jobs/questions/adapter", "questions_test")):
        wanted = RUNS[adapter.removesuffix("/adapter")]["loss"]
        assert scores_of(f"run_folders/{adapter}", "--data", f"data/{data}.jsonl")["loss"] == pytest.approx(
            wanted, rel=1e-5
        )
    assert scores_of("run_folders/labels/step-6")["loss"] > RUNS["labels"]["loss"], "an earlier adapter of the run"


@pytest.mark.parametrize("run", [run for run in RUNS if "generated" in RUNS[run]])
def test_a_run_generates_the_same_text(run):
    said = peftly_command("generate", f"run_folders/{run}", "--text", RUNS[run]["text"], "--max-new-tokens", "6")
    assert (
        said.removesuffix("\n") == RUNS[run]["generated"].lstrip()
    )  # version 0.1.0 printed the space after the prompt


@pytest.mark.parametrize("run", ["labels", "template", "classifier", "jobs/questions", "ensemble/member_2"])
def test_a_run_is_inspected(run):
    assert "example 1" in peftly_command("inspect", f"run_folders/{run}", "--examples", "1")


def learning_rates(run: Path) -> list[tuple[str, int, float]]:
    """The metrics file, step and learning rate of every training step of a run, or of the runs in a folder."""
    return [
        (str(file.relative_to(run)), record["step"], record["learning_rate"])
        for file in sorted(run.glob("**/metrics.jsonl"))
        for record in map(json.loads, file.read_text().splitlines())
        if record["kind"] == "step"
    ]


@pytest.mark.parametrize("run", ["labels", "jobs", "ensemble"])
def test_the_settings_of_a_run_mean_the_same(run, tmp_path):
    """Training from the settings of a finished run takes as many steps, with the same peak of the learning rate.

    The rates of single steps differ: those of version 0.1.0 began at 0.
    """
    settings = load_config(Path("run_folders", run, "config.yaml"), flags={"out": str(tmp_path / "again")}, stored=True)
    (tmp_path / "config.yaml").write_text(dump_config(settings), encoding="utf-8")
    peftly_command("train", str(tmp_path / "config.yaml"))
    again, written = learning_rates(tmp_path / "again"), learning_rates(Path("run_folders", run))
    assert [step[:2] for step in again] == [step[:2] for step in written]
    assert max(step[2] for step in again) == pytest.approx(max(step[2] for step in written))
