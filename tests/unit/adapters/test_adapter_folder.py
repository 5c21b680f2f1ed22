"""Adapters are found by a path or a Hub id, and each of their JSON files is read once."""

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from adapter_files import edit_config
from tiny import perturb
from typer.testing import CliRunner

import peftly.cli
from peftly import (
    LoRA,
    PromptTuning,
    attach,
    attached,
    detach,
    export,
    load,
    load_adapter,
    load_base,
    save_adapter,
    save_merged,
    trainable_parameters,
)
from peftly.adapters.adapter_set import open_adapters
from peftly.adapters.folder import AdapterFolder
from peftly.errors import AdapterError
from peftly.merging import save_combined

IDS = torch.tensor([[5, 6, 7, 8]])
JSON_FILES = ("adapter_config.json", "peftly.json")
WRITTEN_BY_0_1_0 = Path(__file__).resolve().parents[2] / "fixtures" / "version_0_1_0"

_counter: Counter[Path] | None = None


def _count(event: str, arguments: tuple) -> None:
    if _counter is not None and event == "open" and isinstance(arguments[0], str):
        path = Path(arguments[0])
        is_read = arguments[1] is not None and "w" not in arguments[1]  # files are written and synced through os.open
        if path.name in JSON_FILES and is_read:
            _counter[path.resolve()] += 1


sys.addaudithook(_count)  # a hook cannot be removed; this one has no effect outside `counted`


@contextmanager
def counted() -> Iterator[Counter[Path]]:
    """Count how often the JSON files of adapters are opened for reading."""
    global _counter
    _counter = Counter()
    try:
        yield _counter
    finally:
        _counter = None


def adapter(base, folder, method, seed=0):
    opened = load_base(str(base), dtype="float32")
    attach(opened.model, method, seed=seed, tokenizer=opened.tokenizer)
    perturb(trainable_parameters(opened.model).values(), seed=seed + 1)
    return save_adapter(opened.model, folder)


@pytest.fixture
def folders(tiny_llama_folder, tmp_path):
    """Two LoRA adapters, a soft prompt, a run folder with steps, and two adapters that were saved together."""
    folders = {name: adapter(tiny_llama_folder, tmp_path / name, LoRA(rank=2), n) for n, name in enumerate("ab")}
    folders["prompt"] = adapter(tiny_llama_folder, tmp_path / "prompt", PromptTuning(num_virtual_tokens=2))
    for name in ("adapter", "step-3", "step-6"):
        shutil.copytree(folders["a"], tmp_path / "run" / name)
    both = load(folders["a"], name="one")
    load_adapter(both.model, folders["b"], name="two")
    save_adapter(both.model, tmp_path / "both")
    return {**folders, "run": tmp_path / "run", "both": tmp_path / "both"}


@pytest.mark.parametrize(
    ("opened", "count"), [("a", 2), ("run", 4), ("both", 4)], ids=["adapter", "run and the notes of its steps", "set"]
)
@pytest.mark.parametrize("how", ["load", "load_adapter"])
def test_a_file_is_read_once_when_an_adapter_is_opened(folders, tiny_llama_folder, opened, count, how):
    base = load_base(str(tiny_llama_folder)).model
    with counted() as opens:
        if how == "load":
            load(folders[opened])
        else:
            load_adapter(base, folders[opened])
    assert set(opens.values()) == {1}
    assert len(opens) == count


def test_a_file_is_read_once_in_a_merge(folders, tmp_path):
    """A merge opens the adapted model in the wanted dtype and in fp32."""
    with counted() as opens:
        save_merged([folders["a"], folders["b"]], tmp_path / "merged", dtype="bfloat16")
    assert {path.relative_to(tmp_path) for path in opens} == {Path(name, file) for name in "ab" for file in JSON_FILES}
    assert set(opens.values()) == {1}


def test_a_file_is_read_once_when_adapters_are_combined(folders, tmp_path):
    with counted() as opens:
        save_combined([folders["a"], folders["b"]], tmp_path / "sum")
    read = {path.relative_to(tmp_path): count for path, count in opens.items() if path.parts[-3] != "sum"}
    assert read == {Path(name, file): 1 for name in "ab" for file in JSON_FILES}


