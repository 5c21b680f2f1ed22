"""LoRA that starts from what quantising its base has cost (`init: qera`)."""

import pytest
import torch
from tiny import tiny_model

from peftly import LoRA, attach, detach, load, load_base, save_adapter, save_merged
from peftly.adapters.state import attached
from peftly.data import EncodedExample
from peftly.errors import ConfigError, MethodError
from peftly.kernels.quantized import is_quantized
from peftly.merging.combined_adapter import save_combined
from peftly.methods.quantization_error import error_factors
from peftly.runs.config_file import load_config

QERA = LoRA(rank=4, init="qera", target_modules="all-linear")
IDS = torch.arange(3, 63).view(5, 12)
ROWS = [EncodedExample(row.tolist(), [True] * 12) for row in IDS]


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (3, 32), (32, 3)])
def test_the_factors_are_the_best_for_inputs_of_these_sizes(shape):
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(shape, generator=generator)
    inputs = 3 * torch.rand(shape[1], generator=generator) ** 3
    state = torch.get_rng_state()
    lora_a, lora_b = error_factors(error, inputs, 4, scaling=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert (lora_a.shape, lora_b.shape) == ((4, shape[1]), (shape[0], 4))
    left = ((error - 0.5 * lora_b @ lora_a) * inputs).norm()
    best = torch.linalg.svdvals(error * inputs)[4:].norm()
    assert left <= 1.01 * best + 1e-4 * error.norm()
    plain = torch.linalg.svd(error, full_matrices=False)
    other = plain.U[:, :4] * plain.S[:4] @ plain.Vh[:4]
    assert min(shape) < 4 or left < 0.95 * ((error - other) * inputs).norm()


def test_an_input_that_is_always_0_gives_finite_factors():
    inputs = torch.ones(32)
    inputs[3] = 0
    assert all(bool(one.isfinite().all()) for one in error_factors(torch.randn(16, 32), inputs, 4, scaling=2.0))


def quantized_base(folder, **settings):
    return load_base(str(folder), dtype="float32", quantization="nf4", **settings).model


def test_the_model_is_nearer_to_the_one_that_was_quantised(tiny_llama_folder):
    original = load_base(str(tiny_llama_folder), dtype="float32").model(IDS).logits
    model = quantized_base(tiny_llama_folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantised = model(IDS).logits
    attach(model, QERA, rows=ROWS)
    corrected = model(IDS).logits
    assert (corrected - original).norm() < 0.8 * (quantised - original).norm()
    detach(model)
    assert torch.equal(model(IDS).logits, quantised)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_an_ordinary_lora_on_disk(tiny_llama_folder, tmp_path):
    model = attach(quantized_base(tiny_llama_folder), QERA, rows=ROWS)
    save_adapter(model, tmp_path / "a")
    again = load(tmp_path / "a", dtype="float32").model
    assert attached(again)["default"].config == QERA
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert save_merged(tmp_path / "a", tmp_path / "merged").complaint is None
    with pytest.raises(ConfigError, match=r"started from what quantising .* into='trained'"):
        save_merged(tmp_path / "a", tmp_path / "other", into="original")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match=r"it works whole and alone"):
        save_combined([tmp_path / "a"], tmp_path / "half", weights=[0.5])
    with pytest.warns(UserWarning, match="over the plain base its answers are off"):
        load(tmp_path / "a", dtype="float32", quantization="none")


@pytest.mark.parametrize(
    ("task", "architecture"), [("sequence_classification", "bert"), ("seq2seq_lm", "t5"), ("causal_lm", "gpt2")]
)
def test_other_tasks_and_layers(task, architecture, task_base):
    """Layers that transformers leaves unquantised, as some of T5, start at zero as ever."""
    folder, labels, learned = task_base(architecture), {}, {}
    if task == "sequence_classification":
        labels, learned = {"labels": ("a", "b")}, {"label": 0}
    elif task == "seq2seq_lm":
        learned = {"answer": [5, 6, 1]}
    rows = [EncodedExample(row.input_ids, row.trained, **learned) for row in ROWS]
    model = attach(quantized_base(folder, task=task, **labels), QERA, rows=rows)
    targets = attached(model)["default"].targets().values()
    assert all(bool(change.lora_b.any()) == is_quantized(layer) for layer, change in targets)
    assert sum(map(is_quantized, (layer for layer, _ in targets))) > 5


def test_embeddings_among_the_targets_start_as_ever(tiny_llama_folder):
    targets = ("q_proj", "embed_tokens")
    rows = [EncodedExample(row.input_ids[: 5 + place], [True] * (5 + place)) for place, row in enumerate(ROWS)]
    model = quantized_base(tiny_llama_folder)
    attach(model, LoRA(rank=4, init="qera", target_modules=targets), rows=rows)
    found = attached(model)["default"].targets()
    assert all(bool(change.lora_b.any()) for _, change in found.values())
    assert not next(change for path, (_, change) in found.items() if path.endswith("embed_tokens")).lora_a.any()


def test_a_failure_leaves_the_model_as_it_was(tiny_llama_folder, monkeypatch):
    def fail(*_given):
        raise RuntimeError("no memory")

    monkeypatch.setattr("peftly.methods.lora.error_factors", fail)
    model = quantized_base(tiny_llama_folder)
    with pytest.raises(RuntimeError, match="no memory"):
        attach(model, QERA, rows=ROWS)
    assert not attached(model)


def test_what_it_needs(tiny_llama_folder, tmp_path):
    with pytest.raises(ConfigError, match="set init: qera for one method only"):
        load_config(
            None, ["method=[{name: lora, init: qera}, {name: lora, init: qera}]", "base=b", "out=o", "data.train=d"]
        )
    model = quantized_base(tiny_llama_folder)
    with pytest.raises(MethodError, match=r"needs rows of the kind .* attach\(\.\.\., rows=data\.train\.encoded\)"):
        attach(model, QERA)
    assert not attached(model)
    with pytest.raises(MethodError, match="no layer that is changed is quantised"):
        attach(tiny_model("llama"), QERA, rows=ROWS)
    model.save_pretrained(tmp_path / "base")
    load_base(str(tiny_llama_folder)).tokenizer.save_pretrained(tmp_path / "base")
    stored = load_base(str(tmp_path / "base"), dtype="float32").model
    with pytest.raises(MethodError, match="the files of this base have it quantised"):
        attach(stored, QERA, rows=ROWS)
