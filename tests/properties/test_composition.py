"""Several adapters on one model: together, one at a time, none, and others for each batch element."""

import copy
import threading
from functools import lru_cache

import pytest
import torch
from invariance import gradient_tolerance, loss_and_gradients, tolerance
from model_state import observable_state
from references import CELLS, DEFAULTS, assert_close, reference, token_loss, unsupported_reason
from tiny import ARCHITECTURES, WINDOW, padded, perturb, random_token_ids, tiny_model

from peftly import (
    METHODS,
    Full,
    LoRA,
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
from peftly.errors import MethodError

TEXTS = random_token_ids([5, 3 * WINDOW, 11, 8, 14])


def with_every_method(architecture, dtype=torch.float64, methods=tuple(METHODS)):
    """Return a model with one adapter of every method, a shorter prompt and a LoRA of another rank."""
    model = tiny_model(architecture, dtype)
    for method in methods:
        if unsupported_reason(architecture, method) is None:
            attach(model, METHODS[method].config(**DEFAULTS[method]), name=method)
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"), name="prompt 2", seed=5)
    attach(model, LoRA(rank=2, target_modules="all-linear"), name="lora 2", seed=6)
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


@lru_cache(maxsize=2)
def shared_model(architecture, dtype=torch.float64):
    """Return `with_every_method` for tests that change nothing but the choice of adapters."""
    return with_every_method(architecture, dtype)


def until_the_end(tokens):
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


def choices(method):
    """Return adapters of each batch element: the method alone, with others, others alone, none."""
    return [method, None, (method, "prompt 2", "lora 2"), "prompt 2", ("lora 2", method)]


@pytest.mark.sample(4)
@pytest.mark.parametrize(("architecture", "method"), CELLS)
class TestAdaptersOfEachElement:
    def test_logits_and_gradients_are_those_of_the_element_alone(self, architecture, method):
        model = shared_model(architecture)
        adapters = choices(method)
        singles = []
        for text, choice in zip(TEXTS, adapters, strict=True):
            set_adapters(model, *([choice] if isinstance(choice, str) else choice or ()))
            singles.append(loss_and_gradients(model, torch.tensor([text])))
        set_adapters(model)
        for side in ("left", "right"):
            ids, mask = padded(TEXTS, side)
            with use_adapters(model, adapters=adapters):
                loss, logits, gradients = loss_and_gradients(model, ids, mask)
            assert_close(loss, sum(single[0] for single in singles), tolerance(model))
            assert_close(gradients, sum(single[2] for single in singles), gradient_tolerance(model))
            for index, single in enumerate(singles):
                assert_close(logits[index][mask[index].bool()], single[1][0], tolerance(model))

    def test_a_cache_filled_in_pieces_keeps_them_apart(self, architecture, method):
        model = shared_model(architecture)
        ids, mask = padded(TEXTS, "left")
        with torch.no_grad(), use_adapters(model, adapters=choices(method)):
            whole = model(ids, attention_mask=mask).logits
            first = model(ids[:, :14], attention_mask=mask[:, :14], use_cache=True)
            rest = model(ids[:, 14:], attention_mask=mask, past_key_values=first.past_key_values)
        assert_close(rest.logits, whole[:, 14:], tolerance(model))

    def test_a_checkpointed_block_is_recomputed_with_the_same_adapters(self, architecture, method):
        model = with_every_method(architecture)
        ids, mask = padded(TEXTS, "left")
        gradients_by_run = []
        for checkpointed in (False, True):
            if checkpointed:
                model.gradient_checkpointing_enable()
                model.train()
            with use_adapters(model, adapters=choices(method)):
                loss = model(ids, attention_mask=mask, labels=ids, use_cache=False).loss
            loss.backward()  # outside the block
            gradients = [parameter.grad for parameter in trainable_parameters(model).values()]
            gradients_by_run.append(torch.cat([grad.flatten() for grad in gradients if grad is not None]))
            model.zero_grad()
        assert_close(gradients_by_run[1], gradients_by_run[0], tolerance(model))

    @pytest.mark.parametrize("beams", [1, 3])
    def test_generated_texts_are_those_of_the_element_alone(self, architecture, method, beams):
        model = shared_model(architecture, torch.float32)
        adapters, options = choices(method), {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
        ids, mask = padded(TEXTS, "left")
        with use_adapters(model, adapters=adapters):
            batched = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
        for text, choice, generated in zip(TEXTS, adapters, batched, strict=True):
            with use_adapters(model, *([choice] if isinstance(choice, str) else choice or ())):
                alone = model.generate(torch.tensor([text]), **options)[0, len(text) :].tolist()
            assert until_the_end(generated) == until_the_end(alone)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_beside_lora_equals_the_prompt_on_the_merged_model(architecture):
    model = with_every_method(architecture, methods=())
    ids = torch.tensor([TEXTS[1]])
    with torch.no_grad():
        together = model(ids).logits
        expected = reference(merge(model, "lora 2"), "prompt 2")(ids)
    assert_close(together, expected, 1e-6)


def test_several_loras_add_up():
    model = with_every_method("llama", methods=("lora",))
    detach(model, "prompt 2")
    ids = torch.tensor([TEXTS[0]])
    together = model(ids).logits
    assert_close(together, merge(model)(ids).logits, 1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_adapter_is_active_in_a_block_without_names(architecture):
    base, model = tiny_model(architecture), with_every_method(architecture)
    ids, mask = padded(TEXTS, "left")
    positions = {} if architecture == "bloom" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}

    def logits(of, **kwargs):
        return of(ids, attention_mask=mask, **kwargs).logits[mask.bool()]

    adapted, expected = logits(model), logits(base, **positions)
    with use_adapters(model):
        assert torch.equal(logits(model), expected)
        with use_adapters(model, "lora"):
            assert not torch.equal(logits(model), expected)
        assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model), adapted)