@pytest.mark.parametrize("to", ["peft", "vllm", "gguf", "prompt-embeddings"])
def test_a_file_is_read_once_in_an_export(folders, tmp_path, to):
    name = "prompt" if to == "prompt-embeddings" else "a"
    with counted() as opens:
        export(folders[name], to, tmp_path / "out")
    assert {path.relative_to(tmp_path) for path in opens} == {Path(name, file) for file in JSON_FILES}
    assert set(opens.values()) == {1}


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "run_folders/labels"],
        ["evaluate", "run_folders/ensemble"],
        ["merge", "run_folders/labels", "--out", "merged"],
    ],
    ids=["evaluate", "evaluate an ensemble", "merge with held-out examples"],
)
def test_a_command_reads_a_file_once(command, tmp_path, monkeypatch):
    shutil.copytree(WRITTEN_BY_0_1_0, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    with counted() as opens:
        outcome = CliRunner().invoke(peftly.cli.app, command)
    assert outcome.exit_code == 0, outcome.output
    runs = ("member_1", "member_2") if command[1].endswith("ensemble") else ("",)
    read = {path.relative_to(Path(command[1]).resolve()) for path in opens}
    assert read >= {Path(run, "adapter", file) for run in runs for file in JSON_FILES}
    assert set(opens.values()) == {1}


def test_load_adapter_takes_what_load_takes(folders, tiny_llama_folder, monkeypatch, tmp_path):
    expected = load(folders["a"], dtype="float32").model(IDS).logits
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    asked = []

    def snapshot_download(name, **_):
        asked.append(name)
        return folders["a"]

    monkeypatch.setattr("peftly.adapters.adapter_set.snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    for source in (folders["a"], str(folders["a"]), folders["run"], "someone/lora", open_adapters(folders["run"])):
        assert torch.equal(load_adapter(model, source)(IDS).logits, expected), source
        detach(model)
    for source in (folders["run"], "someone/lora", open_adapters(folders["a"])):
        assert torch.equal(load(source, dtype="float32").model(IDS).logits, expected), source
    assert asked == ["someone/lora"] * 2, "each call asks the Hub once"


def test_steps_that_were_not_saved_together_are_no_adapter(folders, tiny_llama_folder):
    shutil.rmtree(folders["run"] / "adapter")
    model = load_base(str(tiny_llama_folder)).model
    for opening in (load, open_adapters, lambda folder: load_adapter(model, folder)):
        with pytest.raises(AdapterError, match=r"holds no adapter: .* open one of its folders: step-3, step-6"):
            opening(folders["run"])
    assert attached(model) == {}


def test_an_adapter_folder_is_immutable(folders):
    folder = AdapterFolder.read(folders["a"])
    assert (folder.path, folder.method.name, folder.method.rank) == (folders["a"], "lora", 2)
    assert folder.task == "causal_lm"
    assert folder.file_names == ("adapter_config.json", "adapter_model.safetensors", "peftly.json", "README.md")
    assert folder.requirements.base == folder.base_name == folder.peft_config["base_model_name_or_path"]
    assert (folder.labels, folder.quantization, folder.training_tensors()) == ((), None, {})
    with pytest.raises(FrozenInstanceError):
        folder.path = Path("other")
    for mapping in (folder.peft_config, folder.notes, open_adapters(folders["a"]).folders):
        with pytest.raises(TypeError):
            mapping["r"] = 3


def test_labels_without_a_note_are_numbered(task_base, tmp_path):
    """An adapter that PEFT wrote has no notes: the number of labels is that of the outputs of its head."""
    base = load_base(str(task_base("bert")), task="sequence_classification", labels=("no", "yes", "?")).model
    folder = save_adapter(attach(base, LoRA(rank=2)), tmp_path / "adapter")
    assert AdapterFolder.read(folder).labels == ("no", "yes", "?")
    (folder / "peftly.json").unlink()
    assert AdapterFolder.read(folder).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert AdapterFolder.read(folder).requirements.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is damaged"):
        AdapterFolder.read(folder).labels  # noqa: B018 - a property


def test_an_adapter_of_an_unknown_type_is_refused_before_its_base_is_opened(folders, monkeypatch):
    edit_config(folders["a"], peft_type="LOHA")
    monkeypatch.setattr("peftly.adapters.loading.load_base", lambda *_, **__: pytest.fail("the base was opened"))
    with pytest.raises(AdapterError, match=r"peft_type 'LOHA'; peftly reads"):
        load(folders["a"])


def test_a_run_that_is_not_here_is_named_with_the_folder_it_was_looked_from(tmp_path, monkeypatch):
    """The line said "Got: ConnectError", and not where a run folder was looked for."""

    def unreachable(*_args, **_options):
        raise OSError("Got: ConnectError: no network\nmore lines")

    monkeypatch.setattr("peftly.adapters.adapter_set.snapshot_download", unreachable)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError) as error:
        open_adapters("runs/tweet")
    expected = (
        f"runs/tweet is no folder (looked from {tmp_path}), and the Hub did not give it: ConnectError: no network"
    )
    assert str(error.value) == expected
