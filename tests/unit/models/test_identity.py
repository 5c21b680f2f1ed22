"""The base of a run and of an adapter is recognised by all its values, and no copy of it is taken for another base."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers as tf
from quantized import quantized
from safetensors.torch import load_file, save_file
from tiny import tiny_model

import peftly
from peftly import LoRA, attach, dequantize, load, load_adapter, load_base, merge, save_adapter
from peftly.models import identity, tensor_hashes
from peftly.models.identity import base_note, exact_difference, exact_identity, note_difference
from peftly.training.sharding import shard_base

ELEMENT = "model.layers.1.mlp.up_proj.weight"
VALUES = r"1 of \d+ tensors have other values"


def with_buffer(seed=0):
    model = tiny_model("llama", torch.float32, seed)
    model.register_buffer("shift", torch.zeros(2))
    return model.requires_grad_(False)


def other_element(model):
    with torch.no_grad():
        model.get_parameter(ELEMENT)[20, 17] += 0.1


def other_buffer(model):
    model.shift.add_(1)


def other_rope(model):
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}


def other_eps(model):
    model.config.rms_norm_eps = 1e-5


CHANGES = {
    other_element: (f"{ELEMENT} has other values", VALUES),
    other_buffer: ("shift has other values", VALUES),
    other_rope: ("rope_theta is 500000.0 and was 10000.0",) * 2,
    other_eps: ("rms_norm_eps is 1e-05 and was 1e-06",) * 2,
}


@pytest.fixture
def adapter(tmp_path):
    """An adapter of `with_buffer`."""
    return save_adapter(attach(with_buffer(), LoRA(rank=2)), tmp_path / "adapter")


def opens_silently(model, adapter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_adapter(model, adapter)


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_is_named(change, adapter):
    model = with_buffer()
    saved, note = exact_identity(model), base_note(model, [])
    assert exact_difference(exact_identity(with_buffer()), json.loads(json.dumps(saved))) is None
    change(model)
    exact, noted = CHANGES[change]
    assert exact_difference(exact_identity(model), saved) == exact
    assert note_difference(model, [], note) is not None
    with pytest.warns(
        UserWarning, match=f"adapter was trained over another base than this one: {noted}; its"
    ) as caught:
        load_adapter(model, adapter)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_another_model_of_the_same_shapes(adapter):
    with pytest.warns(UserWarning, match="trained over another base"):
        load_adapter(with_buffer(seed=1), adapter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_in_another_dtype_is_the_same_base(dtype, adapter):
    opens_silently(with_buffer().to(dtype), adapter)


def test_a_change_in_another_dtype_is_found(adapter):
    model = with_buffer().to(torch.bfloat16)
    other_element(model)
    with pytest.warns(UserWarning, match=VALUES):
        load_adapter(model, adapter)


def test_a_checkpoint_knows_the_dtype_and_the_tensors():
    model = with_buffer()
    saved = exact_identity(model)
    assert exact_difference(exact_identity(model.to(torch.bfloat16)), saved) == (
        "the dtype is torch.bfloat16 and was torch.float32"
    )
    model = with_buffer()
    del model.shift
    assert exact_difference(exact_identity(model), saved) == "it has no shift"
    adapted = attach(with_buffer(), LoRA(rank=2))
    assert exact_difference(exact_identity(adapted), saved) is None, "adapters are no part of their base"


def test_a_reused_address_is_no_unchanged_tensor():
    """A tensor that gets the memory of a freed one is hashed again."""
    model = with_buffer()
    first = exact_identity(model)["tensors"]
    for layer in model.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight = torch.nn.Parameter(part.weight.detach() * 2, requires_grad=False)
    changed = exact_identity(model)["tensors"]
    assert {name for name in first if first[name] != changed[name]} == {
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up")
    }


class TestFiles:
    """Adapters of bases that `load_base` opens."""

    @pytest.fixture
    def base(self, tiny_llama_folder, tmp_path):
        return shutil.copytree(tiny_llama_folder, tmp_path / "base")

    @pytest.fixture
    def adapter(self, base, tmp_path):
        return save_adapter(attach(load_base(str(base)).model, LoRA(rank=2)), tmp_path / "adapter")

    def silent(self, adapter, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return load(adapter, **settings).model

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_no_dtype_is_another_base(self, dtype, adapter, base):
        self.silent(adapter, dtype=dtype)
        opens_silently(tf.AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)), adapter)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_copy_of_the_files_in_another_dtype(self, dtype, adapter, base, tmp_path):
        tf.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(
            tmp_path / "copy", max_shard_size="20KB"
        )
        opens_silently(load_base(str(base)).model, adapter)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / name, tmp_path / "copy")
        opens_silently(load_base(str(tmp_path / "copy"), dtype="float32").model, adapter)

    @pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
    def test_a_changed_file(self, quantization, adapter, base):
        tensors = load_file(base / "model.safetensors")
        tensors[ELEMENT][20, 17] += 0.1
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        with pytest.warns(UserWarning, match=VALUES):
            load(adapter, quantization=quantization)

    def test_a_changed_config(self, adapter, base):
        config = json.loads((base / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = 500000.0
        (base / "config.json").write_text(json.dumps(config))
        with pytest.warns(UserWarning, match=r"rope_theta is 500000.0 and was 10000.0"):
            load(adapter)

    def test_a_merged_base_is_another_base(self, adapter, base, tmp_path):
        model = load(adapter, dtype="float32").model
        for parameter in peftly.trainable_parameters(model).values():
            torch.nn.init.ones_(parameter)
        merge(model)
        second = save_adapter(attach(model, LoRA(rank=2)), tmp_path / "second")
        opens_silently(peftly.detach(model), second)
        with pytest.warns(UserWarning, match=r"14 of \d+ tensors have other values"):
            load(second)

    @pytest.mark.parametrize("over", ["nf4", "int8"])
    def test_quantized_bases(self, over, base, adapter, tmp_path):
        self.silent(adapter, quantization=over)
        trained = attach(load_base(str(base), quantization=over).model, LoRA(rank=2))
        second = save_adapter(trained, tmp_path / "second")
        self.silent(second)
        self.silent(second, quantization="none")
        with pytest.warns(UserWarning, match=f"was trained over a base in {over}, and this base is not quantised"):
            load_adapter(tf.AutoModelForCausalLM.from_pretrained(base), second)
        third = save_adapter(dequantize(trained), tmp_path / "third")
        self.silent(third)

    def test_a_sharded_base(self, base, tmp_path):
        """`train` shards a base after it has recorded its identity."""
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            model = attach(load_base(str(base)).model, LoRA(rank=2))
            saved = exact_identity(model)
            shard_base(model, torch.device("cpu"))
            adapter = save_adapter(model, tmp_path / "adapter")
        finally:
            torch.distributed.destroy_process_group()
        assert exact_difference(exact_identity(load_base(str(base)).model.requires_grad_(False)), saved) is None
        self.silent(adapter)
        tensors = load_file(base / "model.safetensors")
        tensors[ELEMENT][20, 17] += 0.1
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        with pytest.warns(UserWarning, match=VALUES):
            load(adapter)

    def test_a_vocabulary_that_grew(self, base, tmp_path):
        model, _ = load_base(str(base), dtype="float32")
        model.resize_token_embeddings(model.config.vocab_size + 7)
        adapter = save_adapter(attach(model, LoRA(rank=2)), tmp_path / "adapter")
        again = load_base(str(base), dtype="float32").model
        again.resize_token_embeddings(again.config.vocab_size + 7)
        assert not torch.equal(again.lm_head.weight, model.lm_head.weight), "new rows are random"
        opens_silently(again, adapter)
        with torch.no_grad():
            again = load_base(str(base), dtype="float32").model
            again.resize_token_embeddings(again.config.vocab_size + 7)
            again.lm_head.weight[5] += 1
        with pytest.warns(UserWarning, match="other embeddings of 1 tokens"):
            load_adapter(again, adapter)

    @pytest.mark.parametrize(
        ("architecture", "task"),
        [
            ("t5", "seq2seq_lm"),
            ("bart", "seq2seq_lm"),
            ("bert", "sequence_classification"),
            ("bert", "token_classification"),
            ("gpt2", "sequence_classification"),
        ],
    )
    def test_every_task(self, architecture, task, task_base, tmp_path):
        labels = ("a", "b", "c") if "classification" in task else ()
        folder = task_base(architecture)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* has no weights for")
            model = load_base(str(folder), dtype="float32", task=task, labels=labels).model
        saved = exact_identity(attach(model, LoRA(rank=2)))
        adapter = save_adapter(model, tmp_path / "adapter")
        self.silent(adapter)
        self.silent(adapter, dtype="bfloat16")
        if (architecture, task) != ("bert", "sequence_classification"):  # its new pooler is known to load_base only
            names = {"num_labels": 3, "id2label": dict(enumerate(labels))} if labels else {}
            opens_silently(type(model).from_pretrained(folder, **names), adapter)
        assert not any(name.startswith(("classifier", "score")) for name in saved["tensors"])


def test_a_fresh_process_knows_the_base(tiny_llama_folder, adapter, tmp_path):
    """Nothing but the file tells the second process about the base of the first."""
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    saved = save_adapter(attach(model, LoRA(rank=2)), tmp_path / "saved")
    (tmp_path / "identity.json").write_text(json.dumps(exact_identity(model)))
    code = (
        "import json, sys, peftly; from peftly.models import exact_identity, exact_difference\n"
        "loaded = peftly.load(sys.argv[1], dtype='float32').model\n"
        "print(exact_difference(exact_identity(loaded), json.load(open(sys.argv[2]))))"
    )
    words = [sys.executable, "-W", "error::UserWarning", "-c", code, str(saved), str(tmp_path / "identity.json")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("None\n", 0), done.stderr


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantized_base_of_a_checkpoint(kind):
    saved = exact_identity(quantized("llama", kind))
    assert exact_difference(exact_identity(quantized("llama", kind)), saved) is None
    changed = quantized("llama", kind)
    layer = changed.get_submodule("model.layers.0.mlp.up_proj")
    scale = layer.weight.quant_state.absmax if kind == "nf4" else layer.weight.SCB
    scale.mul_(2)
    assert "model.layers.0.mlp.up_proj" in exact_difference(exact_identity(changed), saved)
    opened = dequantize(quantized("llama", kind))
    assert exact_difference(exact_identity(opened), saved) is not None


HOSTILE = [None, [], "x", {}, {"config": 3}, {"config": {"rope_theta": {"a": []}}, "tensors": 3}]
HOSTILE += [{"config": {}, "tensors": {"48x32": 5, "32": None, "97x32": ["a"]}, "from_files": "yes"}]


@pytest.mark.parametrize("note", HOSTILE)
def test_a_strange_note_is_no_error(note, adapter):
    content = json.loads((adapter / "peftly.json").read_text())
    del content["checksums"]
    (adapter / "peftly.json").write_text(json.dumps(content | {"base": note}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_adapter(with_buffer(), adapter)
    assert all("\n" not in str(warning.message) for warning in caught)
    del content["base"]
    (adapter / "peftly.json").write_text(json.dumps(content))
    opens_silently(with_buffer(seed=1), adapter)


class TestCache:
    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tensor_hashes, "CACHED_BYTES", 0)
        monkeypatch.setenv("PEFTLY_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(tensor_hashes, "SETTLED_SECONDS", 0)

    @pytest.fixture
    def files(self, tiny_llama_folder, tmp_path):
        base = shutil.copytree(tiny_llama_folder, tmp_path / "base")
        return (tensor_hashes.file_identity(base / "model.safetensors"),)

    def hashes(self, files):
        tensor_hashes.hashes_in_files.cache_clear()  # as in another process
        return tensor_hashes.hashes_in_files(files)

    def cache_file(self, tmp_path):
        (file,) = (tmp_path / "home" / "hashes").iterdir()
        return file

    def test_files_are_hashed_once(self, files, monkeypatch):
        found = self.hashes(files)
        monkeypatch.setattr(tensor_hashes, "_hash", lambda *_, **__: pytest.fail("hashed again"))
        assert self.hashes(files) == found

    def test_other_files_are_hashed_again(self, files, tmp_path):
        found, path = self.hashes(files), Path(files[0].path)
        content = bytearray(path.read_bytes())
        content[-2] ^= 0x40
        times = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert self.hashes((tensor_hashes.file_identity(path),)) != found

    def test_files_that_have_just_been_written_are_not_cached(self, files, monkeypatch, tmp_path):
        monkeypatch.setattr(tensor_hashes, "SETTLED_SECONDS", 60)
        self.hashes(files)
        assert not (tmp_path / "home").exists()

    def test_a_damaged_cache_is_ignored(self, files, tmp_path):
        found = self.hashes(files)
        good = self.cache_file(tmp_path).read_bytes()
        flipped = good[:-40] + bytes([good[-40] ^ 1]) + good[-39:]
        bracket = tensor_hashes._checksum("[" * 100_000).encode() + b"\n" + b"[" * 100_000
        numbers = b'{"2": 3}'
        typed = tensor_hashes._checksum(numbers.decode()).encode() + b"\n" + numbers
        for bad in (b"", b"\xff\xfe", good[: len(good) // 2], flipped, bracket, typed):
            self.cache_file(tmp_path).write_bytes(bad)
            assert self.hashes(files) == found
            assert self.cache_file(tmp_path).read_bytes() == good

    def test_a_cache_that_cannot_be_written(self, files, tmp_path):
        (tmp_path / "home").write_text("a file")
        assert self.hashes(files)

    def test_a_link_in_the_place_of_the_cache_is_replaced(self, files, tmp_path):
        self.hashes(files)
        precious = tmp_path / "precious"
        precious.write_text("mine")
        self.cache_file(tmp_path).unlink()
        name = tmp_path / "home" / "hashes"
        self.hashes(files)
        link = self.cache_file(tmp_path)
        link.unlink()
        link.symlink_to(precious)
        self.hashes(files)
        assert precious.read_text() == "mine"
        assert name.is_dir()


def test_the_files_of_a_base_are_read_only_when_a_hash_is_needed(tiny_llama_folder, monkeypatch):
    monkeypatch.setattr(identity, "hashes_in_files", lambda *_: pytest.fail("hashed"))
    load_base(str(tiny_llama_folder))
