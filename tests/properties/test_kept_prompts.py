"""What is computed from a soft prompt's or a prefix's weights alone is computed once, and never used when it is old."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from references import DEFAULTS, assert_close
from tiny import TASKS, WINDOW, padded, perturb, random_rows, tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from peftly import (
    METHODS,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    attached,
    detach,
    load_adapter,
    merge,
    save_adapter,
    set_adapters,
    trainable_parameters,
    use_adapters,
)
from peftly.inference.label_scoring import score_labels

ROWS = random_rows([5, 2 * WINDOW, 9])
COUNT = WINDOW + 2
CAUSAL = TASKS["causal_lm"]


def adapted(architecture="llama", method="prompt_tuning", **settings):
    """A model with a LoRA and a prompt that is longer than the window of sliding layers."""
    model = tiny_model(architecture)
    attach(model, LoRA(rank=2), name="lora")
    attach(model, METHODS[method].config(**DEFAULTS[method] | {"num_virtual_tokens": COUNT} | settings))
    perturb(trainable_parameters(model).values())
    return model.eval()


def logits(model, side="left", *, kept=True, rows=ROWS):
    """Those of some rows' own words, and of two more that follow; with gradients nothing is kept."""
    ids, mask = padded(rows, side)
    cache = DynamicCache(config=model.config)
    with torch.set_grad_enabled(not kept):
        first = model(ids, attention_mask=mask, past_key_values=cache).logits
        more = torch.arange(4, 4 + 2 * len(rows)).view(-1, 2)
        longer = torch.cat([mask, torch.ones_like(more)], dim=1)
        second = model(more, attention_mask=longer, past_key_values=cache).logits
    return torch.cat([first[mask.bool()], second.flatten(0, 1)]).detach()


@pytest.fixture
def reads(monkeypatch):
    """How often the rows of a prompt, or the values of a prefix, are made or looked up."""
    from peftly.injection.prefixes import Prefix
    from peftly.injection.virtual_tokens import VirtualTokens

    found = []
    for kind in (VirtualTokens, Prefix):
        values = kind.values

        def counted(self, values=values):
            found.append(self)
            return values(self)

        monkeypatch.setattr(kind, "values", counted)
    return found


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_kept_states_give_the_same_logits(architecture, side, reads):
    model = adapted(architecture)
    expected = logits(model, side, kept=False)
    reads.clear()
    for _ in range(3):
        assert_close(logits(model, side), expected, 2e-6 if architecture == "bloom" else 1e-12)
    assert len(reads) == 1


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_rows_without_a_mask_and_several_prompts(method, reads):
    model = adapted(method=method)
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"), name="other")
    perturb(trainable_parameters(model).values())
    ids, found = torch.tensor(ROWS[:1]), {}
    for kept in (False, True, True):
        reads.clear()
        cache = DynamicCache(config=model.config)
        with torch.set_grad_enabled(not kept):
            found[kept] = [model(ids, past_key_values=cache).logits.detach() for _ in range(2)]
            assert not kept or len(model(ids, past_key_values=DynamicCache(), return_dict=False)[1]) == 2
    assert not reads
    for one, expected in zip(found[True], found[False], strict=True):
        assert_close(one, expected, 1e-12 if method == "prompt_tuning" else 1e-6)  # its network computes in fp32


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": True, "top_k": 0}, {"num_beams": 3, "do_sample": False}],
    ids=["greedy", "sampled", "beams"],
)
@pytest.mark.parametrize("architecture", CAUSAL)
def test_generated_texts_are_the_same(architecture, options, reads):
    model = adapted(architecture)
    ids, mask = padded(ROWS, "left")
    found = []
    for use_cache in (False, True, True):
        reads.clear()
        torch.manual_seed(5)
        found.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, use_cache=use_cache, **options))
    assert not reads
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_every_request_shares_them(reads):
    model = adapted()
    for rows in (ROWS, ROWS[:1], ROWS[1:] * 3):
        ids, mask = padded(rows, "left")
        model.generate(ids, attention_mask=mask, max_new_tokens=3)
        with torch.no_grad():
            scores, _ = score_labels(model, rows, [[5, 6, 2], [7, 2]], pad_id=0)
        assert scores.isfinite().all()
    assert len(reads) == 1


def test_hidden_states_and_attentions_are_those_of_the_text():
    model = adapted()
    model.set_attn_implementation("eager")
    ids, mask = padded(ROWS, "right")  # what padding in front of a text shows is nobody's
    found = []
    for kept in (False, True):
        with torch.set_grad_enabled(not kept):
            cache = DynamicCache(config=model.config)
            output = model(
                ids, attention_mask=mask, past_key_values=cache, output_hidden_states=True, output_attentions=True
            )
        own = [states[mask.bool()] for states in output.hidden_states]
        found.append([*own, *(heads.transpose(1, 2)[mask.bool()] for heads in output.attentions)])
    for expected, states in zip(*found, strict=True):
        assert_close(states, expected, 1e-6)  # eager attention has its softmax in fp32


def fused_step(model):
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(trainable_parameters(model).values(), lr=0.1, fused=True).step()


def through_data(model):
    model.get_decoder().layers[0].self_attn.k_proj.weight.data.mul_(1.5)


def one_value(model):
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.down_proj.weight[3, 5] += 9


def other_storage(model):
    weight = model.get_decoder().layers[1].input_layernorm.weight
    weight.data = weight.data + 1


def other_parameter(model):
    norm = model.get_decoder().layers[1].input_layernorm
    norm.weight = nn.Parameter(norm.weight.detach() * 2)


