"""The tokens nearest to the embeddings of a prompt."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftly import LoRA, PromptTuning, PTuning, attach, attached
from peftly.errors import MethodError
from peftly.inference.explanation import explain

TEXT = " the train was late"


@pytest.fixture(name="base")
def _base(tiny_llama_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder), AutoTokenizer.from_pretrained(tiny_llama_folder)


def test_embeddings_of_tokens_are_nearest_to_themselves(base):
    model, tokenizer = base
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    attach(model, PromptTuning(num_virtual_tokens=len(ids), init_text=TEXT), tokenizer=tokenizer)
    found = explain(model, tokenizer, seed=0)
    assert "".join(embedding.nearest[0].token for embedding in found.embeddings) == TEXT
    for embedding, token in zip(found.embeddings, ids, strict=True):
        assert embedding.nearest[0].cosine == pytest.approx(1, abs=1e-5)
        assert (embedding.moved, embedding.start.token) == (0, embedding.nearest[0].token)
        assert embedding.norm == pytest.approx(model.get_input_embeddings().weight[token].norm().item())
        cosines = [neighbour.cosine for neighbour in embedding.nearest]
        assert cosines == sorted(cosines, reverse=True)
        assert len(cosines) == 5
    lengths = model.get_input_embeddings().weight.norm(dim=1)
    assert found.typical_norm == pytest.approx(lengths.median().item(), rel=1e-5)
    assert list(attached(model)) == ["default"]


def test_moved_is_the_distance_from_the_start(base):
    model, tokenizer = base
    attach(model, PromptTuning(num_virtual_tokens=2, init="vocabulary"), tokenizer=tokenizer, seed=4)
    rows = attached(model)["default"].parameters()["prompt_embeddings"]
    with torch.no_grad():
        rows[1] += torch.tensor([3.0] + [0.0] * (rows.shape[1] - 2) + [4.0])
    moved = [embedding.moved for embedding in explain(model, tokenizer, seed=4).embeddings]
    assert moved == pytest.approx([0, 5])
    assert [embedding.moved for embedding in explain(model, tokenizer).embeddings] == [None, None]


def test_the_embeddings_of_p_tuning_come_from_its_network(base):
    model, tokenizer = base
    attach(model, PTuning(num_virtual_tokens=3), seed=1)
    assert [embedding.moved for embedding in explain(model, tokenizer, seed=1).embeddings] == [0, 0, 0]
    assert any(embedding.moved > 0 for embedding in explain(model, tokenizer, seed=2).embeddings)


def test_other_adapters_are_refused(base):
    model, tokenizer = base
    attach(model, LoRA())
    with pytest.raises(MethodError, match="'default' is an adapter of lora"):
        explain(model, tokenizer)
    with pytest.raises(MethodError, match="there is no adapter 'other'"):
        explain(model, tokenizer, name="other")
