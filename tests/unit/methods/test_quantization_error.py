"""LoRA that starts from the quantisation error of its base (`init: qera`)."""

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
EXAMPLES = [EncodedExample(ids.tolist(), [True] * 12) for ids in IDS]


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (3, 32), (32, 3)])
def test_the_factors_are_the_best_for_inputs_of_these_sizes(shape):
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(shape, generator=generator)
    inputs = 3 * torch.rand(shape[1], generator=generator) ** 3
    state = torch.get_rng_state()
    lora_a, lora_b = error_factors(error, inputs, 4, scaling=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert (lora_a.shape, lora_b.shape) == ((4, shape[1]), (shape[0], 4))
    remaining = ((error - 0.5 * lora_b @ lora_a) * inputs).norm()
    best = torch.linalg.svdvals(error * inputs)[4:].norm()
    assert remaining <= 1.01 * best + 1e-4 * error.norm()
    plain = torch.linalg.svd(error, full_matrices=False)
    other = plain.U[:, :4] * plain.S[:4] @ plain.Vh[:4]
    assert min(shape) < 4 or remaining < 0.95 * ((error - other) * inputs).norm()


def test_an_input_that_is_always_0_gives_finite_factors():
    inputs = torch.ones(32)
    inputs[3] = 0
    assert all(bool(factor.isfinite().all()) for factor in error_factors(torch.randn(16, 32), inputs, 4, scaling=2.0))


def quantized_base(folder, **settings):
    return load_base(str(folder), dtype="float32", quantization="nf4", **settings).model


def test_the_model_is_nearer_to_the_original_than_without_the_adapter(tiny_llama_folder):
    original = load_base(str(tiny_llama_folder), dtype="float32").model(IDS).logits
    model = quantized_base(tiny_llama_folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantised = model(IDS).logits
    attach(model, QERA, examples=EXAMPLES)
    corrected = model(IDS).logits
    assert (corrected - original).norm() < 0.8 * (quantised - original).norm()
    detach(model)
    assert torch.equal(model(IDS).logits, quantised)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_an_ordinary_lora_on_disk(tiny_llama_folder, tmp_path):
    model = attach(quantized_base(tiny_llama_folder), QERA, examples=EXAMPLES)
    save_adapter(model, tmp_path / "a")
    again = load(tmp_path / "a", dtype="float32").model
    assert attached(again)["default"].config == QERA
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert save_merged(tmp_path / "a", tmp_path / "merged").complaint is None
    with pytest.raises(ConfigError, match=r"corrects the quantisation error .* into='trained'"):
        save_merged(tmp_path / "a", tmp_path / "other", into="original")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="it cannot be added to others or weighted"):
        save_combined([tmp_path / "a"], tmp_path / "half", weights=[0.5])
    with pytest.warns(UserWarning, match="over the plain base its answers are off"):
        load(tmp_path / "a", dtype="float32", quantization="none")


@pytest.mark.parametrize(
    ("task", "architecture"), [("sequence_classification", "bert"), ("seq2seq_lm", "t5"), ("causal_lm", "gpt2")]
)
def test_other_tasks_and_layers(task, architecture, task_base):
    """Layers that transformers leaves unquantised, as some of T5, start at zero as usual."""
    folder, labels, learned = task_base(architecture), {}, {}
    if task == "sequence_classification":
        labels, learned = {"labels": ("a", "b")}, {"label": 0}
    elif task == "seq2seq_lm":
        learned = {"answer": [5, 6, 1]}
    examples = [EncodedExample(example.input_ids, example.trained, **learned) for example in EXAMPLES]
    model = attach(quantized_base(folder, task=task, **labels), QERA, examples=examples)
    targets = attached(model)["default"].targets().values()
    assert all(bool(lora.lora_b.any()) == is_quantized(layer) for layer, lora in targets)
    assert sum(map(is_quantized, (layer for layer, _ in targets))) > 5


def test_embeddings_among_the_targets_start_as_usual(tiny_llama_folder):
    targets = ("q_proj", "embed_tokens")
    examples = [
        EncodedExample(example.input_ids[: 5 + index], [True] * (5 + index)) for index, example in enumerate(EXAMPLES)
    ]
    model = quantized_base(tiny_llama_folder)
    attach(model, LoRA(rank=4, init="qera", target_modules=targets), examples=examples)
    found_targets = attached(model)["default"].targets()
    assert all(bool(lora.lora_b.any()) for _, lora in found_targets.values())
    assert not next(lora for path, (_, lora) in found_targets.items() if path.endswith("embed_tokens")).lora_a.any()


def test_a_failure_leaves_the_model_as_it_was(tiny_llama_folder, monkeypatch):
    def fail(*_args):
        raise RuntimeError("no memory")

    monkeypatch.setattr("peftly.methods.lora.error_factors", fail)
    model = quantized_base(tiny_llama_folder)
    with pytest.raises(RuntimeError, match="no memory"):
        attach(model, QERA, examples=EXAMPLES)
    assert not attached(model)


def test_missing_inputs_are_refused(tiny_llama_folder, tmp_path):
    with pytest.raises(ConfigError, match="set init: qera for one of them"):
        load_config(
            None, ["method=[{name: lora, init: qera}, {name: lora, init: qera}]", "base=b", "out=o", "data.train=d"]
        )
    model = quantized_base(tiny_llama_folder)
    with pytest.raises(MethodError, match=r"training examples: attach\(\.\.\., examples=data\.train\.encoded\)"):
        attach(model, QERA)
    assert not attached(model)
    with pytest.raises(MethodError, match="no target layer is quantised"):
        attach(tiny_model("llama"), QERA, examples=EXAMPLES)
    model.save_pretrained(tmp_path / "base")
    load_base(str(tiny_llama_folder)).tokenizer.save_pretrained(tmp_path / "base")
    stored = load_base(str(tmp_path / "base"), dtype="float32").model
    with pytest.raises(MethodError, match="the files of this base are quantised already"):
        attach(stored, QERA, examples=EXAMPLES)
