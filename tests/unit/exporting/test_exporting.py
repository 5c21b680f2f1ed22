"""Exports: what they refuse and why, whole folders or none, and embeddings that write the same text."""

import base64
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from safetensors.torch import load_file
from tiny import perturb, tiny_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from peftly import (
    AdapterConfig,
    BitFit,
    DoRA,
    Full,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    attach,
    export,
    generate,
    load_base,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import AdapterError, BaseModelError, ConfigError, MethodError
from peftly.exporting import FORMATS
from peftly.exporting.vllm import MAX_RANKS, smallest_max_rank
from peftly.exporting.vllm_models import WITH_LORA, WITHOUT_LORA


@pytest.fixture
def saved(tmp_path):
    """Save an adapter on a tiny model, and give its folder."""

    def save(config, architecture="llama", task="causal_lm", name="adapter", **notes):
        model = attach(tiny_model(architecture, torch.float32, task=task), config)
        perturb(trainable_parameters(model).values())
        return save_adapter(model, tmp_path / name, **notes)

    return save


ROWS = PromptTuning(num_virtual_tokens=3, init="random")
TEMPLATE = PromptTuning(num_virtual_tokens=3, init="random", position="template")
REFUSED = {
    ("peft", "bottlenecks"): (AdapterConfig(), {}, "PEFT has no bottleneck adapters"),
    ("peft", "biases"): (BitFit(), {"architecture": "opt"}, "biases only together with LoRA"),
    ("peft", "copies"): (Full(), {}, "copies of modules only together with another method"),
    ("peft", "template"): (TEMPLATE, {}, "where a template marks them"),
    ("peft", "after cls"): (ROWS, {"architecture": "bert", "task": "sequence_classification"}, r"after \[CLS\]"),
    ("peft", "prefix of a decoder behind an encoder"): (
        PrefixTuning(num_virtual_tokens=3, init="random"),
        {"architecture": "t5", "task": "seq2seq_lm"},
        "half of the layers only",
    ),
    ("vllm", "dora"): (DoRA(rank=3), {}, "it is a DoRA adapter, .*: peftly merge"),
    ("vllm", "saved modules"): (
        LoRA(rank=3, modules_to_save=("lm_head",)),
        {},
        "modules_to_save: lm_head.*peftly merge",
    ),
    ("vllm", "biases"): (LoRA(rank=3, bias="all"), {"architecture": "opt"}, "bias: all.*peftly merge"),
    ("vllm", "some biases"): (
        LoRA(rank=3, bias="lora_only"),
        {"architecture": "opt"},
        "bias: lora_only.*peftly merge",
    ),
    ("vllm", "encoder-decoder"): (LoRA(rank=3), {"architecture": "t5", "task": "seq2seq_lm"}, "on decoders; merge"),
    ("vllm", "full"): (Full(), {}, "it is full, and vLLM takes LoRA only; merge"),
    ("vllm", "soft prompt"): (ROWS, {}, "takes LoRA only; export it --to prompt-embeddings"),
    ("vllm", "template"): (TEMPLATE, {}, "vLLM takes LoRA only$"),
    ("vllm", "rank"): (LoRA(rank=513, target_modules=("q_proj",)), {}, "its rank is 513, and 512 is the largest"),
    ("prompt-embeddings", "prefix"): (
        PrefixTuning(num_virtual_tokens=3, init="random"),
        {},
        "keys and values of every layer, in front of the text, which embeddings in front of a text cannot replace",
    ),
    ("prompt-embeddings", "lora"): (LoRA(rank=3), {}, "lora trains low-rank updates"),
    ("prompt-embeddings", "template"): (TEMPLATE, {}, "where a template marks them"),
    ("prompt-embeddings", "encoder-decoder"): (
        ROWS,
        {"architecture": "t5", "task": "seq2seq_lm"},
        "it is for SEQ_2_SEQ_LM, and these servers run decoders only",
    ),
    ("prompt-embeddings", "saved modules"): (
        PromptTuning(num_virtual_tokens=3, init="random", modules_to_save=("lm_head",)),
        {},
        "modules_to_save: lm_head",
    ),
}


@pytest.mark.parametrize(("to", "case"), REFUSED)
def test_an_adapter_that_a_format_cannot_represent_is_refused_with_the_reason(to, case, saved, tmp_path):
    config, settings, reason = REFUSED[to, case]
    folder = saved(config, **settings)
    with pytest.raises(AdapterError, match=reason) as error:
        export(folder, to, tmp_path / "new" / "deep" / "out")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_several_adapters_are_exported_one_by_one(tmp_path):
    model = attach(tiny_model("llama", torch.float32), LoRA(rank=3), name="a")
    save_adapter(attach(model, ROWS, name="b"), tmp_path / "both")
    with pytest.raises(AdapterError, match=r"holds several adapters: export one of .*a, .*b"):
        export(tmp_path / "both", "peft", tmp_path / "out")
    export(tmp_path / "both" / "a", "peft", tmp_path / "out")


class TestFolder:
    def test_unknown_formats_and_dtypes(self, saved, tmp_path):
        folder = saved(LoRA(rank=3))
        with pytest.raises(
            ConfigError, match="no format 'onnx'; there are peft, vllm, prompt-embeddings, gguf, gguf-lora"
        ):
            export(folder, "onnx", tmp_path / "out")
        with pytest.raises(ConfigError, match="'f16' is not for peft: it is for gguf and gguf-lora only"):
            export(folder, "peft", tmp_path / "out", dtype="f16")
        with pytest.raises(ConfigError, match="'q4' is not for gguf: it is one of f16, bf16, f32, q8_0"):
            export(folder, "gguf", tmp_path / "out", dtype="q4")

    def test_what_is_there_is_replaced_only_when_that_is_asked_for(self, saved, tmp_path):
        folder, out = saved(LoRA(rank=3)), tmp_path / "out"
        out.mkdir()
        export(folder, "vllm", out)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        with pytest.raises(ConfigError, match=r"holds an export; .*--overwrite"):
            export(folder, "peft", out)
        with pytest.raises(AdapterError):
            export(folder, "prompt-embeddings", out, overwrite=True)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        prompt = saved(ROWS, name="prompt")
        export(prompt, "prompt-embeddings", out, overwrite=True)
        assert not {path.name for path in out.iterdir()} & {"adapter_config.json", "adapter_model.safetensors"}
        assert len(list(tmp_path.iterdir())) == 3

    @pytest.mark.parametrize("foreign", ["notes.txt", "config.json", "model.gguf"])
    def test_what_is_not_from_an_export_is_never_replaced(self, foreign, saved, tmp_path):
        folder, out = saved(LoRA(rank=3)), tmp_path / "out"
        out.mkdir()
        (out / foreign).touch()
        with pytest.raises(ConfigError, match="holds files that are not part of an export"):
            export(folder, "peft", out, overwrite=True)
        assert (out / foreign).exists()

    def test_the_adapter_itself_is_never_replaced(self, saved, tmp_path):
        folder = saved(LoRA(rank=3), name="adapter")
        (folder / "peftly.json").unlink()  # as PEFT writes one
        for source in (folder, tmp_path):
            with pytest.raises(ConfigError, match="is or holds the adapter to export"):
                export(source, "peft", folder, overwrite=True)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "out-f32.gguf").touch()
        with pytest.raises(ConfigError, match="is or holds the adapter to export"):
            export(tmp_path / "out" / "out-f32.gguf", "gguf", tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "out-f32.gguf").exists()
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="is a file"):
            export(folder, "peft", tmp_path / "file")

    def test_what_fails_half_way_leaves_nothing(self, saved, tmp_path, monkeypatch):
        folder = saved(LoRA(rank=3))

        def write(request):
            (request.folder / "half").touch()
            raise OSError("disk full")

        monkeypatch.setitem(FORMATS, "peft", FORMATS["peft"]._replace(write=write))
        with pytest.raises(ConfigError, match="out was not written: disk full"):
            export(folder, "peft", tmp_path / "new" / "deep" / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]

    def test_files_are_for_all_who_may_read_the_folder(self, saved, tmp_path):
        out = export(saved(LoRA(rank=3)), "peft", tmp_path / "out").folder
        assert len({path.stat().st_mode & 0o666 for path in out.iterdir()}) == 1
        assert out.stat().st_mode & 0o666 == next(out.iterdir()).stat().st_mode & 0o666


