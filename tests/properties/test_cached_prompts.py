"""Tensors derived from the weights of soft prompts and prefixes: computed once inside a block, in each call outside."""

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from references import DEFAULTS, assert_close
from tiny import TASKS, WINDOW, padded, perturb, random_token_ids, tiny_config, tiny_model
from transformers import AutoModelForCausalLM, DynamicCache

import peftly
from peftly import (
    METHODS,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    attached,
    cache_adapter_tensors,
    detach,
    load_adapter,
    merge,
    save_adapter,
    set_adapters,
    trainable_parameters,
    use_adapters,
)
from peftly.inference.label_scoring import score_labels
from peftly.injection import evaluation_mode

TEXTS = random_token_ids([5, 2 * WINDOW, 9])
COUNT = WINDOW + 2
CAUSAL = TASKS["causal_lm"]


def adapted(architecture="llama", method="prompt_tuning", **settings):
    """A model with a LoRA and a prompt that is longer than the window of sliding layers."""
    model = tiny_model(architecture)
    attach(model, LoRA(rank=2), name="lora")
    attach(model, METHODS[method].config(**DEFAULTS[method] | {"num_virtual_tokens": COUNT} | settings))
    perturb(trainable_parameters(model).values())
    return model.eval()


def logits(model, side="left", *, texts=TEXTS):
    """Logits of some texts, and of two more tokens that continue each."""
    ids, mask = padded(texts, side)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(ids, attention_mask=mask, past_key_values=cache).logits
        more = torch.arange(4, 4 + 2 * len(texts)).view(-1, 2)
        longer = torch.cat([mask, torch.ones_like(more)], dim=1)
        second = model(more, attention_mask=longer, past_key_values=cache).logits
    return torch.cat([first[mask.bool()], second.flatten(0, 1)])


def cached_logits(model, *args, **kwargs):
    with cache_adapter_tensors():
        return logits(model, *args, **kwargs)


@pytest.fixture
def reads(monkeypatch):
    """The prompts and prefixes whose values were computed or looked up, each as often as they were."""
    from peftly.injection.prefixes import Prefix
    from peftly.injection.virtual_tokens import VirtualTokens

    reads = []
    for kind in (VirtualTokens, Prefix):
        values = kind.values

        def counted(self, values=values):
            reads.append(self)
            return values(self)

        monkeypatch.setattr(kind, "values", counted)
    return reads


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_cached_states_give_the_same_logits(architecture, side, reads):
    model = adapted(architecture)
    expected = logits(model, side)
    reads.clear()
    with cache_adapter_tensors():
        for _ in range(3):
            assert_close(logits(model, side), expected, 2e-6 if architecture == "bloom" else 1e-12)
    assert len(reads) == 1


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_calls_without_a_mask_and_several_prompts(method, reads):
    model = adapted(method=method)
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"), name="other")
    perturb(trainable_parameters(model).values())
    ids = torch.tensor(TEXTS[:1])

    def two_calls():
        cache = DynamicCache(config=model.config)
        return torch.cat([model(ids, past_key_values=cache).logits for _ in range(2)])

    with torch.no_grad():
        expected = two_calls()
        with cache_adapter_tensors():
            two_calls()
            reads.clear()
            found = two_calls()
            assert len(model(ids, past_key_values=DynamicCache(), return_dict=False)[1]) == 2
    assert not reads
    assert_close(found, expected, 1e-12 if method == "prompt_tuning" else 1e-6)  # its network computes in fp32


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": True, "top_k": 0}, {"num_beams": 3, "do_sample": False}],
    ids=["greedy", "sampled", "beams"],
)
@pytest.mark.parametrize("architecture", CAUSAL)
def test_generated_texts_are_the_same(architecture, options, reads):
    model = adapted(architecture)
    ids, mask = padded(TEXTS, "left")
    outputs = []
    for use_cache in (False, True):
        reads.clear()
        torch.manual_seed(5)
        outputs.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, use_cache=use_cache, **options))
    assert len(reads) == 1, "the prompt is read once for each generated text"
    assert torch.equal(*outputs)


def test_requests_inside_a_block_share_them(reads):
    model = adapted()
    with torch.no_grad(), cache_adapter_tensors():
        for texts in (TEXTS, TEXTS[:1], TEXTS[1:] * 3):
            ids, mask = padded(texts, "left")
            model.generate(ids, attention_mask=mask, max_new_tokens=3)
            scores, _ = score_labels(model, texts, [[5, 6, 2], [7, 2]], pad_id=0)
            assert scores.isfinite().all()
        with cache_adapter_tensors(), evaluation_mode(model):
            logits(model)
        logits(model)
    assert len(reads) == 1