def test_detaching_one_leaves_the_others_and_the_last_the_base():
    model = tiny_model("llama")
    before, ids = observable_state(model), torch.tensor([TEXTS[0]])
    attach(model, LoRA(rank=2), name="a", seed=1)
    perturb(trainable_parameters(model).values())
    alone = model(ids).logits
    attach(model, PromptTuning(num_virtual_tokens=3, init="random"), name="b")
    attach(model, LoRA(rank=4, target_modules=("q_proj",)), name="c")
    perturb(trainable_parameters(detach(model, "a")).values())
    assert list(attached(model)) == ["b", "c"]
    assert not torch.equal(model(ids).logits, alone)
    detach(model, "b")
    detach(model, "c")
    assert observable_state(model) == before
    attach(model, LoRA(rank=2), name="a", seed=1)
    perturb(trainable_parameters(model).values())
    assert torch.equal(model(ids).logits, alone)


def test_threads_have_their_own_active_adapters():
    model, ids = with_every_method("llama"), torch.tensor([TEXTS[1]])
    names, outputs, ready = ["lora", "lora 2", "prompt 2", "prompt_tuning"], {}, threading.Barrier(4)

    def work(name):
        with torch.no_grad(), use_adapters(model, name):
            ready.wait()
            outputs[name] = [model(ids).logits for _ in range(5)]

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        with torch.no_grad(), use_adapters(model, name):
            assert all(torch.equal(logits, model(ids).logits) for logits in outputs[name])


