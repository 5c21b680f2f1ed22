"""Logits of single examples against the formulas of the papers, packed calls of a user, and inputs that are refused.

The matrix compares batches with their single examples.
"""

import pytest
import torch
from invariance import tolerance
from references import CELLS, adapted, assert_close
from tiny import WINDOW, padded, random_token_ids, tiny_model

from peftly import METHODS
from peftly.errors import MethodError

TEXTS = random_token_ids([5, 3 * WINDOW, 11])


@pytest.mark.parametrize(("architecture", "method"), CELLS)
def test_logits_equal_the_formula_of_the_paper(architecture, method):
    model, reference = adapted(architecture, method)
    for text in TEXTS:
        ids = torch.tensor([text])
        with torch.no_grad():
            assert_close(model(ids).logits, reference(ids), tolerance(model))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [(a, m) for a, m in CELLS if a in ("llama", "qwen3", "gemma3", "glm4") and METHODS[m].packs],
)
def test_a_sequence_that_the_caller_packed_equals_its_examples(architecture, method):
    model, _ = adapted(architecture, method)
    ids = torch.tensor([[token for text in TEXTS for token in text]])
    positions = torch.cat([torch.arange(len(text)) for text in TEXTS])[None]
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits[0].split([len(text) for text in TEXTS])
        for text, logits in zip(TEXTS, packed, strict=True):
            assert_close(logits, model(torch.tensor([text])).logits[0], tolerance(model))


def test_hidden_states_and_attentions_are_those_of_the_text():
    model, _ = adapted("llama", "prompt_tuning", torch.float32)
    model.set_attn_implementation("eager")
    ids, mask = padded(TEXTS, "left")
    with torch.no_grad():
        output = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        last = model.get_decoder()(ids, attention_mask=mask).last_hidden_state
    assert {states.shape[1] for states in output.hidden_states} == {ids.shape[1]}
    torch.testing.assert_close(output.hidden_states[-1], last)
    assert {heads.shape[2:] for heads in output.attentions} == {(ids.shape[1], ids.shape[1] + 4)}


def test_a_cache_of_padding_only_is_refused_where_windows_count_columns():
    model, _ = adapted("gemma3", "prompt_tuning")
    ids, mask = padded(TEXTS, "left")
    with pytest.raises(MethodError, match="all padding"):
        model(ids[:, :7], attention_mask=mask[:, :7], use_cache=True)


def test_a_cache_filled_without_the_prompt_is_refused():
    model, _ = adapted("llama", "prompt_tuning")
    ids = torch.tensor([TEXTS[0]])
    with torch.no_grad():
        cache = tiny_model("llama")(ids, use_cache=True).past_key_values
        with pytest.raises(MethodError, match="filled without the virtual tokens"):
            model(ids, past_key_values=cache)


def test_texts_beyond_the_limit_and_packed_embeddings_are_refused():
    model, _ = adapted("gpt2", "prompt_tuning")
    with pytest.raises(MethodError, match="as input_ids only, not as inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 4, 32, dtype=model.dtype), position_ids=torch.tensor([[0, 1, 0, 1]]))
    with pytest.raises(MethodError, match="129 positions"):
        model(torch.ones(1, 125, dtype=torch.long))


def test_a_prefix_refuses_packed_sequences():
    model, _ = adapted("llama", "prefix_tuning")
    with pytest.raises(MethodError, match="packed sequences"):
        model(torch.tensor([[5, 6, 7, 8]]), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)