def test_hidden_states_and_attentions_are_those_of_the_text():
    model = adapted()
    model.set_attn_implementation("eager")
    ids, mask = padded(TEXTS, "right")  # the attentions of padding in front of a text differ, and nobody reads them
    outputs = []
    for block in (contextlib.nullcontext, cache_adapter_tensors):
        with torch.no_grad(), block():
            cache = DynamicCache(config=model.config)
            output = model(
                ids, attention_mask=mask, past_key_values=cache, output_hidden_states=True, output_attentions=True
            )
        text_states = [states[mask.bool()] for states in output.hidden_states]
        outputs.append([*text_states, *(heads.transpose(1, 2)[mask.bool()] for heads in output.attentions)])
    for expected, states in zip(*outputs, strict=True):
        assert_close(states, expected, 1e-6)  # eager attention has its softmax in fp32


# --- weights and adapters that change


def change_one_value(model):
    # Neither the version of the parameter nor any other value of it tells.
    model.get_decoder().layers[0].self_attn.k_proj.weight.data[0, 1] += 9


def fused_step(model):
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(trainable_parameters(model).values(), lr=0.1, fused=True).step()


def steer(model):
    model.get_decoder().layers[0].register_forward_hook(lambda module, args, output: output + 1)


@pytest.mark.parametrize("change", [change_one_value, fused_step, steer])
def test_calls_outside_a_block_see_changed_weights(change):
    model = adapted()
    before = logits(model)
    change(model)
    after = logits(model)
    expected = logits(copy.deepcopy(model))  # which has made no call
    assert_close(after, expected, 1e-12)
    assert (after - before).norm() > 1e-4 * before.norm()


@pytest.mark.parametrize("change", [change_one_value, fused_step, steer])
def test_the_next_block_sees_changed_weights(change):
    model = adapted()
    before = cached_logits(model)
    change(model)
    after = cached_logits(model)
    assert_close(after, logits(model), 1e-12)
    assert (after - before).norm() > 1e-4 * before.norm()


def write_data(model):
    for parameter in trainable_parameters(model).values():
        parameter.data.mul_(-3)


def replace_data(model):
    for parameter in trainable_parameters(model).values():
        parameter.data = -3 * parameter.data


@torch.no_grad()
def write_in_place(model):
    for parameter in trainable_parameters(model).values():
        parameter.mul_(-3)


def load_state(model):
    state = model.state_dict()
    model.load_state_dict(state | {name: -3 * state[name] for name in trainable_parameters(model)})


def convert(model):
    model.to(torch.bfloat16).to(torch.float64)


def attach_another(model):
    attach(model, LoRA(rank=2, target_modules=("v_proj",)), name="second")
    perturb(p for path, p in trainable_parameters(model).items() if ".second." in path)