def test_several_adapters_are_saved_and_loaded_together(tmp_path):
    model = with_every_method("llama", torch.float32)
    ids = torch.tensor([TEXTS[0]])
    save_adapter(model, tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(attached(model))
    loaded = load_adapter(tiny_model("llama", torch.float32), tmp_path / "all")
    with use_adapters(loaded, *attached(model)):
        assert_close(loaded(ids).logits, model(ids).logits, 1e-5)
    save_adapter(model, tmp_path / "one", name="lora 2")
    one = load_adapter(tiny_model("llama", torch.float32), tmp_path / "one")
    with use_adapters(model, "lora 2"):
        assert torch.equal(one(ids).logits, model(ids).logits)


def test_adapters_that_cannot_be_activated_are_refused():
    model, (ids, mask) = with_every_method("llama"), padded(TEXTS, "left")
    with pytest.raises(MethodError, match=r"no adapter 'nobody'; it has 'prompt_tuning', 'p_tuning'"):
        set_adapters(model, "nobody")
    with pytest.raises(MethodError, match="no adapter 'nobody'"), use_adapters(model, adapters=["lora", "nobody"]):
        pass
    with pytest.raises(MethodError, match="not both"), use_adapters(model, "lora", adapters=["lora"]):
        pass
    with pytest.raises(MethodError, match="adapters is empty"), use_adapters(model, adapters=[]):
        pass
    for name in ("lora", "prompt 2"):
        with (
            pytest.raises(MethodError, match="adapters were given for 2 batch elements and this call has 5"),
            use_adapters(model, adapters=[name, None]),
        ):
            model(ids, attention_mask=mask)
    with pytest.raises(MethodError, match="carries no adapter"):
        set_adapters(tiny_model("llama"))


def test_a_cache_of_other_adapters_is_refused():
    model, ids = with_every_method("llama"), torch.tensor([TEXTS[0]])
    with use_adapters(model, "prompt 2"):
        cache = model(ids, use_cache=True).past_key_values
    for names in (("prompt_tuning",), (), ("prompt_tuning", "prompt 2")):
        with pytest.raises(MethodError, match="with those of others"), use_adapters(model, *names):
            model(ids, past_key_values=cache)


def test_a_copied_cache_knows_its_inserted_columns():
    model, ids = with_every_method("llama"), torch.tensor([TEXTS[1]])
    with torch.no_grad(), use_adapters(model, "prompt 2", "prefix_tuning"):
        whole = model(ids).logits
        cache = model(ids[:, :9], use_cache=True).past_key_values
        for _ in range(2):  # one cache of a common beginning, for several continuations
            rest = model(ids[:, 9:], past_key_values=copy.deepcopy(cache)).logits
            assert_close(rest, whole[:, 9:], tolerance(model))


def test_an_adapted_output_head_keeps_batch_elements_apart():
    from peftly.inference.label_scoring import score_labels

    model = tiny_model("llama")
    attach(model, LoRA(rank=2, target_modules=("lm_head",)), name="a")
    attach(model, PromptTuning(num_virtual_tokens=3, init="random"), name="b")
    perturb(trainable_parameters(model).values())
    adapters = ["a", None, "b", ("a", "b"), None]
    ids, mask = padded(TEXTS, "right")
    labels = ids.masked_fill(mask == 0, -100)
    with use_adapters(model, adapters=adapters), torch.no_grad():
        loss, _ = token_loss(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        scores, _ = score_labels(model, TEXTS, [[5, 6, 2], [7, 2], [9]], pad_id=0)
    losses, alone = [], []
    for text, choice in zip(TEXTS, adapters, strict=True):
        with use_adapters(model, adapters=[choice]), torch.no_grad():
            ids = torch.tensor([text])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            losses.append(token_loss(model, batch)[0])
            alone.append(score_labels(model, [text], [[5, 6, 2], [7, 2], [9]], pad_id=0)[0])
    assert_close(loss, sum(losses), 1e-10)
    assert_close(scores, torch.cat(alone), 1e-6)


def test_a_cache_with_a_prefix_that_is_gone_is_refused():
    model, ids = tiny_model("llama"), torch.tensor([TEXTS[0]])
    attach(model, METHODS["prefix_tuning"].config(num_virtual_tokens=2))
    attach(model, LoRA(rank=2), name="lora")
    cache = model(ids, use_cache=True).past_key_values
    detach(model, "default")
    with pytest.raises(MethodError, match="without the prefix"):
        model(ids, past_key_values=cache)


@pytest.mark.parametrize("later", [LoRA(rank=2, target_modules=("embed_tokens",)), Full()], ids=lambda c: c.name)
def test_an_adapter_of_the_embedding_may_be_attached_after_a_prompt(later):
    """No other adapter of the embedding knows the virtual ids, in any order of attachment."""
    outputs = []
    for order in (("prompt", "later"), ("later", "prompt")):
        model = tiny_model("llama")
        configs = {"prompt": PromptTuning(num_virtual_tokens=3, init="random"), "later": later}
        for name in order:
            attach(model, configs[name], name=name)
        for name in configs:
            perturb((p for path, p in trainable_parameters(model).items() if f".{name}." in path), scale=0.05)
        outputs.append(model(torch.tensor([TEXTS[0]])).logits)
    # With Full, the prompt starts from other embeddings in the other order: only that both orders run is checked.
    assert all(logits.isfinite().all() for logits in outputs)
    if later.name == "lora":
        assert_close(*outputs, 1e-6)