def test_the_smallest_max_rank_for_a_rank():
    found = {rank: smallest_max_rank(rank) for rank in (1, 8, 9, 64, 300, 321, 512, 513)}
    assert found == {1: 8, 8: 8, 9: 16, 64: 64, 300: 320, 321: 512, 512: 512, 513: None}
    assert list(MAX_RANKS) == sorted(MAX_RANKS)


def with_base(folder, base):
    """Let a saved adapter name its base."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(base)}))
    return folder


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_that_the_base_does_not_have_are_no_obstacle_for_vllm(bias, saved, tmp_path):
    export(saved(LoRA(rank=3, bias=bias)), "vllm", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["bias"], written["modules_to_save"]) == ("none", None)


def test_names_of_modules_without_copies_are_no_obstacle_for_vllm(saved, tmp_path):
    folder = saved(LoRA(rank=3))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"modules_to_save": ["classifier"]}))
    (folder / "peftly.json").unlink()
    export(folder, "vllm", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] is None


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "bert", "falcon", "mamba"])
def test_a_base_without_lora_in_vllm_is_refused(kind, saved, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "base" / "model.safetensors").touch()
    folder = with_base(saved(LoRA(rank=3)), tmp_path / "base")
    with pytest.raises(AdapterError, match=f"vLLM has no LoRA for {kind} models, .*: peftly merge$"):
        export(folder, "vllm", tmp_path / "out")
    export(folder, "peft", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("llama", None),
        ("qwen3", None),
        ("codegen", "has no codegen: it runs such a model, if at all, with the code of transformers"),
        (None, "the base cannot be opened here: look it up in the column LoRA of https://docs.vllm.ai"),
    ],
)
def test_a_base_that_vllm_does_not_list_is_noted(kind, note, saved, tmp_path):
    if kind:
        (tmp_path / "base").mkdir()
        (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": kind}))
        (tmp_path / "base" / "model.safetensors").touch()
    notes = export(with_base(saved(LoRA(rank=3)), tmp_path / "base"), "vllm", tmp_path / "out").notes
    assert len(notes) == (3 if note else 2), notes
    assert note is None or note in notes[0]


def test_every_model_type_of_vllms_table_exists():
    assert not WITH_LORA & WITHOUT_LORA
    assert set(WITH_LORA | WITHOUT_LORA) <= set(CONFIG_MAPPING_NAMES)


def test_a_larger_rank_needs_a_larger_server(saved, tmp_path):
    notes = export(saved(LoRA(rank=20)), "vllm", tmp_path / "out").notes
    assert any("--max-lora-rank 32 --lora-modules out=" in note for note in notes)


def test_a_short_name_becomes_the_name_on_the_hub(saved, tmp_path):
    folder = saved(LoRA(rank=3))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "smollm2-135m"}))
    exported = export(folder, "peft", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "packed into fewer bits" in exported.notes[0]


@pytest.mark.parametrize("to", ["peft", "vllm"])
def test_a_base_without_a_name_has_none_afterwards(to, saved, tmp_path):
    exported = export(saved(LoRA(rank=3)), to, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] is None
    assert "names no base" in exported.notes[0]


@pytest.fixture(scope="module")
def server():
    """What vLLM does with the prompt of a request before its model sees it, written down from its source."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            sent = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
            tensor = torch.load(sent, weights_only=True, map_location="cpu")
            assert tensor.dim() == 2
            assert tensor.is_floating_point()
            seen.append((body["model"], tensor))
            answer = json.dumps({"choices": [{"text": "an answer"}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", seen
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [ROWS, PTuning(num_virtual_tokens=5)], ids=["prompt_tuning", "p_tuning"])
def test_embeddings_write_the_same_text(config, dtype, tiny_llama_folder, tmp_path, monkeypatch, capsys, server):
    base = tmp_path / "base"
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    model.to(getattr(torch, dtype)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model, tokenizer = load_base(str(base), dtype=dtype)
    attach(model, config, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), 0.5)
    save_adapter(model, tmp_path / "adapter")
    export(tmp_path / "adapter", "prompt-embeddings", tmp_path / "out")
    soft_prompt = load_file(tmp_path / "out" / "prompt_embeddings.safetensors")["prompt_embeddings"]
    assert torch.equal(soft_prompt, torch.load(tmp_path / "out" / "prompt_embeddings.pt", weights_only=True))
    assert (soft_prompt.shape, soft_prompt.dtype) == ((config.num_virtual_tokens, 32), getattr(torch, dtype))

    text = "Where is my parcel?"
    expected = generate(model, tokenizer, text, max_new_tokens=20)[0]
    assert expected != generate(load_base(str(base), dtype=dtype).model, tokenizer, text, max_new_tokens=20)[0]
    blocks = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    address, seen = server
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    for block in blocks:
        exec(compile(block.replace("http://localhost:8000", address), "README.md", "exec"), names)
    assert capsys.readouterr().out.rstrip("\n") == f"{expected}\nan answer"
    asked, prompt = seen[-1]
    assert asked == str(base)
    plain = AutoModelForCausalLM.from_pretrained(base)
    text_embeddings = plain.get_input_embeddings()(tokenizer(text, return_tensors="pt").input_ids)[0]
    assert torch.equal(prompt, torch.cat([soft_prompt, text_embeddings]))


@pytest.mark.parametrize(
    ("row_format", "sentence"),
    [
        ({"kind": "label", "template": "Text: {text}\nLabel:"}, 'with this template:\n\n    "Text: {text}\\nLabel:"\n'),
        ({"kind": "chat", "template": None}, "formatted as in training, with the tokenizer's chat template"),
        (None, "formatted as in training, template included"),
    ],
)
def test_the_readme_describes_the_texts_of_training(row_format, sentence, saved, tmp_path):
    export(saved(ROWS, notes={"row_format": row_format}), "prompt-embeddings", tmp_path / "out")
    assert sentence in (tmp_path / "out" / "README.md").read_text()


def test_embeddings_without_their_base_are_in_float32(saved, tmp_path):
    exported = export(saved(ROWS), "prompt-embeddings", tmp_path / "out")
    assert any("written in float32" in note for note in exported.notes)


def test_what_cannot_be_merged_is_no_gguf(tiny_llama_folder, task_base, tmp_path):
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    save_adapter(attach(model, ROWS), tmp_path / "prompt")
    with pytest.raises(MethodError, match="prompt_tuning cannot be merged"):
        export(tmp_path / "prompt", "gguf", tmp_path / "out")
    with pytest.raises(BaseModelError, match="a GPT2LMHeadModel cannot be written to GGUF: LlamaForCausalLM"):
        export(task_base("gpt2"), "gguf", tmp_path / "out")
    with pytest.raises(AdapterError, match="holds no adapter"):
        export(tmp_path, "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overwriting_spares_what_no_export_has_written(tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="float32")
    save_adapter(attach(model, LoRA(rank=2), tokenizer=tokenizer), tmp_path / "a")
    export(tmp_path / "a", "gguf", tmp_path / "gguf")
    export(tmp_path / "a", "gguf", tmp_path / "gguf", dtype="f32", overwrite=True)
    (tmp_path / "gguf" / "gguf-Q4_K_M.gguf").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds gguf-Q4_K_M\.gguf, which is not part of an export"):
        export(tmp_path / "a", "gguf", tmp_path / "gguf", overwrite=True)
    export(tmp_path / "a", "peft", tmp_path / "peft")
    export(tmp_path / "a", "vllm", tmp_path / "peft", overwrite=True)
    (tmp_path / "peft" / ".peftly.json").unlink()  # an adapter that somebody has trained with PEFT has no mark
    with pytest.raises(ConfigError, match="holds files that are not part of an export"):
        export(tmp_path / "a", "peft", tmp_path / "peft", overwrite=True)
