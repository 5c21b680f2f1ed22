"""Adapters that were saved by one call are opened by one call, with their base and without other adapters."""

import shutil

import pytest
import torch
from adapter_files import edit_config, edit_notes
from tiny import perturb

from peftly import (
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    attached,
    detach,
    load,
    load_adapter,
    load_base,
    open_run,
    save_adapter,
    trainable_parameters,
    use_adapters,
)
from peftly.adapters.adapter_set import open_adapters
from peftly.data import RowFormat
from peftly.errors import AdapterError

IDS = torch.tensor([[5, 6, 7, 8]])
# Not in alphabetical order: the order of two prompts is the order of their virtual tokens.
METHODS = {
    "second": PromptTuning(num_virtual_tokens=3, init="random"),
    "lora": LoRA(rank=2),
    "first": PromptTuning(num_virtual_tokens=2, init="random"),
    "prefix": PrefixTuning(num_virtual_tokens=2),
}


@pytest.fixture
def model(tiny_llama_folder):
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    for seed, (name, config) in enumerate(METHODS.items()):
        attach(model, config, name=name, seed=seed)
    perturb(trainable_parameters(model).values())
    return model


def refused(folder, match):
    for opened in (load, open_adapters):
        with pytest.raises(AdapterError, match=match) as caught:
            opened(folder)
        assert "\n" not in str(caught.value)


def test_all_are_opened_with_their_base(model, tmp_path):
    shape = RowFormat("completion", "{prompt}", "completion")
    folder = save_adapter(model, tmp_path / "all", notes={"shape": shape.to_dict()})
    again = load(folder, dtype="float32").model
    assert list(attached(again)) == list(METHODS)
    assert torch.equal(again(IDS).logits, model(IDS).logits), "all are on"
    for name in METHODS:
        with use_adapters(again, name), use_adapters(model, name):
            assert torch.equal(again(IDS).logits, model(IDS).logits)
    with use_adapters(again):
        assert not torch.equal(again(IDS).logits, model(IDS).logits)
    opened = open_run(str(folder))
    assert (list(attached(opened.model)), opened.row_format) == (list(METHODS), shape), "what all of them say"
    assert "method" not in open_adapters(folder).notes


def test_the_adapter_of_a_run_may_be_several(model, tmp_path):
    for name in ("adapter", "step-3"):
        save_adapter(model, tmp_path / "run" / name)
    assert open_adapters(tmp_path / "run").path == tmp_path / "run" / "adapter"
    assert list(attached(load(tmp_path / "run", dtype="float32").model)) == list(METHODS)


def test_the_steps_of_a_run_are_not_opened_together(model, tmp_path):
    for step in (3, 6):
        save_adapter(model, tmp_path / f"step-{step}", name="lora")
    match = r"holds no adapter: .* open one of its folders: step-3, step-6"
    refused(tmp_path, match)
    detach(model)
    with pytest.raises(AdapterError, match=match):
        load_adapter(model, tmp_path)
    assert attached(model) == {}


def test_a_folder_without_an_adapter(tmp_path):
    refused(tmp_path, r"holds no adapter: it has no adapter_config\.json, nor adapters that were saved together$")


def test_a_save_replaces_the_earlier_adapters_in_its_folder(model, tmp_path):
    save_adapter(model, tmp_path, name="prefix")
    (tmp_path / "mine.txt").write_text("keep")
    save_adapter(model, tmp_path)
    assert list(attached(load(tmp_path).model)) == list(METHODS), "not the one of before"
    detach(model, "second")
    save_adapter(model, tmp_path)
    assert list(attached(load(tmp_path).model)) == ["lora", "first", "prefix"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "lora", "mine.txt", "prefix"]
    save_adapter(model, tmp_path / "lora", name="lora")
    assert list(attached(load(tmp_path).model)) == ["lora", "first", "prefix"], "one of them may be saved anew"


def test_an_incomplete_set_is_refused(model, tmp_path):
    """A process that is killed between two adapters leaves such a folder."""
    save_adapter(model, tmp_path / "all")
    (tmp_path / "all" / "lora").rename(tmp_path / "all" / ".lora-1a2b")
    refused(tmp_path / "all", r"lacks lora, saved together with first; save them again")
    detach(model, "lora")
    save_adapter(model, tmp_path / "three")
    shutil.copytree(tmp_path / "three" / "first", tmp_path / "all" / "first", dirs_exist_ok=True)
    refused(
        tmp_path / "all",
        r"not saved together: first was saved with second, first, prefix, and prefix with second, lora, first, prefix;",
    )


def test_adapters_of_different_models_are_refused(model, tmp_path):
    save_adapter(model, tmp_path)
    edit_config(tmp_path / "first", base_model_name_or_path="another")
    with pytest.raises(AdapterError, match=r"no base in common: second is for .*tiny-llama, and first for another;"):
        load(tmp_path)
    edit_config(tmp_path / "first", base_model_name_or_path=None)
    with pytest.raises(AdapterError, match=r"first/adapter_config\.json names no base"):
        load(tmp_path)


def test_classifiers_share_their_labels(task_base, tmp_path):
    base = load_base(str(task_base("roberta")), dtype="float32", task="sequence_classification", labels=("no", "yes"))
    for seed, name in enumerate(("one", "two")):
        attach(base.model, LoRA(rank=2), name=name, seed=seed)
    perturb(trainable_parameters(base.model).values())
    save_adapter(base.model, tmp_path)
    again = load(tmp_path, dtype="float32").model
    assert again.config.id2label == {0: "no", 1: "yes"}
    for name in ("one", "two"):
        with use_adapters(again, name), use_adapters(base.model, name):
            assert torch.equal(again(IDS).logits, base.model(IDS).logits)
    edit_notes(tmp_path / "two", labels=["yes", "no"])
    with pytest.raises(
        AdapterError, match=r"no labels in common: one is for \['no', 'yes'\], and two for \['yes', 'no'"
    ):
        load(tmp_path)
    edit_config(tmp_path / "two", task_type="TOKEN_CLS")
    with pytest.raises(AdapterError, match=r"no task in common: one is for sequence_cl.*, and two for token_class"):
        load(tmp_path)


@pytest.mark.parametrize("names", [[1], ["lora", ["first"]], ["lora", "lora"], ["first"], "lora"])
def test_a_damaged_note_of_the_adapters_of_a_call_is_refused(model, tmp_path, names):
    save_adapter(model, tmp_path)
    edit_notes(tmp_path / "lora", together=names)
    refused(tmp_path, r"lora/peftly\.json is damaged: together is ")
