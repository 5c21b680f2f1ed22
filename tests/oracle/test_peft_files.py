"""Files as each version of PEFT and other tools wrote them: opened as PEFT opens them, or refused in one line."""

import json
import shutil
import warnings

import peft
import pytest
import torch
from references import assert_close
from safetensors.torch import load_file, save_file
from tiny import perturb, random_token_ids, tiny_model

from peftly import LoRA, PromptTuning, attach, detach, export, load_adapter, save_adapter, trainable_parameters
from peftly.adapters import AdapterFolder
from peftly.errors import AdapterError, MethodError

IDS = torch.tensor(random_token_ids([9]))
EXACT = 1e-6


def fp32(architecture="llama", task="causal_lm"):
    return tiny_model(architecture, torch.float32, task=task)


WRITTEN = {}
"""Files that PEFT wrote, and logits, by the settings: most tests begin with the same."""


def write(folder, config, architecture="llama", task="causal_lm"):
    """Write a file of PEFT with perturbed tensors, and return its logits."""
    key = f"{config} {architecture} {task}"
    if key not in WRITTEN:
        expected = _written_by_peft(folder, config, architecture, task)
        WRITTEN[key] = {path.name: path.read_bytes() for path in folder.iterdir()}, expected
    files, expected = WRITTEN[key]
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return expected


