"""What a prompt is said to be near to."""

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


def test_rows_that_are_words_are_near_to_themselves(base):
    model, tokenizer = base
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    attach(model, PromptTuning(num_virtual_tokens=len(ids), init_text=TEXT), tokenizer=tokenizer)
    found = explain(model, tokenizer, seed=0)
    assert "".join(row.nearest[0].word for row in found.rows) == TEXT
    for row, id_ in zip(found.rows, ids, strict=True):
        assert row.nearest[0].cosine == pytest.approx(1, abs=1e-5)
        assert (row.moved, row.start.word) == (0, row.nearest[0].word)
        assert row.norm == pytest.approx(model.get_input_embeddings().weight[id_].norm().item())
        cosines = [neighbour.cosine for neighbour in row.nearest]
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
    moved = [row.moved for row in explain(model, tokenizer, seed=4).rows]
    assert moved == pytest.approx([0, 5])
    assert [row.moved for row in explain(model, tokenizer).rows] == [None, None]


def test_a_network_is_asked_for_its_rows(base):
    model, tokenizer = base
    attach(model, PTuning(num_virtual_tokens=3), seed=1)
    assert [row.moved for row in explain(model, tokenizer, seed=1).rows] == [0, 0, 0]
    assert any(row.moved > 0 for row in explain(model, tokenizer, seed=2).rows)


def test_what_has_no_words_is_refused(base):
    model, tokenizer = base
    attach(model, LoRA())
    with pytest.raises(MethodError, match="'default' is one of lora"):
        explain(model, tokenizer)
    with pytest.raises(MethodError, match="there is no adapter 'other'"):
        explain(model, tokenizer, name="other")
