"""An adapter over another base than the one that its files name: one that has moved, or of a class without a task."""

import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers as tf
from references import assert_close
from tiny import perturb

from peftly import (
    LoRA,
    PromptTuning,
    attach,
    export,
    load,
    load_adapter,
    load_base,
    save_adapter,
    save_merged,
    trainable_parameters,
)
from peftly.adapters import AdapterFolder, open_adapters
from peftly.errors import AdapterError, BaseModelError
from peftly.merging import save_combined
from peftly.runs import open_run

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])


@pytest.fixture(scope="module", name="moved")
def _moved(tiny_llama_folder, tmp_path_factory):
    """The new place of a base, an adapter and a prompt that name the old one, and the logits of the adapter."""
    root = tmp_path_factory.mktemp("moved")
    old = shutil.copytree(tiny_llama_folder, root / "old")
    folders = {}
    for name, config in (("lora", LoRA(rank=2)), ("prompt", PromptTuning(num_virtual_tokens=2, init="random"))):
        model = attach(load_base(str(old), dtype="float32").model, config)
        perturb(trainable_parameters(model).values())
        folders[name] = save_adapter(model, root / name)
        if name == "lora":
            expected = model(IDS).logits.detach()
    return old.rename(root / "new"), folders["lora"], folders["prompt"], expected


def test_the_error_names_the_option(moved):
    _, lora, _, _ = moved
    with pytest.raises(
        BaseModelError, match=r"there is no base .*old'.*lora names this base: if it has moved, give it "
    ):
        load(lora)


def test_load_takes_the_base(moved):
    new, lora, _, expected = moved
    model = load(lora, base=new, dtype="float32").model
    assert_close(model(IDS).logits, expected, 1e-6)
    assert model.name_or_path == str(new)
    assert open_run(str(lora), base=str(new)).model.name_or_path == str(new)


def test_a_base_that_is_nowhere_is_an_error_without_advice(moved, tmp_path):
    with pytest.raises(BaseModelError) as caught:
        load(moved[1], base=tmp_path / "nowhere")
    assert "if it has moved" not in str(caught.value)


def test_merge_combine_and_export_take_the_base(moved, tmp_path):
    new, lora, prompt, expected = moved
    text = tmp_path / "text"
    text.write_text("The train was late again\n")
    save_merged(lora, tmp_path / "merged", base=new, dtype="float32", text=text)
    merged = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_close(merged(IDS).logits, expected, 1e-5)
    save_combined([lora], tmp_path / "half", base=new, weights=[1.0])
    assert AdapterFolder.read(tmp_path / "half").base_name == str(new)
    assert_close(load(tmp_path / "half", dtype="float32").model(IDS).logits, expected, 1e-6)
    for source, to in ((lora, "peft"), (lora, "vllm"), (prompt, "prompt-embeddings"), (lora, "gguf")):
        export(source, to, tmp_path / to, base=new)
    assert AdapterFolder.read(tmp_path / "peft").base_name == str(new)


def test_an_adapter_without_a_base(moved, tmp_path):
    new, lora, _, expected = moved
    folder = shutil.copytree(lora, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(AdapterError, match=r"names no base: give it with --base, or base= in Python"):
        load(folder)
    assert_close(load(folder, base=new, dtype="float32").model(IDS).logits, expected, 1e-6)


def test_the_same_adapters_over_another_base(moved):
    new, lora, _, _ = moved
    opened = open_adapters(lora)
    assert opened.over(None) is opened
    assert opened.over(str(new)).base.source == new
    assert opened.folders["default"].base_name != str(new), "the first object has not changed"


@pytest.mark.parametrize(
    ("architecture", "task_type", "auto_class"),
    [
        ("bert", "FEATURE_EXTRACTION", tf.AutoModel),
        ("llama", "FEATURE_EXTRACTION", tf.AutoModel),
        ("bert", "QUESTION_ANS", tf.AutoModelForQuestionAnswering),
    ],
)
def test_tasks_of_peft_without_one_of_ours(task_type, auto_class, architecture, task_base, tmp_path):
    base = task_base(architecture)
    torch.manual_seed(1)
    original = auto_class.from_pretrained(base)
    names = ["query", "value"] if architecture == "bert" else ["q_proj", "v_proj"]
    model = peft.get_peft_model(original, peft.LoraConfig(task_type=task_type, r=2, target_modules=names)).eval()
    perturb(parameter for parameter in model.parameters() if parameter.requires_grad)
    model.save_pretrained(tmp_path / "theirs")
    expected = model(input_ids=IDS)[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no weights for .*pooler")
        opened = load(tmp_path / "theirs", base=base, dtype="float32").model
        assert_close(opened(IDS)[0], expected, 1e-6)
        save_adapter(opened, tmp_path / "ours")
        again = load(tmp_path / "ours", dtype="float32").model
    assert type(again) is type(original)
    assert_close(again(IDS)[0], expected, 1e-6)
    assert_close(load_adapter(auto_class.from_pretrained(base), tmp_path / "ours")(IDS)[0], expected, 1e-6)


def test_a_class_that_transformers_does_not_have_is_passed_over(moved, tmp_path):
    new, lora, _, expected = moved
    folder = shutil.copytree(lora, tmp_path / "adapter")
    (folder / "peftly.json").unlink()
    path = folder / "adapter_config.json"
    for name in ("MyModel", "pipeline"):
        mapping = {"base_model_class": name, "parent_library": "my.library"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": mapping, "task_type": None}))
        assert_close(load(folder, base=new, dtype="float32").model(IDS).logits, expected, 1e-6)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_mapping": ["x"]}))
    with pytest.raises(AdapterError, match="auto_mapping should name a class"):
        load(folder, base=new)
