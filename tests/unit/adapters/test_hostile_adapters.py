"""Adapter folders that are made to harm: one line says what is wrong, before memory or time is spent."""

import json
import struct

import pytest
import torch
from adapter_files import edit_config, edit_notes, without_checksums
from adapter_fuzz import EXPONENTIAL, Fuzzer
from safetensors.torch import load_file, save_file
from tiny import perturb, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

import peftly.adapters.loading
from peftly import (
    METHODS,
    AdapterConfig,
    LoRA,
    PTuning,
    Selective,
    attach,
    attached,
    load_adapter,
    save_adapter,
    trainable_parameters,
)
from peftly.adapters.adapter_set import open_adapters
from peftly.errors import AdapterError, MethodError

CONFIG, NOTES = "adapter_config.json", "peftly.json"
TENSORS, TRAINING = "adapter_model.safetensors", "training.safetensors"


def saved(config, folder):
    model = attach(tiny_model("llama", torch.float32), config)
    perturb(trainable_parameters(model).values())
    return without_checksums(save_adapter(model, folder))


@pytest.fixture
def folder(tmp_path):
    """A LoRA adapter as PEFT writes it, without our notes."""
    folder = saved(LoRA(rank=2, target_modules=("q_proj", "v_proj")), tmp_path / "adapter")
    (folder / NOTES).unlink()
    return folder


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any function of torch returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def refused(folder, match):
    model = tiny_model("llama", torch.float32)
    with pytest.raises(AdapterError, match=match) as caught, LargestTensor() as largest:
        load_adapter(model, folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert largest.elements < 10_000
    assert attached(model) == {}


LEVELS = 100_000


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" * LEVELS + "]" * LEVELS, "is nested deeper than 64 levels"),
        ('{"a": ' * 65 + "1" + "}" * 65, "is nested deeper than 64 levels"),
        ("9" * 10_000_000, "a number of 10,000,000 digits"),
        ("1." + "9" * 1000, "has the number 1.999"),
        ("NaN", "has the number NaN"),
        ("-Infinity", "has the number -Infinity"),
        ("1e999", "has the number 1e999"),
        ('8, "r": 9', "has r twice"),
        ('"\\ud800"', "surrogates not allowed"),
        (f'"{"a" * 2**24}"', "it has 16,777,"),
    ],
    ids=["nested", "nested a little", "digits", "digits of a float", "nan", "inf", "1e999", "twice", "half", "long"],
)
@pytest.mark.parametrize("name", [CONFIG, NOTES])
def test_json_beyond_its_bounds(folder, name, text, match):
    (folder / name).write_text(f'{{"peft_type": "LORA", "r": {text}}}')
    refused(folder, rf"adapter/{name} (cannot be read as JSON: )?.*{match}")


TYPES = {
    "r": ["16", 16.5, None, True, 0, -1, 10**9, [8], 10**40],
    "lora_alpha": [None, "16", [], 0, {"a": 1}],
    "lora_dropout": ["0.1", 1.5, None],
    "bias": ["some", 1, None],
    "use_rslora": ["yes", 1, []],
    "use_dora": ["yes", 1, []],
    "target_modules": [5, {"a": 1}, [1], [None], [["q_proj"]], True],
    "modules_to_save": [5, 0, "lm_head", {"a": 1}, [1], ["a\nb"]],
    "rank_pattern": [["q_proj"], "q_proj", {"q_proj": "8"}, {"q_proj": 0}, {"q_proj": 10**9}],
    "alpha_pattern": [{"q_proj": None}, {"q_proj": -1}],
    "peft_type": [5, None, ["LORA"], {"LORA": 1}, "LORA\n"],
    "task_type": [5, ["SEQ_CLS"]],
    "base_model_name_or_path": [5, ["base"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in TYPES.items() for value in values])
def test_a_setting_of_peft_with_a_wrong_value(folder, key, value):
    edit_config(folder, **{key: value})
    setting = key.removeprefix("lora_").removeprefix("use_")  # our name of it
    refused(folder, rf"adapter/adapter_config\.json.*({setting}|rank|peftly reads)")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method", 5),
        ("method", None),
        ("method", {"name": ["lora"]}),
        ("method", {"name": "lora", "rank": "2"}),
        ("method", {"name": "lora", "new\n": 2}),
        ("labels", "yes"),
        ("labels", [None]),
        ("row_format", 5),
        ("together", 5),
        ("checksums", 5),
        ("checksums", {CONFIG: 1, NOTES: 2, TENSORS: 3}),
    ],
)
def test_a_note_with_a_wrong_value(key, value, tmp_path):
    saved(LoRA(rank=2), tmp_path / "adapter")
    path = tmp_path / "adapter" / NOTES
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    where = tmp_path if key == "together" else tmp_path / "adapter"
    with pytest.raises(
        AdapterError, match=rf"peftly\.json (does not describe|is damaged).*{key}|lora adapter: "
    ) as caught:
        load_adapter(tiny_model("llama", torch.float32), where)
    assert str(caught.value).isprintable()


