"""Promise 1: an example's loss, logits and gradients do not depend on what else is in its batch."""

import pytest
import torch
from invariance import gradient_tolerance, loss_and_gradients, tolerance
from references import CELLS, adapted, assert_close
from tiny import WINDOW, padded, random_rows, tiny_model

from peftly import METHODS
from peftly.errors import MethodError

ROWS = random_rows([5, 3 * WINDOW, 11])


@pytest.mark.parametrize(("architecture", "method"), CELLS)
class TestOneBatchManyWays:
    def test_single_rows_equal_the_plain_reference(self, architecture, method):
        model, reference = adapted(architecture, method)
        for row in ROWS:
            ids = torch.tensor([row])
            with torch.no_grad():
                assert_close(model(ids).logits, reference(ids), tolerance(model))

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("use_cache", [False, True])
    def test_padding_changes_nothing(self, architecture, method, side, use_cache):
        model, _ = adapted(architecture, method)
        singles = [loss_and_gradients(model, torch.tensor([row])) for row in ROWS]
        ids, mask = padded(ROWS, side)
        loss, logits, gradients = loss_and_gradients(model, ids, mask, use_cache=use_cache)
        assert_close(loss, sum(single[0] for single in singles), tolerance(model))
        assert_close(gradients, sum(single[2] for single in singles), gradient_tolerance(model))
        for row, single in enumerate(singles):
            assert_close(logits[row][mask[row].bool()], single[1][0], tolerance(model))

    def test_checkpointing_changes_nothing(self, architecture, method):
        model, _ = adapted(architecture, method)
        ids, mask = padded(ROWS, "left")
        loss, _, gradients = loss_and_gradients(model, ids, mask, use_cache=False)
        model.gradient_checkpointing_enable()
        model.train()
        again, _, again_gradients = loss_and_gradients(model, ids, mask, use_cache=False)
        assert_close(again, loss, tolerance(model))
        assert_close(again_gradients, gradients, tolerance(model))

    def test_a_cache_filled_in_pieces_changes_nothing(self, architecture, method):
        model, _ = adapted(architecture, method)
        ids, mask = padded(ROWS, "left")
        with torch.no_grad():
            whole = model(ids, attention_mask=mask).logits
            first = model(ids[:, :14], attention_mask=mask[:, :14], use_cache=True)
            rest = model(ids[:, 14:], attention_mask=mask, past_key_values=first.past_key_values)
        assert_close(rest.logits, whole[:, 14:], tolerance(model))


@pytest.mark.parametrize(
    ("architecture", "method"),
    [(a, m) for a, m in CELLS if a in ("llama", "qwen3", "gemma3", "glm4") and METHODS[m].packs],
)
def test_a_packed_row_equals_its_examples(architecture, method):
    model, _ = adapted(architecture, method)
    ids = torch.tensor([[token for row in ROWS for token in row]])
    positions = torch.cat([torch.arange(len(row)) for row in ROWS])[None]
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits[0].split([len(row) for row in ROWS])
        for row, logits in zip(ROWS, packed, strict=True):
            assert_close(logits, model(torch.tensor([row])).logits[0], tolerance(model))


def test_hidden_states_and_attentions_are_those_of_the_text():
    model, _ = adapted("llama", "prompt_tuning", torch.float32)
    model.set_attn_implementation("eager")
    ids, mask = padded(ROWS, "left")
    with torch.no_grad():
        output = model(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        last = model.get_decoder()(ids, attention_mask=mask).last_hidden_state
    assert {states.shape[1] for states in output.hidden_states} == {ids.shape[1]}
    torch.testing.assert_close(output.hidden_states[-1], last)
    assert {heads.shape[2:] for heads in output.attentions} == {(ids.shape[1], ids.shape[1] + 4)}


def test_a_cache_of_padding_only_is_refused_where_windows_count_columns():
    model, _ = adapted("gemma3", "prompt_tuning")
    ids, mask = padded(ROWS, "left")
    with pytest.raises(MethodError, match="all padding"):
        model(ids[:, :7], attention_mask=mask[:, :7], use_cache=True)


def test_a_cache_filled_without_the_prompt_is_refused():
    model, _ = adapted("llama", "prompt_tuning")
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        cache = tiny_model("llama")(ids, use_cache=True).past_key_values
        with pytest.raises(MethodError, match="filled without the virtual tokens"):
            model(ids, past_key_values=cache)


def test_embeddings_and_texts_past_the_limit_are_refused():
    model, _ = adapted("gpt2", "prompt_tuning")
    with pytest.raises(MethodError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32, dtype=model.dtype))
    with pytest.raises(MethodError, match="129 positions"):
        model(torch.ones(1, 125, dtype=torch.long))


def test_a_prefix_refuses_packed_rows():
    model, _ = adapted("llama", "prefix_tuning")
    with pytest.raises(MethodError, match="packed rows"):
        model(torch.tensor([[5, 6, 7, 8]]), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)
