"""Adapters of other tools: the converted folder computes the formula of the tool, added to the base by hand."""

import json
import pickle
import shutil

import peft
import pytest
import torch
import yaml
from references import assert_close
from safetensors.torch import load_file, save_file
from tiny import perturb, random_token_ids, tiny_model

from peftly import convert, load_adapter
from peftly.adapters import AdapterFolder
from peftly.errors import AdapterError, ConfigError

IDS = torch.tensor(random_token_ids([9]))
RANK, SCALE = 3, 1.7


def fp32(architecture="llama"):
    return tiny_model(architecture, torch.float32)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=generator) * 0.2


def with_updates(updates, architecture="llama"):
    """Return the logits of the base with a matrix added to some of its weights."""
    model = fp32(architecture)
    with torch.no_grad():
        for path, update in updates.items():
            model.get_submodule(path).weight += update
        return model(IDS).logits


def converted(source, out, architecture="llama", **more):
    """Convert a folder, and return the logits there and those of PEFT."""
    folder = convert(source, out, **more).folder
    with torch.no_grad():
        logits = load_adapter(fp32(architecture), folder)(IDS).logits
        theirs = peft.PeftModel.from_pretrained(fp32(architecture), folder).eval()(IDS).logits
    assert_close(logits, theirs, 1e-6)
    return logits


def layers(*names):
    model = fp32()
    return {path: layer for path, layer in model.named_modules() if path.endswith(names)}


