"""Attention over packed sequences equals attention over each example alone."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from tiny import padded, random_token_ids, tiny_config, tiny_model

from peftly import LoRA, attach
from peftly.errors import MethodError
from peftly.kernels import packed_attention as attention
from peftly.kernels.packed_attention import (
    IMPLEMENTATION,
    Packing,
    no_mask,
    packed_attention,
    supports_packing,
    use_packed_attention,
)
from peftly.kernels.short_attention import is_short

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
LENGTHS, SHARED, GIVEN = [5, 1, 7], 3, 2


@pytest.fixture
def states():
    """Queries, keys and values of a packed sequence, and keys and values in front of it."""
    generator = torch.Generator().manual_seed(0)
    columns = SHARED + sum(LENGTHS)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double, requires_grad=True)

    row = [draw(1, heads, columns, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    return row, draw(1, 2, KEY_HEADS, GIVEN, WIDTH)


def by_hand(row, given, shared, *, causal, scaling, window=None, softcap=None, sinks=None):
    """Attention computed query by query, with the keys of each query written out."""
    query, key, value = (states[0].repeat_interleave(HEADS // len(states[0]), 0) for states in row)
    front_keys, front_values = (states.repeat_interleave(HEADS // KEY_HEADS, 0) for states in given)
    outputs = []
    ends = torch.tensor([shared, *LENGTHS]).cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        before = range(shared) if start >= shared else range(0)
        places = [*before, *range(start, end)]
        keys = torch.cat([front_keys, key[:, places]], 1)
        values = torch.cat([front_values, value[:, places]], 1)
        for place in range(start, end):
            at = front_keys.shape[1] + len(before) + place - start
            distance = at - torch.arange(keys.shape[1])
            seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
            if window is not None:
                seen &= distance < window if causal else distance.abs() < window
            scores = (keys @ query[:, place, :, None]).squeeze(2) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(~seen, -torch.inf)
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None]], 1)
            weights = scores.softmax(1)[:, : keys.shape[1]]
            outputs.append((weights[:, None] @ values).squeeze(1))
    return torch.stack(outputs)[None]


SINKS = torch.linspace(-1, 1, HEADS, dtype=torch.double)
LAYERS = {
    "causal": {"causal": True},
    "both ways": {"causal": False},
    "window": {"causal": True, "window": 4},
    "window both ways": {"causal": False, "window": 3},
    "softcap": {"causal": True, "softcap": 0.5},
    "sinks": {"causal": True, "sinks": SINKS},
    "all": {"causal": True, "window": 4, "softcap": 0.5, "sinks": SINKS},
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("shared", [0, SHARED])
@pytest.mark.parametrize("count", [0, GIVEN])
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("short", [False, True])
def test_every_query_attends_to_its_own_example_and_to_the_keys_in_front(
    states, layer, shared, count, scaling, short, monkeypatch
):
    monkeypatch.setattr(attention, "is_short", lambda query, key: short)
    row, given = states
    row = [one[:, :, SHARED - shared :] for one in row]
    given = given[:, :, :, :count]
    how = dict(LAYERS[layer])
    expected = by_hand(row, given[0], shared, scaling=scaling or WIDTH**-0.5, **how)
    module = SimpleNamespace(is_causal=how.pop("causal"), layer_idx=0)
    names = {"window": "sliding_window", "softcap": "softcap", "sinks": "s_aux"}
    packing = Packing(LENGTHS, shared=shared, states=given if count else None)
    options = {names[key]: value for key, value in how.items()}
    actual, weights = packed_attention(module, *row, None, scaling=scaling, packing=packing, **options)
    assert weights is None
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    chosen = [*states[0], states[1]] if count else states[0]
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    for mine, wanted in zip(*(torch.autograd.grad(one, chosen, upstream) for one in (actual, expected)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_short_examples_in_bf16_are_no_less_exact_than_with_the_fused_kernel(states, causal, monkeypatch):
    row = [one.detach().bfloat16().requires_grad_() for one in states[0]]
    exact = [one.detach().double().requires_grad_() for one in row]
    upstream = torch.randn(1, sum(LENGTHS), HEADS, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    module, packing = SimpleNamespace(is_causal=causal), Packing(LENGTHS)

    def run(row):
        row = [one[:, :, SHARED:] for one in row]
        return packed_attention(module, *row, None, packing=packing)[0]

    def error(output, chosen):
        found = [output, *torch.autograd.grad(output, chosen, upstream)]
        return [
            float((one.detach() - wanted.detach()).norm() / wanted.detach().norm())
            for one, wanted in zip(found, reference, strict=True)
        ]

    wanted = run(exact)
    reference = [wanted, *torch.autograd.grad(wanted, exact, upstream.double())]
    output = run(row)
    assert "ShortAttention" in str(list(_history(output)))
    by_products = error(output, row)
    monkeypatch.setattr(attention, "is_short", lambda query, key: False)
    fused = error(run(row), row)
    assert max(by_products) < 6e-3
    assert sum(by_products) < 1.2 * sum(fused)


def _history(output):
    """Names of the operations that computed a tensor."""
    left = [output.grad_fn]
    while left:
        node = left.pop()
        yield node.name()
        left += [before for before, _ in node.next_functions if before is not None]


def test_long_examples_and_calls_without_a_gradient_have_the_fused_kernel():
    short, long = (torch.zeros(1, 2, keys, 4, dtype=torch.bfloat16, requires_grad=True) for keys in (512, 513))
    assert is_short(short, short)
    assert not is_short(long, long)
    assert not is_short(short.detach(), short.detach())
    assert not is_short(short.float(), short.float())
    assert not is_short(short.half(), short.half())
    with torch.no_grad():
        assert not is_short(short, short)


def test_an_argument_overrides_the_attribute_of_the_layer(states):
    row, given = states
    module = SimpleNamespace(is_causal=True)
    actual, _ = packed_attention(module, *row, None, is_causal=False, packing=Packing(LENGTHS, shared=SHARED))
    expected = by_hand(row, given[0, :, :, :0], SHARED, causal=False, scaling=WIDTH**-0.5)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_dropout_leaves_some_of_the_weights(states):
    row, _ = states
    packing = Packing(LENGTHS, shared=SHARED)
    module = SimpleNamespace(is_causal=True)
    whole, _ = packed_attention(module, *row, None, packing=packing)
    torch.manual_seed(0)
    dropped, _ = packed_attention(module, *row, None, packing=packing, dropout=0.5)
    assert not torch.equal(dropped, whole)


def test_positions_restart_after_the_common_prefix():
    packing = Packing([2, 3], shared=2)
    assert packing.positions(torch.device("cpu")).tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    given = packing.with_states(torch.zeros(1, 2, 1, 4, 1))
    assert given.positions(torch.device("cpu")).tolist() == [[4, 5, 6, 7, 6, 7, 8]]
    assert (given.num_in_front, given.longest) == (6, 9)


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("short", [False, True])
def test_a_nan_stays_in_its_example(states, is_causal, short, monkeypatch):
    monkeypatch.setattr(attention, "is_short", lambda query, key: short)
    row, _ = states
    module, packing = SimpleNamespace(is_causal=is_causal), Packing(LENGTHS, shared=SHARED)
    first = torch.zeros(row[0].shape[2], 1, dtype=torch.double)
    first[SHARED] = torch.nan
    attended, _ = packed_attention(module, *(states + first for states in row), None, packing=packing)
    assert attended[0, SHARED : SHARED + LENGTHS[0]].isnan().any()
    assert not attended[0, SHARED + LENGTHS[0] :].isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": Packing([5, 1, 6], shared=SHARED)}, "one sequence of 15 columns"),
        ({"attention_mask": torch.ones(1, 1, 16, 16, dtype=torch.bool)}, "this model made one"),
        ({"position_bias": torch.ones(1)}, "does not support position_bias"),
    ],
)
def test_unsupported_arguments_are_refused(states, change, message):
    row, _ = states
    call = {"attention_mask": None, "packing": Packing(LENGTHS, shared=SHARED)} | change
    with pytest.raises(MethodError, match=message):
        packed_attention(SimpleNamespace(is_causal=True), *row, **call)


@dataclasses.dataclass
class Layer:
    config: SimpleNamespace
    layer_idx: int = 1
    is_causal: bool = True


@pytest.mark.parametrize("config", [{"layer_types": ["full_attention", "sliding_attention"]}, {"sliding_window": 4096}])
def test_a_window_that_is_only_in_the_mask_is_refused(states, config):
    row, _ = states
    packing = Packing(LENGTHS, shared=SHARED)
    with pytest.raises(MethodError, match="does not pass the width of its window"):
        packed_attention(Layer(SimpleNamespace(**config)), *row, None, packing=packing)
    packed_attention(Layer(SimpleNamespace(**config)), *row, None, packing=packing, sliding_window=4)


def test_which_models_support_packing():
    assert supports_packing(tiny_model("llama"))
    assert supports_packing(tiny_model("gemma3"))
    assert not supports_packing(tiny_model("bloom"))
    assert not supports_packing(tiny_model("t5", task="seq2seq_lm"))
    eager = tiny_model("llama")
    eager.set_attn_implementation("eager")
    assert not supports_packing(eager)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (tf.Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
        (tf.Qwen3NextConfig, {"layer_types": ["linear_attention", "full_attention"], "num_experts": 0}),
        (tf.FalconH1Config, {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
    ],
)
def test_a_model_that_mixes_columns_elsewhere_does_not(kind, more):
    settings = tiny_config("llama").to_dict()
    settings = {name: settings[name] for name in _SIZES}
    model = tf.AutoModelForCausalLM.from_config(kind(**settings | more), attn_implementation="sdpa")
    assert not supports_packing(model)


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)


def test_a_window_on_both_sides():
    """ModernBERT has it; its masks and its layers define the width differently."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    config = tf.ModernBertConfig(vocab_size=97, local_attention=8, pad_token_id=0, **sizes, **tokens)
    model = tf.AutoModelForTokenClassification.from_config(config, attn_implementation="sdpa").double().eval()
    attach(model, LoRA(rank=2))
    texts = random_token_ids([5, 19, 9])
    ids, mask = padded(texts, "right")
    assert supports_packing(model)
    with use_packed_attention(model):
        logits = model(input_ids=ids, attention_mask=mask).logits
    for row, text in zip(logits, texts, strict=True):
        # Cosines of positions are in fp32, and their last bit depends on the index of a position in a vector.
        torch.testing.assert_close(row[: len(text)], model(torch.tensor([text])).logits[0], rtol=1e-6, atol=1e-6)


def test_unpacked_calls_of_a_model_are_unchanged():
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    before = model(ids, attention_mask=mask).logits
    with use_packed_attention(model):
        assert model.config._attn_implementation == IMPLEMENTATION
        assert torch.equal(model(ids, attention_mask=mask).logits, before)
    assert model.config._attn_implementation == "sdpa"


def test_a_packed_call_of_a_bare_model():
    model = tiny_model("qwen3")
    texts = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 3, 3, 4]]
    packing = Packing([2, 1, 3], shared=2)
    ids = torch.tensor([[5, 6, 7, 8, 9, 3, 3, 4]])
    with use_packed_attention(model):
        logits = model(
            ids,
            attention_mask=no_mask(ids.device),
            position_ids=packing.positions(ids.device),
            packing=packing,
            use_cache=False,
        ).logits[0]
    alone = [model(torch.tensor([text])).logits[0] for text in texts]
    expected = torch.cat([alone[0], alone[1][2:], alone[2][2:]])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