CHANGES = [change_one_value, fused_step, write_data, replace_data, write_in_place, load_state, convert, attach_another]
CACHING = {
    "lora": {},
    "dora": {},
    "ia3": {},
    "adapter": {},
    "prompt_tuning": {"num_virtual_tokens": COUNT},
    "p_tuning": {"num_virtual_tokens": COUNT},
    "prefix_tuning": {"num_virtual_tokens": 3, "projection": True},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", CACHING)
@pytest.mark.sample(4)
def test_no_method_answers_from_weights_that_were_changed(method, change):
    """`generate`, `evaluate` and a block of the user's have cached tensors of the former weights."""
    model = tiny_model("llama")
    attach(model, METHODS[method].config(**DEFAULTS[method] | CACHING[method]))
    perturb(trainable_parameters(model).values())
    before = logits(model)
    model.generate(torch.tensor(TEXTS[:1]), max_new_tokens=3, do_sample=False)
    with evaluation_mode(model):
        logits(model)
    cached_logits(model)
    change(model)
    after, inside = logits(model), cached_logits(model)
    generated = model.generate(torch.tensor(TEXTS[:1]), max_new_tokens=6, do_sample=False)
    new = copy.deepcopy(model)  # which has made no call
    assert_close(after, logits(new), 1e-12)
    assert_close(inside, after, 2e-6)  # networks of prompts compute in fp32
    assert torch.equal(generated, new.generate(torch.tensor(TEXTS[:1]), max_new_tokens=6, do_sample=False))
    assert (after - before).norm() > 1e-4 * before.norm()


@pytest.mark.parametrize("method", CACHING)
def test_a_training_step_inside_a_block_shows_at_once(method):
    model = tiny_model("llama")
    attach(model, METHODS[method].config(**DEFAULTS[method] | CACHING[method]))
    perturb(trainable_parameters(model).values())
    ids = torch.tensor(TEXTS[:1])
    with cache_adapter_tensors():
        before = logits(model)
        model(ids, labels=ids).loss.backward()
        for parameter in trainable_parameters(model).values():
            parameter.data -= 0.5 * parameter.grad
        after = logits(model)
    assert_close(after, logits(copy.deepcopy(model)), 2e-6)
    assert (after - before).norm() > 1e-4 * before.norm()


def replace_prompt(model):
    detach(model, "default")
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"), seed=8)


ADAPTER_CHANGES = [
    attach_another,
    replace_prompt,
    lambda model: merge(model, "lora"),
    lambda model: detach(model, "lora"),
    lambda model: set_adapters(model, "default"),
    lambda model: set_adapters(model, "lora"),
]


@pytest.mark.parametrize("change", ADAPTER_CHANGES)
def test_adapters_may_change_inside_a_block(change):
    model = adapted()
    with cache_adapter_tensors():
        before = logits(model)
        change(model)
        after = logits(model)
    assert_close(after, logits(model), 1e-12)
    if change is not ADAPTER_CHANGES[2]:  # merging keeps the outputs
        assert (after - before).norm() > 1e-4 * before.norm()


def test_adapters_may_change_in_another_thread():
    model = adapted()
    with cache_adapter_tensors():
        before = logits(model)
        thread = threading.Thread(target=replace_prompt, args=(model,))
        thread.start()
        thread.join()
        after = logits(model)
    assert_close(after, logits(model), 1e-12)
    assert (after - before).norm() > 1e-4 * before.norm()


def test_an_adapter_may_be_loaded_inside_a_block(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path, name="default")
    expected = logits(model)
    with torch.no_grad():
        attached(model)["default"].virtual_tokens.embeddings.zero_()
    with cache_adapter_tensors():
        assert (logits(model) - expected).norm() > 1e-4 * expected.norm()
        detach(model, "default")
        load_adapter(model, tmp_path)
        set_adapters(model, "lora", "default")
        assert_close(logits(model), expected, 1e-12)


def test_calls_with_other_adapters_do_not_share_them():
    model = adapted()
    both = logits(model)
    with use_adapters(model, "default"):
        alone = logits(model)
    assert (alone - both).norm() > 1e-4 * both.norm()
    with cache_adapter_tensors():
        for _ in range(2):
            assert_close(logits(model), both, 1e-12)
            with use_adapters(model, "default"):
                assert_close(logits(model), alone, 1e-12)


@pytest.mark.parametrize("mode", ["autocast", "attention", "dtype"])
def test_calls_in_other_modes_do_not_share_them(mode, reads):
    model = adapted().float()
    implementation = model.config._attn_implementation
    with cache_adapter_tensors():
        for _ in range(2):
            logits(model)
            if mode == "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    logits(model)
            elif mode == "attention":
                model.set_attn_implementation("eager")
                logits(model)
                model.set_attn_implementation(implementation)
            else:
                logits(model.double())
                model.float()
    assert len(reads) == 2


def test_a_step_in_training_shows_at_once():
    model = adapted()
    optimizer = torch.optim.SGD(trainable_parameters(model).values(), lr=0.5)
    for _ in range(2):
        before = cached_logits(model)
        model(torch.tensor(TEXTS[:1]), labels=torch.tensor(TEXTS[:1])).loss.backward()
        optimizer.step()
        assert_close(cached_logits(model), logits(model), 1e-12)
        assert not torch.equal(cached_logits(model), before)


# --- calls that cannot share


def test_gradients_flow_inside_a_block(reads):
    model = adapted()
    ids, gradients = torch.tensor(TEXTS[:1]), []
    for block in (contextlib.nullcontext, cache_adapter_tensors):
        with block():
            with torch.no_grad():
                model(ids, past_key_values=DynamicCache())
            model(ids, past_key_values=DynamicCache()).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in trainable_parameters(model).values()])
        model.zero_grad()
    for found, expected in zip(*gradients, strict=True):
        assert torch.equal(found, expected)
        assert found.any()