def _written_by_peft(folder, config, architecture, task):
    theirs = peft.get_peft_model(fp32(architecture, task), config).eval()
    perturb(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(folder)
    with torch.no_grad():
        return theirs(IDS).logits


def edit(folder, changes=None, removed=(), rename=None):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | (changes or {})
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in removed}))
    if rename is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({rename(name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def theirs(folder, architecture="llama", task="causal_lm"):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(fp32(architecture, task), folder).eval()(IDS).logits


def ours(folder, architecture="llama", task="causal_lm"):
    with torch.no_grad():
        return load_adapter(fp32(architecture, task), folder)(IDS).logits


LORA = {"task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"]}
ADDED = {  # the version that added keys of LoRA, each with the value that most files have
    "0.3": {"init_lora_weights": True, "revision": None},
    "0.4": {"layers_to_transform": None, "layers_pattern": None},
    "0.5": {"auto_mapping": None},
    "0.6": {"rank_pattern": {}, "alpha_pattern": {}},
    "0.8": {"megatron_config": None, "megatron_core": "megatron.core", "loftq_config": {}, "use_rslora": False},
    "0.9": {"use_dora": False},
    "0.10": {"layer_replication": None},
    "0.14": {"eva_config": None, "exclude_modules": None, "lora_bias": False},
    "0.15": {"corda_config": None, "trainable_token_indices": None},
    "0.17": {"qalora_group_size": 16, "target_parameters": None, "use_qalora": False},
    "0.18": {
        "alora_invocation_tokens": None,
        "arrow_config": None,
        "ensure_weight_tying": False,
        "peft_version": "0.18.0",
    },
    "0.19": {"lora_ga_config": None, "use_bdlora": None},
}
OLDEST = {
    "base_model_name_or_path": "llama",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 5,
    "lora_dropout": 0.05,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 3,
    "target_modules": ["q_proj", "up_proj"],
    "task_type": "CAUSAL_LM",
}


@pytest.mark.parametrize("version", ["0.2", *ADDED])
def test_files_of_each_version(version, tmp_path):
    expected = write(tmp_path, peft.LoraConfig(**LORA))
    config = OLDEST | ({"enable_lora": None, "merge_weights": False} if version == "0.2" else {})
    for added in ADDED if version != "0.2" else ():
        config |= ADDED[added]
        if added == version:
            break
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(ours(tmp_path), expected, EXACT)
    assert_close(theirs(tmp_path), expected, EXACT)


SAME = {
    "nothing but the type": (
        {},
        [key for key in OLDEST if key not in ("peft_type", "target_modules", "r", "lora_alpha")],
    ),
    "names of other models": ({"target_modules": ["q_proj", "up_proj", "c_attn", "query"]}, []),
    "no names": ({"target_modules": None}, []),
    "null where PEFT takes it for false": ({"use_rslora": None, "use_dora": None}, []),
    "a pattern of layers without layers": ({"layers_pattern": ""}, []),
    "an empty choice of layers": ({"layers_to_transform": [], "exclude_modules": [], "modules_to_save": []}, []),
    "dropout of everything": ({"lora_dropout": 1.0}, []),
    "a number with a point": ({"lora_alpha": 5.0}, []),
    "a configuration of a start": ({"eva_config": {"rho": 2.0}, "loftq_config": {"loftq_bits": 4}}, []),
    "megatron": ({"megatron_config": {}, "megatron_core": "megatron.core"}, []),
    "a task without a class here": ({"task_type": "FEATURE_EXTRACTION"}, []),
    "no task": ({"task_type": None}, []),
    **{
        f"init {init}": ({"init_lora_weights": init}, [])
        for init in (False, None, "gaussian", "Gaussian", "eva", "MiCA")
    },
}


@pytest.mark.parametrize("case", SAME)
def test_settings_without_effect(case, tmp_path):
    write(tmp_path, peft.LoraConfig(**{**LORA, "target_modules": ["q_proj", "v_proj"]} if case == "no names" else LORA))
    changes, removed = SAME[case]
    before = ours(tmp_path)
    edit(tmp_path, changes, removed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(ours(tmp_path), before, EXACT)
    if case not in ("init None", "init Gaussian"):
        assert_close(theirs(tmp_path), before, EXACT)


CHOSEN = {
    "layers_to_transform": {"layers_to_transform": [1]},
    "layer 0": {"layers_to_transform": 0},
    "layers_pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "exclude_modules": {"exclude_modules": ["layers.1.mlp.up_proj"]},
    "exclude_modules, a regular expression": {"exclude_modules": r".*\.0\..*proj"},
    "a regular expression": {"target_modules": r".*\.(q|up)_proj"},
    "a path": {"target_modules": ["model.layers.1.self_attn.q_proj", "up_proj"], "layers_to_transform": [0]},
    "patterns": {"rank_pattern": {r"layers\.1\..*": 2, "q_proj": 4}, "alpha_pattern": {"^model.*up_proj": 7}},
    "an embedding": {"target_modules": ["embed_tokens"]},
    "bias": {"bias": "all"},
    "modules_to_save in the targets": {"modules_to_save": ["layers.0.mlp"]},
    "velora": {"velora_config": peft.tuners.lora.config.VeloraConfig(num_groups=4)},
}


@pytest.mark.parametrize("kind", ["lora", pytest.param("dora", marks=pytest.mark.soak), "ia3"])
@pytest.mark.parametrize("case", CHOSEN)
def test_choices_of_layers(case, kind, tmp_path):
    if kind == "ia3":
        changes = {
            key: value
            for key, value in CHOSEN[case].items()
            if key in ("exclude_modules", "target_modules", "modules_to_save")
        }
        if changes != CHOSEN[case] or case == "an embedding":
            pytest.skip("no setting of IA3")
        config = peft.IA3Config(**{"target_modules": ["q_proj", "up_proj"], **changes}, feedforward_modules=["up_proj"])
    elif kind == "dora" and case in ("an embedding", "velora"):
        pytest.skip("no setting of DoRA here")
    else:
        config = peft.LoraConfig(**LORA | CHOSEN[case], use_dora=kind == "dora")
    architecture = "opt" if case == "bias" else "llama"
    if case == "bias":
        config.target_modules = {"q_proj", "fc1"}
    expected = write(tmp_path / "theirs", config, architecture)
    assert_close(ours(tmp_path / "theirs", architecture), expected, EXACT)
    model = load_adapter(fp32(architecture), tmp_path / "theirs")
    save_adapter(model, tmp_path / "ours")
    assert_close(ours(tmp_path / "ours", architecture), expected, EXACT)
    assert_close(theirs(tmp_path / "ours", architecture), expected, EXACT)


RENAMED = {
    "the name of the adapter": lambda name: name.replace(".weight", ".default.weight"),
    "another name": lambda name: name.replace(".weight", ".my_adapter.weight"),
    "the prefix twice": lambda name: f"base_model.model.{name}",
    "no prefix": lambda name: name.removeprefix("base_model.model."),
    "data parallelism": lambda name: f"module.{name}",
    "data parallelism inside": lambda name: name.replace("base_model.model.", "base_model.model.module."),
    "a compiled model": lambda name: f"_orig_mod.{name}",
    "a compiled model inside": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    "sharded": lambda name: name.replace(".layers.0.", ".layers.0._fsdp_wrapped_module."),
    "checkpointed": lambda name: name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
}
KINDS = {
    "lora": peft.LoraConfig(**LORA),
    "saved modules": peft.LoraConfig(**LORA, modules_to_save=["lm_head"]),
    "dora": peft.LoraConfig(**LORA, use_dora=True),
    "ia3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
}


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, marks=[] if kind == "lora" or case == "the name of the adapter" else pytest.mark.soak)
        for case in RENAMED
        for kind in KINDS
    ],
)
def test_names_of_tensors(case, kind, tmp_path):
    expected = write(tmp_path, KINDS[kind])

    def rename(name):
        if name.endswith(("ia3_l", "lora_magnitude_vector")) and "name" in case:
            return f"{name}.default" + (".weight" if name.endswith("vector") else "")
        if name.endswith("lm_head.weight") and "name" in case:
            return name.replace("lm_head", "lm_head.modules_to_save.default")
        return RENAMED[case](name)

    edit(tmp_path, rename=rename)
    assert_close(ours(tmp_path), expected, EXACT)
    edit(tmp_path, {"target_modules": None})
    if kind != "ia3" or case == "the prefix twice":
        assert_close(ours(tmp_path), expected, EXACT)