@pytest.mark.parametrize("names", ["plain", "of a state dict"])
def test_a_pickle_of_peft(names, tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    theirs = peft.get_peft_model(fp32(), config).eval()
    perturb(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "old", safe_serialization=False)
    if names == "of a state dict":
        state = {
            f"module.{name}": tensor for name, tensor in theirs.state_dict().items() if "lora" in name or "save" in name
        }
        torch.save(state, tmp_path / "old" / "adapter_model.bin")
    with pytest.raises(
        AdapterError, match=rf"pickle, which is not opened: convert it by \S+ convert {tmp_path}/old old-c"
    ):
        load_adapter(fp32(), tmp_path / "old")
    expected = theirs(IDS).logits
    assert_close(converted(tmp_path / "old", tmp_path / "new", base="here"), expected, 1e-6)
    assert AdapterFolder.read(tmp_path / "new").base_name == "here"


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_pickle_with_code_is_refused(tmp_path, capfd):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for content in (Malicious(), {"x": Malicious()}):
        (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(content))
        with pytest.raises(AdapterError, match=r"^\S+adapter_model\.bin holds other objects than tensors") as caught:
            convert(tmp_path, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a pickle", b"\x80\x04]\x94."])
def test_a_damaged_pickle_is_one_line(content, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(content)
    with pytest.raises(AdapterError, match=r"adapter_model\.bin (is damaged|holds|should hold)") as caught:
        convert(tmp_path, tmp_path / "out")
    assert "\n" not in str(caught.value)


def mlx(folder, *, dora=False, parameters=None, **more):
    """Write an adapter of mlx-lm for the last layer, as its trainer writes it, and return its factors."""
    folder.mkdir()
    tensors = {}
    for path, layer in layers("1.self_attn.q_proj", "1.mlp.down_proj").items():
        tensors[f"{path}.lora_a"] = random(layer.in_features, RANK)
        tensors[f"{path}.lora_b"] = random(RANK, layer.out_features)
        if dora:
            tensors[f"{path}.m"] = layer.weight.detach().norm(dim=1) + random(layer.out_features).abs()
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "lora_parameters": parameters or {"rank": RANK, "scale": SCALE, "dropout": 0.0},
        "model": "mlx-community/llama",
        "num_layers": 1,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
    return tensors


@pytest.mark.parametrize("dora", [False, True])
def test_mlx(dora, tmp_path):
    tensors = mlx(tmp_path / "mlx", dora=dora)
    updates = {}
    for path, layer in layers("1.self_attn.q_proj", "1.mlp.down_proj").items():
        delta = (SCALE * tensors[f"{path}.lora_b"].T) @ tensors[f"{path}.lora_a"].T
        if dora:
            weight = layer.weight.detach()
            sums = weight + delta
            delta = (tensors[f"{path}.m"] / sums.norm(dim=1))[:, None] * sums - weight
        updates[path] = delta
    assert_close(converted(tmp_path / "mlx", tmp_path / "out"), with_updates(updates), 1e-5)
    assert AdapterFolder.read(tmp_path / "out").base_name == "mlx-community/llama"


def test_mlx_of_versions_with_alpha(tmp_path):
    parameters = {"rank": RANK, "scale": 2.0, "alpha": 4.5, "dropout": 0.0}
    tensors = mlx(tmp_path / "old", parameters=parameters, lora_layers=1)
    paths = layers("1.self_attn.q_proj", "1.mlp.down_proj")
    updates = {path: 2.0 * 4.5 / RANK * (tensors[f"{path}.lora_a"] @ tensors[f"{path}.lora_b"]).T for path in paths}
    assert_close(converted(tmp_path / "old", tmp_path / "out"), with_updates(updates), 1e-5)
    mlx(tmp_path / "unclear", parameters=parameters)
    with pytest.raises(AdapterError, match="scale and alpha, which versions of mlx-lm read differently"):
        convert(tmp_path / "unclear", tmp_path / "none")


def test_mlx_that_cannot_be_converted(tmp_path):
    mlx(tmp_path / "full", fine_tune_type="full")
    with pytest.raises(AdapterError, match="fine_tune_type 'full'"):
        convert(tmp_path / "full", tmp_path / "out")
    mlx(tmp_path / "experts")
    for name, shape in (
        ("model.layers.1.mlp.switch_mlp.up_proj.lora_a", (2, 3, 4)),
        ("model.embed_tokens.lora_a", (9, 3)),
    ):
        save_file({name: random(*shape)}, tmp_path / "experts" / "adapters.safetensors")
        with pytest.raises(AdapterError, match=f"has {name} .*not those of experts or embeddings"):
            convert(tmp_path / "experts", tmp_path / "out")


@pytest.mark.parametrize("trained", [("query", "value"), ("query", "key", "value"), ("key",)])
def test_litgpt(trained, tmp_path):
    """The update of queries, keys and values is scattered to the groups of the fused weight, as litgpt merges it."""
    heads, groups, width, hidden, inner = 4, 2, 8, 32, 48
    sizes = {"query": heads * width, "key": groups * width, "value": groups * width}
    state, updates = {}, {}
    for number in range(2):
        prefix = f"transformer.h.{number}"
        lora_a = random(RANK * len(trained), hidden, seed=number)
        lora_b = random(sum(sizes[part] for part in trained), RANK, seed=number)
        state |= {f"{prefix}.attn.qkv.lora_A": lora_a, f"{prefix}.attn.qkv.lora_B": lora_b}
        rows = dict(zip(trained, lora_b.split([sizes[part] for part in trained]), strict=True))
        for index, part in enumerate(trained):
            path = f"model.layers.{number}.self_attn.{part[0]}_proj"
            updates[path] = SCALE * rows[part] @ lora_a[index * RANK : (index + 1) * RANK]
        for layer, path, shape in (
            ("attn.proj", "self_attn.o_proj", (hidden, hidden)),
            ("mlp.fc_1", "mlp.gate_proj", (inner, hidden)),
            ("mlp.fc_2", "mlp.up_proj", (inner, hidden)),
            ("mlp.proj", "mlp.down_proj", (hidden, inner)),
        ):
            lora_a, lora_b = random(RANK, shape[1], seed=number), random(shape[0], RANK, seed=number)
            state |= {f"{prefix}.{layer}.lora_A": lora_a, f"{prefix}.{layer}.lora_B": lora_b}
            updates[f"model.layers.{number}.{path}"] = SCALE * lora_b @ lora_a
    torch.save({"model": state}, tmp_path / "lit_model.pth.lora")
    settings = {"lora_r": RANK, "lora_alpha": SCALE * RANK, "lora_dropout": 0.05, "checkpoint_dir": "checkpoints/x"}
    settings |= {f"lora_{part}": part in trained for part in sizes}
    (tmp_path / "hyperparameters.yaml").write_text(yaml.safe_dump(settings))
    model = {"name": "Llama-tiny", "hf_config": {"org": "meta", "name": "Llama-tiny"}, "mlp_class_name": "LLaMAMLP"}
    model |= {"n_head": heads, "n_query_groups": groups, "head_size": width}
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(model))
    assert_close(converted(tmp_path, tmp_path / "out"), with_updates(updates), 1e-5)
    assert AdapterFolder.read(tmp_path / "out").base_name == "meta/Llama-tiny"
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(model | {"mlp_class_name": "GptNeoxMLP"}))
    with pytest.raises(AdapterError, match="does not have the layers of llama"):
        convert(tmp_path, tmp_path / "none")