def test_dropout_of_an_adapter_is_drawn_in_each_call(reads):
    model = adapted()
    attach(model, LoRA(rank=2, dropout=0.5), name="dropped")
    perturb(trainable_parameters(model).values())
    model.train()
    with cache_adapter_tensors():
        outputs = [logits(model) for _ in range(3)]
    assert len(reads) == 3
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("case", ["batch elements", "prefix", "long rope"])
def test_prompts_whose_states_depend_on_the_call_are_computed_in_each(case, reads):
    model = long_model() if case == "long rope" else adapted()
    if case == "prefix":
        attach(model, PrefixTuning(num_virtual_tokens=2), name="prefix")
        perturb(trainable_parameters(model).values())
    adapters = ["default", "lora", ("default", "lora")] if case == "batch elements" else [tuple(attached(model))] * 3
    with use_adapters(model, adapters=adapters) if case == "batch elements" else use_adapters(model, *adapters[0]):
        expected = logits(model)
        reads.clear()
        with cache_adapter_tensors():
            outputs = [logits(model) for _ in range(2)]
    assert_close(outputs[1], expected, 1e-12)
    assert reads.count(attached(model)["default"].virtual_tokens) == 2


def long_model():
    """A model whose keys are rotated by other angles in a text of more than 16 tokens."""
    config = tiny_config("llama")
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0], "factor": 8.0}
    rope = {"rope_type": "longrope", "rope_theta": 10.0, "original_max_position_embeddings": 16}
    config.rope_parameters = rope | factors
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"))
    perturb([*model.parameters()])
    return model


def test_compiled_code_caches_nothing():
    from peftly.injection.caching import is_caching

    compiled = torch.compile(lambda x: x + int(is_caching()), backend="eager", fullgraph=True)
    with torch.no_grad(), cache_adapter_tensors():
        assert is_caching()
        assert compiled(torch.zeros(1)) == 0


def test_a_fresh_adapter_needs_no_call_of_eval(reads):
    model = tiny_model("llama")
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"))
    reads.clear()
    with cache_adapter_tensors():
        for _ in range(3):
            logits(model)
    assert len(reads) == 1


# --- the block itself


def test_outside_a_block_nothing_is_stored(reads):
    model = adapted()
    expected, size = logits(model), len(pickle.dumps(model))
    cached_logits(model)
    assert len(pickle.dumps(model)) == size
    reads.clear()
    for _ in range(2):
        logits(model)
    assert len(reads) == 2
    with cache_adapter_tensors():
        logits(model)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            with torch.no_grad():
                attached(other)["default"].virtual_tokens.embeddings.add_(1)
            assert (logits(other) - expected).norm() > 1e-4 * expected.norm()


def test_tensors_are_freed_with_the_outer_block(monkeypatch):
    from peftly.injection import prompt_states

    computed, compute = [], prompt_states.cached

    def recording(*args, **kwargs):
        states = compute(*args, **kwargs)
        computed.extend(map(weakref.ref, states))
        return states

    monkeypatch.setattr(prompt_states, "cached", recording)
    model = adapted()
    with cache_adapter_tensors():
        with cache_adapter_tensors():
            logits(model)
        gc.collect()
        assert len(computed) == 4
        assert all(state() is not None for state in computed)
    gc.collect()
    assert all(state() is None for state in computed)


def test_a_task_that_outlives_its_block_caches_nothing(reads):
    model = adapted()

    async def later(done):
        await done.wait()
        return [logits(model) for _ in range(2)]

    async def run():
        done = asyncio.Event()
        with cache_adapter_tensors():
            logits(model)
            task = asyncio.create_task(later(done))
            await asyncio.sleep(0)
        reads.clear()
        done.set()
        return await task

    outputs = asyncio.run(run())
    assert len(reads) == 2
    assert torch.equal(*outputs)


def test_threads_have_their_own_blocks(reads):
    model = adapted()
    with cache_adapter_tensors():
        logits(model)
        threads = [threading.Thread(target=cached_logits, args=(model,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logits(model)
    assert len(reads) == 3


def test_peftly_generate_computes_them_once_for_all_batches(reads, tiny_llama_folder):
    model, tokenizer = peftly.load_base(str(tiny_llama_folder))
    attach(model, PromptTuning(num_virtual_tokens=COUNT, init="random"))
    reads.clear()
    peftly.generate(model, tokenizer, ["late", "late again", "never arrived"], max_new_tokens=2, batch_size=1)
    assert len(reads) == 1


def test_the_network_of_a_prefix_runs_once(reads):
    model = adapted(method="prefix_tuning", projection=True)
    for _ in range(2):
        expected = logits(model)
        reads.clear()
        with cache_adapter_tensors():
            for _ in range(3):
                assert_close(logits(model), expected, 1e-12)
        assert len(reads) == 1
        fused_step(model)