def test_biases_had_the_names_of_the_base_before_version_0_7(tmp_path):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], bias="lora_only")
    expected = write(tmp_path, config, "opt")
    edit(tmp_path, rename=lambda name: name.replace(".base_layer.bias", ".bias"))
    assert_close(ours(tmp_path, "opt"), expected, EXACT)


def test_the_first_key_in_the_file_holds(tmp_path):
    """PEFT sorts the keys that it writes; other tools do not."""
    write(tmp_path, peft.LoraConfig(**LORA))
    edit(tmp_path, {"alpha_pattern": {"q_proj": 2, r"layers\.1\..*": 7, "layers.0.mlp.up_proj": 3, "up_proj": 4}})
    assert_close(ours(tmp_path), theirs(tmp_path), EXACT)
    again = save_adapter(load_adapter(fp32(), tmp_path), tmp_path / "again")
    assert_close(ours(again), theirs(tmp_path), EXACT)
    assert_close(theirs(again), theirs(tmp_path), EXACT)


def test_two_adapters_in_one_file_are_refused(tmp_path):
    write(tmp_path, peft.LoraConfig(**LORA))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    both = {
        name.replace(".weight", f".{adapter}.weight"): tensor for name, tensor in tensors.items() for adapter in "ab"
    }
    save_file({name: tensor.clone() for name, tensor in both.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"more than once, as .*give the file of one adapter"):
        ours(tmp_path)


REFUSED = {
    "enable_lora": [True, False, True],
    "lora_bias": True,
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "layer_replication": [[0, 2], [1, 2]],
    "alora_invocation_tokens": [1, 2],
    "trainable_token_indices": [1, 2],
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "arrow_config": {"top_k": 3},
    "kasa_config": {"alpha": 1.0},
    "monteclora_config": {"num_samples": 8},
}


@pytest.mark.parametrize("key", REFUSED)
def test_other_computations_are_refused_by_name(key, tmp_path):
    write(tmp_path, peft.LoraConfig(**LORA))
    edit(tmp_path, {key: REFUSED[key]})
    message = (
        "target_parameters=.* are not all" if key == "target_parameters" else f"this LoRA adapter uses {key}, which"
    )
    with pytest.raises(AdapterError, match=rf"adapter_config\.json: {message}"):
        ours(tmp_path)


@pytest.mark.parametrize(
    "init", ["olora", "OLoRA", "lora_ga", "pissa", "PiSSA", "pissa_niter_4", "corda", "loftq", "new"]
)
def test_initialisations_that_may_change_the_base_are_refused(init, tmp_path):
    write(tmp_path, peft.LoraConfig(**LORA))
    edit(tmp_path, {"init_lora_weights": init})
    with pytest.raises(AdapterError, match=f"init_lora_weights='{init}'.*(path_initial_model|does not know)"):
        ours(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_settings_are_named(kind, tmp_path):
    expected = write(tmp_path, KINDS[kind])
    edit(tmp_path, {"new_config": {"size": 3}, "other": 0.5, "unused": None, "off": False})
    with pytest.warns(UserWarning, match=r"settings that peftly does not know .*: new_config, other$"):
        assert_close(ours(tmp_path), expected, EXACT)


@pytest.mark.parametrize(
    ("architecture", "task", "task_type", "names"),
    [
        ("bert", "sequence_classification", None, ["query", "value"]),
        ("distilbert", "sequence_classification", None, ["q_lin"]),
        ("roberta", "token_classification", "FEATURE_EXTRACTION", ["query", "dense"]),
        ("llama", "sequence_classification", "CAUSAL_LM", ["q_proj"]),
    ],
)
def test_a_trained_head_stays_where_no_module_is_saved(architecture, task, task_type, names, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=names, exclude_modules=["classifier.dense"], task_type=task_type)
    model = peft.PeftModel(fp32(architecture, task), config).eval()
    perturb(parameter for parameter in model.parameters() if parameter.requires_grad)
    model.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = model(IDS).logits
    assert_close(ours(tmp_path / "theirs", architecture, task), expected, EXACT)
    save_adapter(load_adapter(fp32(architecture, task), tmp_path / "theirs"), tmp_path / "ours")
    assert_close(ours(tmp_path / "ours", architecture, task), expected, EXACT)
    shutil.rmtree(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("architecture", "task", "names"),
    [
        ("bert", "sequence_classification", ("query",)),
        ("roberta", "token_classification", ("query", "classifier")),
        ("llama", "sequence_classification", ("q_proj", "score")),
    ],
)
def test_ours_without_a_head_opens_there(architecture, task, names, tmp_path):
    """PEFT asks for the head of a task that the file names, and changes no layer in it."""
    model = attach(fp32(architecture, task), LoRA(rank=2, target_modules=names, modules_to_save=()))
    perturb(trainable_parameters(model).values())
    folder = save_adapter(model, tmp_path / "ours")
    export(folder, "peft", tmp_path / "exported")
    assert AdapterFolder.read(folder).task == task
    for path in (folder, tmp_path / "exported"):
        assert_close(theirs(path, architecture, task), model(IDS).logits, EXACT)
        assert_close(ours(path, architecture, task), model(IDS).logits, EXACT)


def test_a_prompt_without_a_head_is_not_exported_for_peft(tmp_path):
    model = attach(
        fp32("bert", "sequence_classification"), PromptTuning(init="random", position="front", modules_to_save=())
    )
    with pytest.raises(AdapterError, match="copy of its head only: train it with modules_to_save: null"):
        export(save_adapter(model, tmp_path / "ours"), "peft", tmp_path / "exported")


@pytest.mark.parametrize("labels", [("bad", "fine", "good"), ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_labels_with_other_names_are_said(labels, tmp_path):
    model = attach(fp32("bert", "sequence_classification"), LoRA(rank=2))
    model.config.id2label = dict(enumerate(("no", "yes", "maybe")))
    folder = save_adapter(model, tmp_path / "ours")
    other = fp32("bert", "sequence_classification")
    other.config.id2label = dict(enumerate(labels))
    with pytest.warns(
        UserWarning, match=f"labels no, yes, maybe, and this base calls them {', '.join(labels)}: answers"
    ):
        load_adapter(other, folder)
    model.config.id2label = dict(enumerate(("LABEL_0", "LABEL_1", "LABEL_2")))
    folder = save_adapter(model, tmp_path / "unnamed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(detach(other), folder)


def test_opening_pissa_computes_no_principal_part(tmp_path, monkeypatch):
    model = attach(fp32(), LoRA(rank=2, init="pissa", target_modules=("q_proj",)))
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path)
    monkeypatch.setattr(torch.linalg, "svd", None)
    assert_close(ours(tmp_path), model(IDS).logits, EXACT)


def test_names_that_match_nothing_are_noted_at_attach():
    with pytest.warns(UserWarning, match=r"target_modules=\['query'\] match no linear layer .*passed over.*q_proj"):
        model = attach(fp32(), LoRA(rank=2, target_modules=("q_proj", "query")))
    assert all("q_proj" in name for name in trainable_parameters(model))
    with pytest.raises(MethodError, match=r"target_modules=\['query', 'key'\] match no linear layer"):
        attach(fp32(), LoRA(rank=2, target_modules=("query", "key")))


@pytest.mark.parametrize("parameters", [["q_proj.weight"], ["0.self_attn.q_proj.weight", "up_proj.weight"]])
def test_layers_that_are_named_by_their_weights(parameters, tmp_path):
    write(tmp_path, peft.LoraConfig(r=4, target_modules=["v_proj"], target_parameters=parameters))
    assert_close(ours(tmp_path), theirs(tmp_path), EXACT)


def test_dora_of_an_embedding_is_refused_by_name(tmp_path):
    write(tmp_path, peft.LoraConfig(r=4, target_modules=["embed_tokens", "v_proj"], use_dora=True))
    with pytest.raises(AdapterError, match="lora_embedding_A is of an embedding, and peftly has dora of linear layers"):
        ours(tmp_path)


def test_factors_in_eight_bits(tmp_path):
    write(tmp_path, peft.LoraConfig(**LORA))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()},
        tmp_path / "adapter_model.safetensors",
    )
    assert_close(ours(tmp_path), theirs(tmp_path), EXACT)


@pytest.mark.parametrize("to", ["peft", "vllm"])
@pytest.mark.parametrize(("kept", "match"), [(0, "holds no tensor"), (-1, r"it lacks .*lora_B\.weight")])
def test_a_file_without_some_factors_is_not_exported(kept, match, to, tmp_path):
    write(tmp_path / "adapter", peft.LoraConfig(**LORA))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(dict(sorted(load_file(file).items())[:kept]), file)
    with pytest.raises(AdapterError, match=match):
        export(tmp_path / "adapter", to, tmp_path / "out")
