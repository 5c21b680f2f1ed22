"""A vocabulary that is resized before or after adapters are attached, and embeddings in the files of adapters."""

import copy
import warnings

import pytest
import torch
from references import assert_close
from safetensors.torch import load_file, save_file
from tiny import perturb, tiny_model

from peftly import (
    DoRA,
    Full,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    attached,
    detach,
    load_adapter,
    merge,
    save_adapter,
    trainable_parameters,
)
from peftly.errors import AdapterError, MethodError

IDS = torch.tensor([[5, 98, 33, 60, 97, 41, 99]])
ROWS = 100
FILE = "adapter_model.safetensors"


def llama(**sizes):
    return tiny_model("llama", torch.float32, **sizes)


def resized(seed, model=None):
    model = model or llama()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.resize_token_embeddings(ROWS, mean_resizing=False)
    return model


def saved(model, folder, config=None, **options):
    """Return the logits of a perturbed adapter, which is saved."""
    attach(model, config or LoRA(rank=2))
    perturb(trainable_parameters(model).values())
    save_adapter(model, folder, **options)
    return model(IDS).logits.detach()


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize(
    "config", [LoRA(rank=2), PromptTuning(init="random"), PrefixTuning(init="random")], ids=lambda config: config.name
)
def test_a_resize_after_attach_is_as_one_before(config, is_tied, tmp_path):
    model = attach(llama(tie_word_embeddings=is_tied), config)
    perturb(trainable_parameters(model).values())
    resized(1, model)
    before = attach(resized(1, llama(tie_word_embeddings=is_tied)), config)
    with torch.no_grad():  # a random prompt starts from other embeddings
        for name, parameter in trainable_parameters(before).items():
            parameter.copy_(model.get_parameter(name))
    expected = before(IDS).logits
    assert expected.shape[-1] == ROWS
    assert_close(model(IDS).logits, expected, 1e-6)
    save_adapter(model, tmp_path)
    again = load_adapter(resized(2, llama(tie_word_embeddings=is_tied)), tmp_path)
    assert_close(again(IDS).logits, expected, 1e-6)


DEPENDENT = {
    "LoRA of the head": (LoRA(target_modules=("q_proj", "lm_head")), "lm_head"),
    "DoRA of the head": (DoRA(target_modules=("q_proj", "lm_head")), "lm_head"),
    "LoRA of the embedding": (LoRA(target_modules=("embed_tokens",)), "model.embed_tokens"),
    "a copy of the head": (LoRA(modules_to_save=("lm_head",)), "lm_head"),
    "a copy of all": (Full(), "model.embed_tokens"),
}