def test_a_row_format_with_wrong_types_is_an_error_where_it_is_used(tmp_path):
    folder = saved(LoRA(rank=2), tmp_path / "adapter")
    edit_notes(folder, row_format={"kind": "label", "template": "{a}", "target": "b", "labels": 5})
    load_adapter(tiny_model("llama", torch.float32), folder)
    with pytest.raises(AdapterError, match=r"peftly\.json is damaged: row_format is"):
        _ = open_adapters(folder).row_format


HUGE = {
    "rank": (LoRA(rank=2), {"r": 1_000_000}, "is \\(2, 48\\), and the rank is 1000000"),
    "ranks": (LoRA(rank=2), {"rank_pattern": {"q_proj": 900_000}}, "is \\(2, 32\\), and the rank is 900000"),
    "more layers": (
        LoRA(rank=2, target_modules=("q_proj",), rank_pattern={"0.self_attn.q_proj": 2, "1.self_attn.q_proj": 2}),
        {"target_modules": ["q_proj", "up_proj"], "r": 900_000},
        "need tensors with many more elements than",
    ),
    "prompt": (
        METHODS["prompt_tuning"].config(num_virtual_tokens=2, init="random"),
        {"num_virtual_tokens": 1_000_000},
        "prompt_embeddings is \\(2, 32\\), and num_virtual_tokens is 1000000",
    ),
    "prefix": (
        METHODS["prefix_tuning"].config(num_virtual_tokens=2, init="zero"),
        {"num_virtual_tokens": 1_000_000},
        "prompt_embeddings is \\(2, 64\\), and num_virtual_tokens is 1000000",
    ),
    "bottleneck": (
        AdapterConfig(bottleneck_dim=2),
        {"settings": {"name": "adapter", "bottleneck_dim": 1_000_000}},
        "need tensors with many more elements than",
    ),
    "reduction": (
        AdapterConfig(bottleneck_dim=2),
        {"settings": {"name": "adapter", "reduction_factor": 1e-7}},
        "need tensors with many more elements than",
    ),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_huge_size_is_refused_before_memory_is_allocated(case, tmp_path):
    config, change, match = HUGE[case]
    folder = saved(config, tmp_path / "adapter")
    (folder / NOTES).unlink()
    edit_config(folder, **change)
    refused(folder, match)


def test_a_huge_network_of_a_prompt_is_refused_before_memory_is_allocated(tmp_path):
    folder = saved(PTuning(num_virtual_tokens=2, encoder="lstm", encoder_dim=4, position="template"), tmp_path / "a")
    for changes in ({"encoder_dim": 1_000_000}, {"encoder_dim": 10_000, "encoder_layers": 100}):
        settings = json.loads((folder / CONFIG).read_text())["settings"] | changes
        edit_config(folder, settings=settings)
        edit_notes(folder, method=settings)
        refused(folder, "need tensors with many more elements than")


def header_of(path):
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [10**12, 32]},
        {"shape": [2**63, 2**63]},
        {"shape": [-2, 32]},
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [0, 2**64]},
        {"data_offsets": [128, 384]},
        {"dtype": "F64"},
    ],
    ids=str,
)
def test_a_header_that_lies_about_sizes(folder, change):
    header, data = header_of(folder / TENSORS)
    name = next(name for name in header if name != "__metadata__")
    header[name] |= change
    encoded = json.dumps(header).encode()
    (folder / TENSORS).write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    refused(folder, r"adapter_model\.safetensors (is damaged|does not fit)")
    (folder / TENSORS).write_bytes(struct.pack("<Q", 2**62) + encoded + data)
    refused(folder, r"adapter_model\.safetensors is damaged")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("file", [TENSORS, TRAINING])
