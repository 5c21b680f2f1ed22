"""The logits of a merged model equal those of the adapted one, in memory and from files, in plain transformers."""

import warnings
from contextlib import nullcontext

import pytest
import torch
import transformers as tf
from matrix import bare_model, cells
from references import assert_close
from tiny import TASKS, perturb, tiny_model

from peftly import METHODS, attach, detach, merge, trainable_parameters
from peftly.models.tasks import TASKS as HEADS

IDS = torch.tensor([[5, 17, 33, 60, 8, 41, 12]])
MERGEABLE = [name for name, method in METHODS.items() if method.mergeable]
EVERY = cells(methods=MERGEABLE)
CELLS = [cell for cell in EVERY if cell.reason_left_out is None]
BIASED = [
    ("causal_lm", architecture, {"bias": bias, "rank": 3})
    for architecture in (
        "bloom",
        "gpt2",
        "opt",
        "phi",
    )  # one projection of q, k and v, Conv1D, a tied head, a head with a bias
    for bias in ("all", "lora_only")
]
WORDS = {
    "llama": ("model.embed_tokens", "lm_head"),  # not tied
    "gpt2": ("transformer.wte", "lm_head"),
    "gemma3": ("model.embed_tokens", "lm_head"),  # which scales its embeddings
    "bart": ("model.decoder.embed_tokens", "lm_head"),  # one of four that share a weight
    "t5": ("decoder.embed_tokens", "lm_head"),  # likewise, and its config cannot say that nothing is tied
}
TORN = [(architecture, *which) for architecture in WORDS for which in ((True, False), (False, True), (True, True))]


def logits_of(model):
    inputs = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, :4]
    with torch.no_grad():
        return model(**inputs).logits


def adapted(task, architecture, config):
    model = tiny_model(architecture, task=task)
    attach(model, config)
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


def assert_merged_equals(task, model, folder, expected):
    bound = 1e-10 if model.dtype == torch.float64 else 1e-5
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "untied")
        merge(model)
    assert_close(logits_of(model), expected, bound)
    assert not [name for name in model.state_dict() if "peftly" in name]
    model.save_pretrained(folder)
    again, report = getattr(tf, HEADS[task].auto_class).from_pretrained(folder, output_loading_info=True)
    assert (report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"]) == (set(), set(), set())
    assert again.dtype == model.dtype
    # Transformers keeps the scale of Gemma's embeddings in fp32.
    assert_close(logits_of(again.eval()), expected, 1e-6 if "gemma3" in model.config.model_type else bound)
    return again


def test_the_cells_are_counted():
    assert len(CELLS) > 0.9 * len(EVERY)
    assert {cell.method for cell in CELLS} == set(MERGEABLE)


@pytest.mark.sample(4)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_mergeable_method(cell, tmp_path):
    model = adapted(cell.task, cell.architecture, cell.config())
    expected = logits_of(model)
    assert_merged_equals(cell.task, model, tmp_path, expected)
    assert (expected - logits_of(bare_model(cell.task, cell.architecture))).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "llama"])
def test_a_merge_that_unties_the_head_warns(architecture):
    model = adapted("causal_lm", architecture, METHODS["selective"].config(head=True, last_layers=0))
    expected = logits_of(model)
    with (
        nullcontext() if architecture == "llama" else pytest.warns(UserWarning, match="^untied")
    ):  # llama's is not tied
        merge(model)
    assert_close(logits_of(model), expected, 1e-6)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_biases_that_a_model_lacks_are_not_trained(method):
    model, config = tiny_model("llama"), METHODS[method].config(rank=3, bias="all")
    with pytest.warns(UserWarning, match="trains no bias"):
        attach(model, config)
    perturb(trainable_parameters(model).values())
    expected = logits_of(model)
    assert_close(logits_of(merge(model)), expected, 1e-5)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(("task", "architecture", "settings"), BIASED)
def test_trained_biases(task, architecture, settings, method, tmp_path):
    model = adapted(task, architecture, METHODS[method].config(**settings))
    assert_merged_equals(task, model, tmp_path, logits_of(model))


def test_pissa(tmp_path):
    model = adapted("causal_lm", "gpt2", METHODS["lora"].config(rank=3, init="pissa", rslora=True))
    assert_merged_equals("causal_lm", model, tmp_path, logits_of(model))


@pytest.mark.parametrize(("architecture", "words", "head"), TORN)
@pytest.mark.parametrize("saved", [False, True])
def test_tied_weights_are_untied_where_they_differ(architecture, words, head, saved, tmp_path):
    task = "causal_lm" if architecture in TASKS["causal_lm"] else "seq2seq_lm"
    names = tuple(name for name, wanted in zip(WORDS[architecture], (words, head), strict=True) if wanted)
    settings = {"target_modules": names} if not saved else {"modules_to_save": names, "target_modules": "all-linear"}
    model = adapted(task, architecture, METHODS["lora"].config(rank=3, **settings))
    expected = logits_of(model)
    again = assert_merged_equals(task, model, tmp_path, expected)
    both = [again.get_parameter(f"{name}.weight") for name in WORDS[architecture]]
    own = model.get_parameter(f"{WORDS[architecture][0]}.weight") is not model.get_parameter("lm_head.weight")
    # Copies of both keep sharing what they shared, unless a third place has none.
    assert own == (architecture == "llama" or not (saved and words and head) or architecture in ("bart", "t5"))
    assert (both[0] is not both[1]) == own
    assert again.config.tie_word_embeddings == (architecture == "t5" or not own)


def test_what_could_be_trained_before_can_be_trained_after_untying():
    model = tiny_model("gpt2").requires_grad_(True)
    attach(model, METHODS["lora"].config(target_modules=("lm_head",)))
    attach(model, METHODS["prompt_tuning"].config(init="random"), name="prompt")
    with pytest.warns(UserWarning, match=r"untied, .*: transformer\.wte\.weight and lm_head\.weight"):
        merge(model, "default")
    assert not model.lm_head.weight.requires_grad
    detach(model)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is not model.transformer.wte.weight