def another_adapter(model):
    attach(model, LoRA(rank=2, target_modules=("v_proj",)), name="second")
    perturb(p for path, p in trainable_parameters(model).items() if ".second." in path)


def another_prompt(model):
    detach(model, "default")
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"), seed=8)


def steered(model):
    model.get_decoder().layers[0].register_forward_hook(lambda module, args, output: output + 1)


def replaced(model):
    norm = model.get_decoder().layers[0].input_layernorm
    norm.forward = lambda states: type(norm).forward(norm, states) * 2


LAYER_ADAPTERS = [
    fused_step,
    through_data,
    one_value,
    other_storage,
    other_parameter,
    another_adapter,
    another_prompt,
    steered,
    replaced,
    lambda model: merge(model, "lora"),
    lambda model: detach(model, "lora"),
    lambda model: set_adapters(model, "default"),
    lambda model: model.float(),
]


@pytest.mark.parametrize(
    "change", LAYER_ADAPTERS, ids=lambda change: change.__name__ + str(LAYER_ADAPTERS.index(change))
)
def test_they_are_never_old(change, tmp_path):
    model = adapted()
    before = logits(model)
    change(model)
    after = logits(model)
    expected = logits(model, kept=False)
    assert_close(after, expected, 1e-5 if after.dtype == torch.float32 else 1e-12)
    if change is not LAYER_ADAPTERS[-1] and change is not LAYER_ADAPTERS[9]:  # which keep the values
        assert (after - before).norm() > 1e-4 * before.norm()


def test_what_is_switched_off_for_some_calls_is_off_in_the_prompt_too():
    model = adapted()
    both = logits(model)
    with use_adapters(model, "default"):
        alone = logits(model)
        assert_close(alone, logits(model, kept=False), 1e-12)
    assert (alone - both).norm() > 1e-4 * both.norm()
    assert_close(logits(model), both, 1e-12)


def test_a_step_in_training_shows_at_once():
    model = adapted()
    logits(model)
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.5)
    for _ in range(2):
        model(torch.tensor(ROWS[:1]), labels=torch.tensor(ROWS[:1])).loss.backward()
        optimizer.step()
        assert_close(logits(model), logits(model, kept=False), 1e-12)


def test_values_of_a_file_show_at_once(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path, name="default")
    before = logits(model)
    with torch.no_grad():
        attached(model)["default"].change.rows.zero_()
    assert (logits(model) - before).norm() > 1e-4 * before.norm()
    detach(model, "default")
    load_adapter(model, tmp_path)
    set_adapters(model, "lora", "default")
    assert_close(logits(model), before, 1e-12)


def test_dropout_of_an_adapter_is_not_kept(reads):
    model = adapted()
    attach(model, LoRA(rank=2, dropout=0.5), name="dropped")
    perturb(trainable_parameters(model).values())
    model.train()
    found = [logits(model) for _ in range(3)]
    assert len(reads) == 3
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("case", ["rows", "prefix", "long rope"])
def test_what_cannot_be_shared_is_computed_in_every_call(case, reads):
    model = long_model() if case == "long rope" else adapted()
    if case == "prefix":
        attach(model, PrefixTuning(num_virtual_tokens=2), name="prefix")
        perturb(trainable_parameters(model).values())
    names = ["default", "lora", ("default", "lora")] if case == "rows" else [tuple(attached(model))]
    with use_adapters(model, rows=names) if case == "rows" else use_adapters(model, *names[0]):
        expected = logits(model, kept=False)
        reads.clear()
        found = [logits(model) for _ in range(2)]
    assert_close(found[1], expected, 1e-12)
    assert reads.count(attached(model)["default"].change) == 2


def long_model():
    """One whose keys turn by other angles in a text of more than 16 words."""
    config = tiny_config("llama")
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0], "factor": 8.0}
    rope = {"rope_type": "longrope", "rope_theta": 10.0, "original_max_position_embeddings": 16}
    config.rope_parameters = rope | factors
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"))
    perturb([*model.parameters()])
    return model


def test_a_fresh_adapter_needs_no_call_of_eval(reads):
    model = tiny_model("llama")
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"))
    reads.clear()
    for _ in range(3):
        logits(model)
    assert len(reads) == 1


def test_copies_and_pickles_do_without_them(tmp_path):
    model = adapted()
    before, size = logits(model, kept=False), len(pickle.dumps(model))
    names = set(model.state_dict())
    logits(model)
    assert len(pickle.dumps(model)) == size
    assert set(model.state_dict()) == names
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert attached(other)["default"].change.kept._entry is None
        with torch.no_grad():
            attached(other)["default"].change.rows.add_(1)
        assert_close(logits(other), logits(other, kept=False), 1e-12)
    assert_close(logits(model), before, 1e-12)


def test_they_go_with_the_adapter():
    model = adapted()
    logits(model)
    states = [weakref.ref(one) for one in attached(model)["default"].change.kept._entry[1]]
    assert len(states) == 4
    detach(model, "default")
    gc.collect()
    assert not any(one() is not None for one in states)


@pytest.mark.parametrize("change", [fused_step, lambda model: model.double()], ids=["step", "dtype"])
def test_a_prefix_is_made_once_by_its_network(change, reads):
    model = adapted(method="prefix_tuning", projection=True)
    expected = logits(model, kept=False)
    reads.clear()
    for _ in range(3):
        assert_close(logits(model), expected, 1e-12)
    assert len(reads) == 1
    change(model)
    expected = logits(model, kept=False)
    reads.clear()
    for _ in range(2):
        assert_close(logits(model), expected, 1e-12)
    assert len(reads) == 1