def test_a_tensor_with_a_value_that_is_not_finite_is_named(file, value, tmp_path):
    folder = saved(PTuning(num_virtual_tokens=3), tmp_path / "adapter")
    tensors = load_file(folder / file)
    name = sorted(tensors)[-1]
    tensors[name].flatten()[-1] = value
    save_file(tensors, folder / file)
    refused(folder, rf"adapter/{file} has NaN or infinite values in {name}, so every output would be NaN")
    with pytest.raises(AdapterError, match=f"infinite values in {name}"):
        open_adapters(folder).folders["default"].tensors() and open_adapters(folder).folders[
            "default"
        ].training_tensors()


def test_tensors_of_integers_are_refused(folder):
    tensors = load_file(folder / TENSORS)
    save_file({name: tensor.long() for name, tensor in tensors.items()}, folder / TENSORS)
    refused(folder, r"is damaged: .*lora_A\.weight has the dtype torch\.int64")


@pytest.mark.parametrize(
    ("expression", "match"),
    [
        (EXPONENTIAL, "takes longer than 0.1 s on the names of the layers, because it can match them in too many ways"),
        (
            "((((a{1000}){1000}){1000}){1000})",
            "is too large: it has 33 characters and repeats parts up to 1000000000000",
        ),
        ("q" * 200_000, "is too large: it has 200000 characters"),
        ("(" * 5000 + "a" + ")" * 5000, "is no regular expression: maximum recursion depth exceeded"),
        ("(a", r"is no regular expression: missing \)"),
        ("a{99999999999999999999}", "is too large"),
        ("(?R)", "is no regular expression: unknown extension"),
    ],
    ids=["exponential", "repeats", "long", "nested", "invalid", "overflow", "of another dialect"],
)
@pytest.mark.parametrize("key", ["target_modules", "rank_pattern", "alpha_pattern"])
def test_a_regular_expression_costs_little(folder, monkeypatch, key, expression, match):
    monkeypatch.setattr("peftly.injection.patterns._SECONDS", 0.1)
    edit_config(folder, **{key: expression if key == "target_modules" else {expression: 2}})
    refused(folder, f"{key}=.* {match}")


def test_expressions_of_the_user_are_an_error_of_the_method(monkeypatch):
    monkeypatch.setattr("peftly.injection.patterns._SECONDS", 0.1)
    model = tiny_model("llama", torch.float32)
    for setting, config in {
        "target_modules": LoRA(target_modules=EXPONENTIAL),
        "rank_pattern": LoRA(rank_pattern={EXPONENTIAL: 2}),
        "modules": Selective(modules=EXPONENTIAL),
    }.items():
        with pytest.raises(MethodError, match=f"{setting}=.* takes longer than 0.1 s"):
            attach(model, config)
    with pytest.raises(MethodError, match=r"modules='\(a' is no regular expression: missing \)"):
        attach(model, Selective(modules="(a"))
    assert attached(model) == {}


def test_expressions_have_the_meaning_that_they_have_for_peft():
    model = tiny_model("llama", torch.float32)
    for expression, layers in {
        r"(?!.*\.0\.).*(q|k)_proj": 2,  # a negative lookahead, as ms-swift writes
        r"(?i).*UP_PROJ": 2,
        r"model\.layers\.(\d)\.mlp\.(up|down)_proj": 4,
        r".*self_attn\.[qk]_proj|.*\.1\..*down_proj": 5,
    }.items():
        attach(model, LoRA(rank=2, target_modules=expression))
        assert len(attached(model)["default"].targets()) == layers
        peftly.detach(model)


def test_the_time_to_load_does_not_grow_with_the_adapters_that_are_there():
    """A folder with 1,000 adapters is loaded in seconds: no step of a load visits the modules of other adapters."""
    model = tiny_model("llama", torch.float32)

    def visited() -> int:
        count = 0
        named_children = torch.nn.Module.named_children

        def counting(module):
            nonlocal count
            count += 1
            return named_children(module)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.Module, "named_children", counting)
            attach(model, LoRA(rank=1), name=f"n{len(attached(model))}")
        return count

    visited()
    second = visited()
    for _ in range(10):
        last = visited()
    assert last == second


def test_a_sample_of_mutated_adapters_raises_only_our_errors(tmp_path):
    """The soak test has 10,000 of them."""
    fuzzer = Fuzzer(tmp_path, seed=0)
    assert fuzzer.run(100) < 100
    assert sum(fuzzer.outcomes.values()) == 101
    assert len(fuzzer.outcomes) > 8
