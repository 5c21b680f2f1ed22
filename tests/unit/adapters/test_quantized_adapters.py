"""Adapters that were trained over a quantised base are opened again, merged and exported."""

import json
import warnings

import peft
import pytest
import torch
import transformers as tf
from adapter_files import edit_notes
from references import assert_close
from tiny import perturb

from peftly import (
    Full,
    LoRA,
    Selective,
    attach,
    dequantize,
    export,
    load,
    load_adapter,
    load_base,
    merge,
    save_adapter,
    save_merged,
    trainable_parameters,
)
from peftly.errors import AdapterError, BaseModelError, ConfigError, MethodError
from peftly.kernels.quantized import is_quantized
from peftly.models.quantization import Quantization

IDS = torch.arange(3, 15).view(2, 6)
METHOD = LoRA(rank=4)
HOW = Quantization(kind="nf4", double=False, block_size=128)


def trained(base, folder, quantization=HOW, method=METHOD):
    model, tokenizer = load_base(str(base), dtype="float32", quantization=quantization)
    attach(model, method, tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=0.05)
    save_adapter(model, folder)
    return model


@pytest.mark.parametrize("quantization", [HOW, "fp4", "int8"])
def test_an_adapter_opens_over_the_base_of_its_training(tiny_llama_folder, tmp_path, quantization):
    model = trained(tiny_llama_folder, tmp_path / "a", quantization)
    again = load(tmp_path / "a", dtype="float32").model
    assert any(map(is_quantized, again.modules()))
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    plain = load(tmp_path / "a", dtype="float32", quantization="none").model
    assert not any(map(is_quantized, plain.modules()))
    assert not torch.equal(plain(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("method", [Full(), Selective(last_layers=1)], ids=lambda method: method.name)
def test_copies_of_quantised_layers_open_again_over_either_base_and_are_merged(tiny_llama_folder, tmp_path, method):
    expected = trained(tiny_llama_folder, tmp_path / "a", method=method)(IDS).logits
    assert torch.equal(load(tmp_path / "a", dtype="float32").model(IDS).logits, expected)
    plain = load(tmp_path / "a", dtype="float32", quantization="none").model(IDS).logits
    # What is no copy is another weight in the plain base.
    assert ((plain - expected).norm() < 1e-5 * expected.norm()) == (method == Full())
    assert save_merged(tmp_path / "a", tmp_path / "merged", dtype="float32").complaint is None
    assert_close(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits, expected, 1e-5)


def test_without_bitsandbytes_the_error_names_the_extra(tiny_llama_folder, tmp_path, monkeypatch):
    trained(tiny_llama_folder, tmp_path / "a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"quantization=nf4 needs bitsandbytes: pip install 'peftly\[quant\]'"):
        load(tmp_path / "a")


def test_a_base_whose_files_are_quantised_needs_no_note(tiny_llama_folder, tmp_path):
    base = load_base(str(tiny_llama_folder), dtype="float32", quantization="nf4")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    model = trained(tmp_path / "base", tmp_path / "a", None)
    assert "quantization" not in json.loads((tmp_path / "a" / "peftly.json").read_text())
    assert torch.equal(load(tmp_path / "a", dtype="float32").model(IDS).logits, model(IDS).logits)
    parity = save_merged(tmp_path / "a", tmp_path / "merged")
    assert parity.complaint is None


def test_a_merge_in_memory_needs_dequantize_first(tiny_llama_folder, tmp_path):
    model = trained(tiny_llama_folder, tmp_path / "a")
    expected = model(IDS).logits
    with pytest.raises(MethodError, match=r"is quantised: call peftly\.dequantize first"):
        merge(model)
    assert_close(merge(dequantize(model))(IDS).logits, expected, 1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_into_the_base_of_the_training(tiny_llama_folder, tmp_path, dtype):
    expected = trained(tiny_llama_folder, tmp_path / "a")(IDS).logits
    parity = save_merged(tmp_path / "a", tmp_path / "merged", dtype=dtype)
    assert parity.complaint is None
    assert parity.quantized is None
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert not [key for key in config if "quant" in key]
    assert "its linear layers dequantised from nf4" in (tmp_path / "merged" / "README.md").read_text()
    found = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").float()
    assert_close(found(IDS).logits, expected, 1e-5 if dtype == "float32" else 2e-2)


def test_a_merge_into_the_original_base(tiny_llama_folder, tmp_path):
    model = trained(tiny_llama_folder, tmp_path / "a")
    parity = save_merged(tmp_path / "a", tmp_path / "merged", dtype="float32", into="original")
    assert parity.complaint is None
    away, perplexity = parity.quantized
    assert away > 0.01
    assert perplexity > 1
    assert "over the quantised base of training" in dict(parity.rows())
    found = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(IDS).logits
    plain = load(tmp_path / "a", dtype="float32", quantization="none").model(IDS).logits
    assert_close(found, plain, 1e-5)
    assert (found - model(IDS).logits).norm() > 0.01 * found.norm()


def test_a_base_can_be_chosen_after_quantised_training_only(tiny_llama_folder, tmp_path):
    model, tokenizer = load_base(str(tiny_llama_folder))
    save_adapter(attach(model, LoRA(), tokenizer=tokenizer), tmp_path / "a")
    with pytest.raises(ConfigError, match="was trained over the base as its files have it"):
        save_merged(tmp_path / "a", tmp_path / "merged", into="original")
    with pytest.raises(ConfigError, match="into='both' is not one of trained, original"):
        save_merged(tmp_path / "a", tmp_path / "merged", into="both")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("to", ["peft", "vllm"])
def test_an_export_notes_the_quantisation_of_the_base(tiny_llama_folder, tmp_path, to):
    trained(tiny_llama_folder, tmp_path / "a")
    assert any("trained over the base in nf4" in note for note in export(tmp_path / "a", to, tmp_path / to).notes)


def test_gguf_holds_the_base_of_the_training(tiny_llama_folder, tmp_path):
    expected = trained(tiny_llama_folder, tmp_path / "a")(IDS).logits
    export(tmp_path / "a", "gguf", tmp_path / "gguf", dtype="f32")
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    assert_close(load_base(str(file), dtype="float32").model(IDS).logits, expected, 1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_codes_do_not_depend_on_the_dtype_of_the_opened_base(tiny_llama_folder, tmp_path, kind):
    """The base's files are in fp32. The training quantised them from bf16, which gives other codes than fp32."""
    model, tokenizer = load_base(str(tiny_llama_folder), dtype="bfloat16", quantization=kind)
    attach(model, LoRA(rank=4), tokenizer=tokenizer)
    perturb(trainable_parameters(model).values(), scale=0.05)
    save_adapter(model, tmp_path / "a")
    again = load(tmp_path / "a", dtype="float32").model
    assert again.dtype == torch.float32
    for one, other in zip(*(filter(is_quantized, each.modules()) for each in (model, again)), strict=True):
        assert torch.equal(one.weight.data, other.weight.data)
    expected = again(IDS).logits
    assert_close(model(IDS).logits.float(), expected, 0.03)
    save_merged(tmp_path / "a", tmp_path / "merged", dtype="float32")
    merged = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_close(merged(IDS).logits, expected, 1e-5)
    save_adapter(dequantize(again), tmp_path / "b")
    assert_close(load(tmp_path / "b", dtype="float32").model(IDS).logits, expected, 1e-5)


def test_adapters_of_two_bases_are_not_merged_together(tiny_llama_folder, tmp_path):
    trained(tiny_llama_folder, tmp_path / "a")
    trained(tiny_llama_folder, tmp_path / "b", None)
    for pair in (("a", "b"), ("b", "a")):
        with pytest.raises(AdapterError, match="were not trained over the same quantisation of their base"):
            save_merged([tmp_path / name for name in pair], tmp_path / "merged")


def test_an_unknown_quantisation_in_the_notes_is_refused(tiny_llama_folder, tmp_path):
    trained(tiny_llama_folder, tmp_path / "a")
    for wrong in ({"kind": "nf5"}, "nf4"):
        edit_notes(tmp_path / "a", quantization=wrong)
        with pytest.raises(AdapterError, match="is no known quantisation"):
            load(tmp_path / "a")


ADVICE = (
    r"trained over a base in {}, and this base {}.*quantization='{}'\).*peftly\.merge\(peftly\.dequantize\(model\)\)"
)


@pytest.mark.parametrize(
    ("kind", "present", "base"),
    [("nf4", None, "is not quantised"), ("int8", None, "is not quantised"), ("nf4", "int8", "is in int8")],
)
def test_an_adapter_over_another_quantization_says_so_when_loaded_and_when_merged(
    tiny_llama_folder, tmp_path, kind, present, base
):
    trained(tiny_llama_folder, tmp_path / "a", kind)
    model = load_base(str(tiny_llama_folder), dtype="float32", quantization=present).model
    with pytest.warns(UserWarning, match=f"{tmp_path / 'a'} was " + ADVICE.format(kind, base, kind)):
        load_adapter(model, tmp_path / "a", name="one")
    attach(model, LoRA(rank=2), name="own")
    with pytest.warns(UserWarning, match="one was " + ADVICE.format(kind, base, kind)):
        merge(dequantize(model), "one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(model)


def test_the_quantization_of_the_training_is_saved_again_until_the_adapter_is_trained_further(
    tiny_llama_folder, tmp_path
):
    trained(tiny_llama_folder, tmp_path / "a")
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    with pytest.warns(UserWarning, match="trained over a base in nf4"):
        load_adapter(model, tmp_path / "a")

    def noted(folder):
        save_adapter(model, folder)
        return json.loads((folder / "peftly.json").read_text()).get("quantization")

    original = json.loads((tmp_path / "a" / "peftly.json").read_text())["quantization"]
    assert noted(tmp_path / "b") == original
    parameters = trainable_parameters(model).values()
    model(IDS).logits.square().sum().backward()
    torch.optim.SGD(parameters, lr=1e-3).step()
    assert noted(tmp_path / "c") is None


@pytest.mark.parametrize("opened_by", ["peftly", "transformers"])
@pytest.mark.parametrize("plain_first", [True, False])
def test_an_adapter_over_the_base_of_its_training_is_merged_in_silence(
    tiny_llama_folder, tmp_path, opened_by, plain_first
):
    def opened():
        if opened_by == "peftly":
            return load_base(str(tiny_llama_folder), dtype="float32", quantization="nf4").model
        settings = tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        return tf.AutoModelForCausalLM.from_pretrained(
            tiny_llama_folder, quantization_config=settings, dtype=torch.float32
        )

    save_adapter(attach(dequantize(opened()), LoRA(rank=2)), tmp_path)
    assert json.loads((tmp_path / "peftly.json").read_text())["quantization"]["kind"] == "nf4"
    model = dequantize(opened()) if plain_first else opened()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(dequantize(load_adapter(model, tmp_path)))
        if opened_by == "peftly":  # files that others opened are not known
            load(tmp_path, quantization="none")


CARDS = {
    "nf4": (
        "base",
        "Settings of `bitsandbytes`:\n- load_in_4bit: True\n- bnb_4bit_quant_type: nf4\n",
    ),
    "fp4": ("base", "- _load_in_8bit: False\n- _load_in_4bit: True\n"),
    "int8": ("base", "- load_in_8bit: True\n- load_in_4bit: False\n- bnb_4bit_quant_type: nf4\n"),
    "nf4 by name": ("unsloth/llama-bnb-4bit", ""),
    "none": ("base", "- load_in_8bit: False\n- load_in_4bit: False\n"),
}


@pytest.mark.parametrize("case", CARDS)
def test_what_peft_writes_about_the_quantization_is_read(tiny_llama_folder, tmp_path, case):
    base_name, card = CARDS[case]
    theirs = peft.get_peft_model(
        tf.AutoModelForCausalLM.from_pretrained(tiny_llama_folder), peft.LoraConfig(target_modules=["q_proj"])
    )
    theirs.peft_config["default"].base_model_name_or_path = base_name
    theirs.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(f"# A model\n\n{card}\n### Framework versions\n")
    model = load_base(str(tiny_llama_folder)).model
    if case == "none":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_adapter(model, tmp_path)
        return
    with pytest.warns(UserWarning, match=ADVICE.format(case.split()[0], "is not quantised", case.split()[0])):
        load_adapter(model, tmp_path)
