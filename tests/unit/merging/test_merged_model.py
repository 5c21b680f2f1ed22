"""A merged model on disk: an honest one is written whole, another leaves nothing behind."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from references import DEFAULTS, assert_close
from safetensors.torch import load_file, save_file
from tiny import perturb

from peftly import METHODS, LoRA, attach, load, load_base, save_adapter, save_merged, trainable_parameters
from peftly.errors import AdapterError, BaseModelError, ConfigError, DataError, MergeError, MethodError
from peftly.merging import merged_folder as folders
from peftly.merging import merged_model as module
from peftly.merging.parity import EXACT
from peftly.methods.lora import LoRALayer

DTYPES = ("float32", "bfloat16", "float16")


def adapter_of(base, config, folder, *, scale=0.05, **task) -> Path:
    model, tokenizer = load_base(str(base), dtype="float32", **task)
    attach(model, config, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=scale)
    return save_adapter(model, folder)


@pytest.fixture(name="lora")
def _lora(tiny_llama_folder, tmp_path) -> Path:
    return adapter_of(tiny_llama_folder, LoRA(rank=4), tmp_path / "lora")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "selective", "full"])
@pytest.mark.sample(4)
def test_a_correct_merge_is_written(tiny_llama_folder, method, dtype, tmp_path):
    adapter = adapter_of(tiny_llama_folder, METHODS[method].config(**DEFAULTS[method]), tmp_path / "adapter")
    parity = save_merged(adapter, tmp_path / "merged", dtype=dtype)
    assert (parity.dtype, parity.complaint) == (dtype, None)
    assert parity.merging < EXACT / 5
    assert parity.files < EXACT / 5
    assert parity.relative < 2.5 * max(parity.rounding, EXACT / 5), "the margin is no room to hide in"
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert str(model.dtype) == f"torch.{dtype}"
    assert {str(value.dtype) for value in load_file(tmp_path / "merged" / "model.safetensors").values()} == {
        f"torch.{dtype}"
    }
    unmerged = load(adapter, dtype="float32").model
    ids = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])
    with torch.no_grad():
        assert_close(model.float()(ids).logits, unmerged(ids).logits, 2e-5 if dtype == "float32" else 2e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


def wrong_scaling(change, layer):
    layer.weight.add_(0.98 * change.scaling * change.lora_b @ change.lora_a)


def transposed(change, layer):
    delta = change.scaling * change.lora_b @ change.lora_a
    layer.weight.add_(delta.T if len(delta) == len(delta.T) else delta)


def left_out():
    """The first layer that is merged is not."""
    seen = []

    def merge_into(change, layer):
        seen.append(layer)
        if layer is not seen[0]:
            layer.weight.add_(change.scaling * change.lora_b @ change.lora_a)

    return merge_into


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [wrong_scaling, transposed, left_out])
def test_a_broken_merge_is_refused_and_leaves_nothing(lora, broken, dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(LoRALayer, "merge_into", broken() if broken is left_out else broken)
    with pytest.raises(MergeError, match=r"merging moved its logits by .* nothing was written"):
        save_merged(lora, tmp_path / "new" / "deep" / "merged", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_differences_in_the_files_are_found(lora, dtype, monkeypatch, tmp_path):
    def careless(model, tokenizer, number, folder, size):
        folders.write(model, tokenizer, number, folder, size)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.self_attn.v_proj.weight"] = tensors["model.layers.1.self_attn.k_proj.weight"]
        save_file(
            {name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
        )

    monkeypatch.setattr(module, "write", careless)
    with pytest.raises(MergeError, match="the model in the files differs from the model in memory"):
        save_merged(lora, tmp_path / "merged", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_values_beyond_the_range_of_the_dtype_are_found(tiny_llama_folder, tmp_path):
    huge = adapter_of(tiny_llama_folder, LoRA(rank=4, target_modules=("up_proj",)), tmp_path / "huge", scale=300.0)
    assert save_merged(huge, tmp_path / "wide", dtype="bfloat16").complaint is None
    with pytest.raises(MergeError):
        save_merged(huge, tmp_path / "narrow", dtype="float16")
    assert not (tmp_path / "narrow").exists()


def test_force_writes_a_broken_merge_and_reports_the_reason(lora, monkeypatch, tmp_path):
    monkeypatch.setattr(LoRALayer, "merge_into", wrong_scaling)
    parity = save_merged(lora, tmp_path / "merged", force=True)
    assert "merging moved its logits" in parity.complaint
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_the_folder_is_that_of_a_plain_model(tiny_llama_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_llama_folder, base)
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        (base / name).write_text(f"the {name}")
    (base / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    adapter = adapter_of(base, LoRA(rank=4), tmp_path / "adapter")
    lines = []
    save_merged(adapter, tmp_path / "merged", max_shard_size="20KB", log=lines.append)
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert {"LICENSE.txt", "NOTICE", "USE_POLICY.md", "model.safetensors.index.json"} <= files
    assert len([name for name in files if name.endswith(".safetensors")]) > 3
    assert lines[-2] == "licence: LICENSE.txt, NOTICE, USE_POLICY.md of the base"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "license: llama3.2\n" in card
    assert "rank: 4, alpha: 16.0" in card
    assert "| most likely choice is equal |" in card
    for name in files - {"README.md"}:
        assert b"peftly" not in (tmp_path / "merged" / name).read_bytes(), name
    original, merged = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "merged"))
    assert original == merged
    tokenizer = tf.AutoTokenizer.from_pretrained(tmp_path / "merged")
    messages = [{"role": "user", "content": "where is it?"}]
    assert tokenizer.apply_chat_template(messages) == tf.AutoTokenizer.from_pretrained(base).apply_chat_template(
        messages
    )


@pytest.mark.parametrize(
    ("architecture", "task"), [("bert", "sequence_classification"), ("roberta", "token_classification")]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_classifier_keeps_its_labels(task_base, architecture, task, dtype, tmp_path):
    labels = ("bad", "fine", "good")
    adapter = adapter_of(task_base(architecture), LoRA(rank=4), tmp_path / "adapter", task=task, labels=labels)
    parity = save_merged(adapter, tmp_path / "merged", dtype=dtype)
    assert (parity.continuations, parity.perplexity) == (0, None)
    assert parity.agreeing >= 0.9 * parity.choices
    kind = tf.AutoModelForSequenceClassification if task.startswith("seq") else tf.AutoModelForTokenClassification
    assert kind.from_pretrained(tmp_path / "merged").config.id2label == dict(enumerate(labels))


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_an_encoder_decoder(task_base, architecture, tmp_path):
    adapter = adapter_of(task_base(architecture), LoRA(rank=4), tmp_path / "adapter", task="seq2seq_lm")
    parity = save_merged(adapter, tmp_path / "merged")
    assert parity.same_texts == parity.continuations == parity.texts == 8
    assert parity.perplexity[0] == pytest.approx(parity.perplexity[1], rel=1e-4)


def test_several_with_weights(tiny_llama_folder, lora, task_base, tmp_path):
    other = adapter_of(tiny_llama_folder, LoRA(rank=2, target_modules=("q_proj",)), tmp_path / "other", scale=0.1)
    assert save_merged([lora, other], tmp_path / "merged", weights=[0.7, -0.3]).complaint is None
    assert "adapter_2: lora, weight -0.3" in (tmp_path / "merged" / "README.md").read_text()
    base, merged = (
        load_file(Path(folder) / "model.safetensors") for folder in (tiny_llama_folder, tmp_path / "merged")
    )
    name = "model.layers.0.self_attn.q_proj"
    expected = base[f"{name}.weight"].clone()
    for folder, scaling in ((lora, 0.7 * 16 / 4), (other, -0.3 * 16 / 2)):
        tensors = load_file(folder / "adapter_model.safetensors")
        lora_a, lora_b = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        expected += scaling * lora_b @ lora_a
    torch.testing.assert_close(merged[f"{name}.weight"], expected)
    with pytest.raises(ConfigError, match="1 were given for 2 adapters"):
        save_merged([lora, other], tmp_path / "no", weights=[1.0])
    foreign = adapter_of(task_base("llama"), LoRA(rank=2), tmp_path / "foreign")
    with pytest.raises(AdapterError, match=r"lora is for .*tiny-llama.*, and .*foreign for .*llama"):
        save_merged([lora, foreign], tmp_path / "no")
    (tmp_path / "link").symlink_to(lora)
    with pytest.raises(AdapterError, match=r"lora and .*link are one adapter, .*; name each once"):
        save_merged([lora, other, tmp_path / "link"], tmp_path / "no")


def test_the_hub_is_asked_for_an_adapter_once(lora, tiny_llama_folder, monkeypatch, tmp_path):
    asked = []
    other = adapter_of(tiny_llama_folder, LoRA(rank=2), tmp_path / "other")

    def snapshot_download(name, **_):
        asked.append(name)
        return {"someone/lora": lora, "someone/other": other, "someone/base": tiny_llama_folder}[name]

    monkeypatch.setattr("peftly.adapters.adapter_set.snapshot_download", snapshot_download)
    save_merged(["someone/lora", "someone/other"], tmp_path / "merged", dtype="bfloat16")
    assert asked == ["someone/lora", "someone/other"]
    with pytest.raises(AdapterError, match=r"^someone/base .* on the Hub it is no adapter: it has no adapter_config"):
        save_merged("someone/base", tmp_path / "no")


def test_output_folders_that_are_refused(lora, tiny_llama_folder, tmp_path):
    save_merged(lora, tmp_path / "merged")
    first = (tmp_path / "merged" / "README.md").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"holds a merged model; .* replace it with --overwrite"):
        save_merged(lora, tmp_path / "merged")
    assert (tmp_path / "merged" / "README.md").stat().st_mtime_ns == first
    save_merged(lora, tmp_path / "merged", overwrite=True, dtype="bfloat16")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match="holds files that are not part of a merged model"):
        save_merged(lora, lora, overwrite=True)
    with pytest.raises(ConfigError, match="is a file"):
        save_merged(lora, lora / "README.md")
    with pytest.raises(ConfigError, match="is a file; choose another folder"):
        save_merged(lora, lora / "README.md" / "merged")
    with pytest.raises(ConfigError, match="is not a size"):
        save_merged(lora, tmp_path / "no", max_shard_size="big")
    again = adapter_of(tmp_path / "merged", LoRA(rank=2), tmp_path / "again")
    with pytest.raises(ConfigError, match="is the base of this adapter"):
        save_merged(again, tmp_path / "merged", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "lora", "merged"]


def test_a_full_disk_is_refused_before_the_merge(lora, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100_000, 0, 100_000))
    with pytest.raises(ConfigError, match=r"takes up to .* KB, and .* has 100 KB left"):
        save_merged(lora, tmp_path / "merged")
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write", full)
    with pytest.raises(ConfigError, match=r"the disk is full and .* was not written"):
        save_merged(lora, tmp_path / "new" / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_bad_input_is_one_error(lora, tiny_llama_folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    prompt = adapter_of(tiny_llama_folder, METHODS["prompt_tuning"].config(init="random"), tmp_path / "prompt")
    for error, message, arguments in (
        (AdapterError, "holds no adapter", {"adapters": tmp_path}),
        (MethodError, "prompt_tuning cannot be merged", {"adapters": prompt}),
        (BaseModelError, "int8", {"dtype": "int8"}),
        (BaseModelError, "dtype='' is not one of auto, float32", {"dtype": ""}),
        (DataError, "cannot be read: No such file", {"text": tmp_path / "none.txt"}),
        (DataError, "there is no text with a token", {"text": tmp_path / "empty.txt"}),
        (MethodError, "is nan", {"weights": [float("nan")]}),
    ):
        with pytest.raises(error, match=message):
            save_merged(**{"adapters": lora, "out": tmp_path / "merged"} | arguments)
        assert not (tmp_path / "merged").exists()


def test_texts_of_a_file(lora, tmp_path):
    (tmp_path / "mine.txt").write_text("The train was late again.\n\nWhat time do you open on Sunday?\n")
    parity = save_merged(lora, tmp_path / "merged", text=tmp_path / "mine.txt")
    assert (parity.texts, parity.continuations, parity.source) == (2, 2, f"lines of {tmp_path / 'mine.txt'}")


def test_overwriting_spares_what_no_merge_has_written(lora, tmp_path):
    out = tmp_path / "merged"
    save_merged(lora, out, dtype="float32")
    for name in ("notes.txt", "merged-Q4_K_M.gguf", "adapter/adapter_config.json"):
        file = out / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
        with pytest.raises(ConfigError, match=f"holds {Path(name).parts[0]}, which is not part of a merged model"):
            save_merged(lora, out, dtype="float32", overwrite=True)
        assert file.read_text() == "mine"
        file.unlink()
        if file.parent != out:
            file.parent.rmdir()
    save_merged(lora, out, dtype="float32", overwrite=True)


def test_folders_can_be_opened_by_everybody(lora, tiny_llama_folder, tmp_path, monkeypatch):
    base = tmp_path / "base"
    shutil.copytree(tiny_llama_folder, base)
    tokenizer = tf.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(base)
    save_merged(adapter_of(base, LoRA(rank=4), tmp_path / "own"), tmp_path / "merged", dtype="float32")
    folders_in = [path for path in (tmp_path / "merged").rglob("*") if path.is_dir()]
    assert folders_in
    assert {oct(path.stat().st_mode & 0o777) for path in folders_in} == {"0o755"}
    assert tf.AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template


def test_an_output_folder_may_be_a_link(lora, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    save_merged(lora, tmp_path / "link", dtype="float32")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "config.json").is_file()


def test_outputs_without_a_folder_or_adapters_are_refused(lora):
    with pytest.raises(ConfigError, match="cannot be replaced; name a folder in it"):
        save_merged(lora, "/")
    with pytest.raises(ConfigError, match="there is no adapter to merge"):
        save_merged([], "anywhere")