@pytest.mark.parametrize("case", DEPENDENT)
def test_weights_of_each_token_refuse_a_resize(case):
    config, path = DEPENDENT[case]
    model = attach(llama(), config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    match = f"^resize_token_embeddings: the adapter 'default' has weights for each token .*, in {path}; resize before"
    for arguments in ((ROWS,), (None, 64)):
        with pytest.raises(MethodError, match=match):
            model.resize_token_embeddings(*arguments)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(97) is model.get_input_embeddings()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    detach(model)
    assert "resize_token_embeddings" not in vars(model)
    assert len(resized(0, model).lm_head.weight) == ROWS


def test_an_adapted_embedding_is_not_replaced():
    model = attach(llama(), PromptTuning(init="random"))
    other = torch.nn.Embedding(ROWS, 32)
    with pytest.raises(MethodError, match=r"^set_input_embeddings would replace a layer that the adapter 'default'"):
        model.set_input_embeddings(other)
    model.set_input_embeddings(model.get_input_embeddings())
    model.set_output_embeddings(torch.nn.Linear(32, ROWS))  # no adapter changes it
    detach(model)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other


def test_a_base_with_another_vocabulary_is_refused_before_anything_changes(tmp_path):
    saved(resized(1), tmp_path, embeddings=True)
    base = llama()
    before = {key: value.clone() for key, value in base.state_dict().items()}
    match = r"vocabulary of 100 tokens, and this base has 97; call model\.resize_token_embeddings\(100\) first"
    with pytest.raises(AdapterError, match=match):
        load_adapter(base, tmp_path)
    assert not attached(base)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_embeddings_are_saved_as_asked(tmp_path):
    model = attach(llama(), LoRA(rank=2))
    for embeddings, count in ((None, 0), (True, 2), (False, 0)):
        save_adapter(model, tmp_path, embeddings=embeddings)
        assert sum("embed_tokens" in key or "lm_head" in key for key in load_file(tmp_path / FILE)) == count
    resized(0, model)
    save_adapter(model, tmp_path, embeddings=False)
    assert not any("lm_head" in key for key in load_file(tmp_path / FILE))
    save_adapter(model.bfloat16(), tmp_path)
    tensors = load_file(tmp_path / FILE)
    assert {key for key, value in tensors.items() if value.dtype == torch.bfloat16} == {
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.lm_head.weight",
    }


def test_other_adapters_keep_the_embeddings_that_they_were_trained_with(tmp_path):
    expected = saved(resized(1), tmp_path / "a", embeddings=True)
    saved(resized(2), tmp_path / "b", embeddings=True)
    model = load_adapter(resized(3), tmp_path / "a")
    with pytest.raises(AdapterError, match=r"b has other embeddings of 3 tokens than this model with its other adapt"):
        load_adapter(model, tmp_path / "b", name="b")
    assert list(attached(model)) == ["default"]
    assert_close(model(IDS).logits, expected, 1e-6)
    load_adapter(model, tmp_path / "a", name="again")


def test_an_interrupted_load_leaves_the_embeddings_of_the_base(tmp_path, monkeypatch):
    saved(resized(1), tmp_path, embeddings=True)
    base = resized(2)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    monkeypatch.setattr("peftly.adapters.loading._compare_base", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_adapter(base, tmp_path)
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_untied_embeddings_are_refused_on_a_tied_base(tmp_path):
    saved(resized(1), tmp_path, embeddings=True)
    with pytest.raises(AdapterError, match=r"has other values for .* than for the layer to which this base ties it"):
        load_adapter(resized(2, llama(tie_word_embeddings=True)), tmp_path)


def test_new_tokens_without_embeddings_are_named(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    opened = type(llama()).from_pretrained
    saved(resized(1, opened(tmp_path / "base")), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / FILE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(resized(2, opened(tmp_path / "base")), tmp_path / "a")
    save_file({key: value for key, value in tensors.items() if "lm_head" not in key}, tmp_path / "a" / FILE)
    (tmp_path / "a" / "peftly.json").unlink()
    with pytest.warns(UserWarning, match=r"has 3 tokens that are not in the files of its base, .* for lm_head: texts"):
        load_adapter(resized(2, opened(tmp_path / "base")), tmp_path / "a")


def test_a_merged_model_keeps_the_embeddings(tmp_path):
    expected = saved(resized(1), tmp_path, embeddings=True)
    model = merge(load_adapter(resized(2), tmp_path))
    assert_close(model(IDS).logits, expected, 2e-6)
    assert "_peftly" not in vars(model)


def test_our_own_copies_of_tied_modules_are_tied(tmp_path):
    """As `Full` trains them; loaded and saved again they still are, and merging has nothing to untie."""
    config = LoRA(rank=2, modules_to_save=("embed_tokens", "lm_head"))
    model = attach(llama(tie_word_embeddings=True), config)
    perturb(trainable_parameters(model).values())
    save_adapter(model, tmp_path)
    again = load_adapter(llama(tie_word_embeddings=True), tmp_path)
    assert again.lm_head.peftly.default.copy.weight is again.model.embed_tokens.peftly.default.copy.weight
    expected = model(IDS % 97).logits
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge(copy.deepcopy(again))
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert_close(merged(IDS % 97).logits, expected, 2e-6)


def test_detached_embeddings_are_restored_in_another_dtype(tmp_path):
    saved(resized(1), tmp_path, embeddings=True)
    base = resized(2)
    expected = {key: value.bfloat16() for key, value in base.state_dict().items()}
    model = load_adapter(base, tmp_path).bfloat16()
    assert not torch.equal(model.lm_head.weight, expected["lm_head.weight"])
    detach(model)
    assert all(torch.equal(value, expected[key]) for key, value in base.state_dict().items())


def test_embeddings_of_another_base_are_used_with_a_warning(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    other = tiny_model("llama", torch.float32, seed=7)
    other.save_pretrained(tmp_path / "other")
    opened = type(other).from_pretrained
    expected = saved(resized(1, opened(tmp_path / "other")), tmp_path / "a")
    assert expected.isfinite().all()
    with pytest.warns(UserWarning, match="was trained over a base with other embeddings of 97 tokens; those in its"):
        load_adapter(resized(2, opened(tmp_path / "base")), tmp_path / "a")