def rows_in_neighbours(weight, heads):
    """Return a weight of transformers in the order of torchtune, which rotates neighbouring features of a head."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def test_torchtune(tmp_path):
    base = tmp_path / "base"
    fp32().save_pretrained(base)
    source = tmp_path / "epoch_0"
    source.mkdir()
    names = {"q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "o_proj": "attn.output_proj", "up_proj": "mlp.w3"}
    heads = {"q_proj": 4, "k_proj": 2}
    state, updates = {}, {}
    for path, layer in layers(*names).items():
        number, part = path.split(".")[2], path.rpartition(".")[2]
        lora_a, lora_b = random(RANK, layer.in_features), random(layer.out_features, RANK)
        updates[path] = SCALE * lora_b @ lora_a
        state[f"layers.{number}.{names[part]}.lora_a.weight"] = lora_a
        lora_b = rows_in_neighbours(lora_b, heads[part]) if part in heads else lora_b
        state[f"layers.{number}.{names[part]}.lora_b.weight"] = lora_b
    torch.save(state, source / "adapter_0.pt")
    config = {"r": RANK, "lora_alpha": SCALE * RANK, "target_modules": list(names), "peft_type": "LORA"}
    (source / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="torchtune that names no base: give it with --base"):
        convert(source, tmp_path / "out")
    assert_close(converted(source, tmp_path / "out", base=base), with_updates(updates), 1e-5)
    tiny_model("qwen3").save_pretrained(tmp_path / "qwen3")
    with pytest.raises(AdapterError, match=r"peftly converts those for llama and mistral, and .* is qwen3"):
        convert(source, tmp_path / "none", base=tmp_path / "qwen3")


def bert():
    return tiny_model("bert", torch.float32, task="sequence_classification")


@pytest.mark.parametrize("file", ["adapter.safetensors", "pytorch_adapter.bin"])
def test_lora_of_adapterhub(file, tmp_path):
    state, model = {}, bert()
    with torch.no_grad():
        for path, layer in model.named_modules():
            if path.endswith(("query", "value")):
                lora_a, lora_b = random(RANK, layer.in_features), random(layer.out_features, RANK)
                state |= {f"{path}.loras.mine.lora_A": lora_a, f"{path}.loras.mine.lora_B": lora_b}
                layer.weight += SCALE * lora_b @ lora_a
    (save_file if file.endswith("safetensors") else torch.save)(state, tmp_path / file)
    settings = {"architecture": "lora", "r": RANK, "alpha": SCALE * RANK, "dropout": 0.1, "composition_mode": "add"}
    config = {"config": settings, "model_class": "BertAdapterModel", "model_name": "bert-base", "name": "mine"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    folder = convert(tmp_path, tmp_path / "out").folder
    assert_close(load_adapter(bert(), folder)(IDS).logits, model(IDS).logits, 1e-5)
    for changes in ({"use_gating": True}, {"composition_mode": "scale"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"config": settings | changes}))
        with pytest.raises(AdapterError, match="scales or gates outputs"):
            convert(tmp_path, tmp_path / "none")


DOUBLE = {"mh_adapter": True, "output_adapter": True, "reduction_factor": 16, "non_linearity": "swish", "scaling": 0.7}
DOUBLE |= {"original_ln_before": False, "original_ln_after": True, "residual_before_ln": True, "inv_adapter": None}


def test_bottlenecks_of_adapterhub(tmp_path):
    state, model = {}, bert()
    for path, layer in model.named_modules():
        if path.endswith("output.dense"):
            prefix = f"{path.removesuffix('.dense')}.adapters.mine"
            down, up = random(RANK, layer.out_features), random(layer.out_features, RANK)
            biases = random(RANK), random(layer.out_features)
            state |= {f"{prefix}.adapter_down.0.weight": down, f"{prefix}.adapter_down.0.bias": biases[0]}
            state |= {f"{prefix}.adapter_up.weight": up, f"{prefix}.adapter_up.bias": biases[1]}

            def add(_module, _args, output, down=down, up=up, biases=biases):
                low = torch.nn.functional.silu(output @ down.T + biases[0])
                return output + 0.7 * (low @ up.T + biases[1])

            layer.register_forward_hook(add)
    save_file(state, tmp_path / "adapter.safetensors")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({"config": DOUBLE, "model_name": "bert-base"}))
    folder = convert(tmp_path, tmp_path / "out").folder
    assert_close(load_adapter(bert(), folder)(IDS).logits, model(IDS).logits, 1e-5)
    for changes in ({"original_ln_before": True}, {"non_linearity": "leakyrelu"}, {"scaling": "learned"}):
        path.write_text(json.dumps({"config": DOUBLE | changes, "model_name": "bert-base"}))
        with pytest.raises(AdapterError, match=f"bottleneck adapter with .*{next(iter(changes))}"):
            convert(tmp_path, tmp_path / "none")


def test_what_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"peftly knows PEFT \(adapter_model.bin\), mlx-lm .*litgpt.*torchtune"):
        convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(AdapterError, match="is no folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    mlx(tmp_path / "mlx")
    out = convert(tmp_path / "mlx", tmp_path / "out").folder
    with pytest.raises(AdapterError, match="needs no conversion"):
        convert(out, tmp_path / "again")
    with pytest.raises(ConfigError, match="overwrite"):
        convert(tmp_path / "mlx", out)
    before = load_file(out / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "empty")
    convert(tmp_path / "mlx", out, overwrite=True)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in load_file(out / "adapter_model.safetensors").items()
    )


def test_an_adapter_on_the_hub(tmp_path, monkeypatch):
    source = tmp_path / "snapshot"
    mlx(source)
    (source / "adapter_config.json").rename(tmp_path / "kept")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    monkeypatch.setattr("peftly.adapters.adapter_set.snapshot_download", lambda *_, **__: str(source))
    monkeypatch.setattr("peftly.exporting.conversion.snapshot_download", lambda *_, **__: str(source))
    with pytest.raises(AdapterError, match=r"^org/name has no .*convert org/name name-converted$"):
        load_adapter(fp32(), "org/name")
    (tmp_path / "kept").rename(source / "adapter_config.json")
    assert convert("org/name", tmp_path / "out").notes[0].startswith("its base is mlx-community/llama")


@pytest.mark.parametrize("kind", ["mlx", "litgpt", "torchtune", "adapterhub"])
def test_an_unsound_adapter_is_one_line(kind, tmp_path):
    """Files without what the format has: no rank, no factors."""
    files = {
        "mlx": ("adapters.safetensors", {"lora_parameters": {"scale": 1.0}, "model": "x"}),
        "litgpt": ("lit_model.pth.lora", None),
        "torchtune": ("adapter_0.pt", {"base_model_name_or_path": str(tmp_path / "base")}),
        "adapterhub": ("adapter.safetensors", {"config": {"architecture": "lora"}}),
    }
    file, config = files[kind]
    if kind == "torchtune":
        fp32().save_pretrained(tmp_path / "base")
    names = {"mlx": "q_proj.m", "torchtune": "layers.0.attn.v_proj.lora_a.weight", "adapterhub": "q.loras.a.lora_A"}
    tensors = {names.get(kind, "lm_head.lora_A"): random(4) if kind == "mlx" else random(3, 4)}
    source = tmp_path / "source"
    source.mkdir()
    (save_file if file.endswith("safetensors") else torch.save)(tensors, source / file)
    if config is None:
        (source / "hyperparameters.yaml").write_text("lora_r: 2")
        (source / "model_config.yaml").write_text("mlp_class_name: LLaMAMLP")
    else:
        (source / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"is not a sound adapter of ") as caught:
        convert(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
