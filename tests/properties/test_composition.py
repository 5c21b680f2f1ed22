"""Several adapters on one model: together, one at a time, none, and other ones for each row of a batch."""

import threading

import pytest
import torch
from invariance import gradient_tolerance, loss_and_gradients, tolerance
from model_state import everything
from references import CELLS, DEFAULTS, assert_close, misfit, reference, token_loss
from tiny import ARCHITECTURES, WINDOW, padded, perturb, random_rows, tiny_model

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

TEXTS = random_rows([5, 3 * WINDOW, 11, 8, 14])


def with_every_method(architecture, dtype=torch.float64, methods=tuple(METHODS)):
    """A model with one adapter of every method, a second prompt of another length and a second LoRA of another rank."""
    model = tiny_model(architecture, dtype)
    for method in methods:
        if misfit(architecture, method) is None:
            attach(model, METHODS[method].config(**DEFAULTS[method]), name=method)
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"), name="prompt 2", seed=5)
    attach(model, LoRA(rank=2, target_modules="all-linear"), name="lora 2", seed=6)
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


def until_the_end(tokens):
    return tokens[: tokens.index(2) + 1] if 2 in tokens else tokens


def choices(method):
    """What works on each row: the method alone, with others of its kind or another, others alone, nothing."""
    return [method, None, (method, "prompt 2", "lora 2"), "prompt 2", ("lora 2", method)]


@pytest.mark.parametrize(("architecture", "method"), CELLS)
class TestEveryRowItsOwn:
    def test_logits_and_gradients_are_those_of_the_row_alone(self, architecture, method):
        model = with_every_method(architecture)
        rows = choices(method)
        singles = []
        for text, row in zip(TEXTS, rows, strict=True):
            set_adapters(model, *([row] if isinstance(row, str) else row or ()))
            singles.append(loss_and_gradients(model, torch.tensor([text])))
        set_adapters(model)
        for side in ("left", "right"):
            ids, mask = padded(TEXTS, side)
            with use_adapters(model, rows=rows):
                loss, logits, gradients = loss_and_gradients(model, ids, mask)
            assert_close(loss, sum(single[0] for single in singles), tolerance(model))
            assert_close(gradients, sum(single[2] for single in singles), gradient_tolerance(model))
            for place, single in enumerate(singles):
                assert_close(logits[place][mask[place].bool()], single[1][0], tolerance(model))

    def test_a_cache_filled_in_pieces_keeps_them_apart(self, architecture, method):
        model = with_every_method(architecture)
        ids, mask = padded(TEXTS, "left")
        with torch.no_grad(), use_adapters(model, rows=choices(method)):
            whole = model(ids, attention_mask=mask).logits
            first = model(ids[:, :14], attention_mask=mask[:, :14], use_cache=True)
            rest = model(ids[:, 14:], attention_mask=mask, past_key_values=first.past_key_values)
        assert_close(rest.logits, whole[:, 14:], tolerance(model))

    def test_a_checkpointed_block_is_computed_again_with_the_same_adapters(self, architecture, method):
        model = with_every_method(architecture)
        ids, mask = padded(TEXTS, "left")
        found = []
        for checkpointed in (False, True):
            if checkpointed:
                model.gradient_checkpointing_enable()
                model.train()
            with use_adapters(model, rows=choices(method)):
                loss = model(ids, attention_mask=mask, labels=ids, use_cache=False).loss
            loss.backward()  # outside the block
            gradients = [parameter.grad for parameter in trainable_parameters(model).values()]
            found.append(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]))
            model.zero_grad()
        assert_close(found[1], found[0], tolerance(model))

    @pytest.mark.parametrize("beams", [1, 3])
    def test_generated_texts_are_those_of_the_row_alone(self, architecture, method, beams):
        model = with_every_method(architecture, torch.float32)
        rows, options = choices(method), {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
        ids, mask = padded(TEXTS, "left")
        with use_adapters(model, rows=rows):
            batched = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
        for text, row, found in zip(TEXTS, rows, batched, strict=True):
            with use_adapters(model, *([row] if isinstance(row, str) else row or ())):
                alone = model.generate(torch.tensor([text]), **options)[0, len(text) :].tolist()
            assert until_the_end(found) == until_the_end(alone)


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
def test_nothing_is_on_in_a_block_that_names_nothing(architecture):
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
    before, ids = everything(model), torch.tensor([TEXTS[0]])
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
    assert everything(model) == before
    attach(model, LoRA(rank=2), name="a", seed=1)
    perturb(trainable_parameters(model).values())
    assert torch.equal(model(ids).logits, alone)


def test_threads_have_their_own_choice():
    model, ids = with_every_method("llama"), torch.tensor([TEXTS[1]])
    names, found, ready = ["lora", "lora 2", "prompt 2", "prompt_tuning"], {}, threading.Barrier(4)

    def work(name):
        with torch.no_grad(), use_adapters(model, name):
            ready.wait()
            found[name] = [model(ids).logits for _ in range(5)]

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        with torch.no_grad(), use_adapters(model, name):
            assert all(torch.equal(logits, model(ids).logits) for logits in found[name])


def test_several_adapters_are_saved_and_loaded_together(tmp_path):
    model = with_every_method("llama", torch.float32)
    ids = torch.tensor([TEXTS[0]])
    save_adapter(model, tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(attached(model))
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "all")
    with use_adapters(again, *attached(model)):
        assert_close(again(ids).logits, model(ids).logits, 1e-5)
    save_adapter(model, tmp_path / "one", name="lora 2")
    one = load_adapter(tiny_model("llama", torch.float32), tmp_path / "one")
    with use_adapters(model, "lora 2"):
        assert torch.equal(one(ids).logits, model(ids).logits)


def test_what_cannot_be_chosen_is_refused():
    model, (ids, mask) = with_every_method("llama"), padded(TEXTS, "left")
    with pytest.raises(MethodError, match=r"no adapter 'nobody'; it has 'prompt_tuning', 'p_tuning'"):
        set_adapters(model, "nobody")
    with pytest.raises(MethodError, match="no adapter 'nobody'"), use_adapters(model, rows=["lora", "nobody"]):
        pass
    with pytest.raises(MethodError, match="not both"), use_adapters(model, "lora", rows=["lora"]):
        pass
    with pytest.raises(MethodError, match="rows is empty"), use_adapters(model, rows=[]):
        pass
    for name in ("lora", "prompt 2"):
        with (
            pytest.raises(MethodError, match="chosen for 2 rows and this call has 5"),
            use_adapters(model, rows=[name, None]),
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


def test_an_output_head_that_is_adapted_keeps_rows_apart():
    from peftly.inference.label_scoring import score_labels

    model = tiny_model("llama")
    attach(model, LoRA(rank=2, target_modules=("lm_head",)), name="a")
    attach(model, PromptTuning(num_virtual_tokens=3, init="random"), name="b")
    perturb(trainable_parameters(model).values())
    rows = ["a", None, "b", ("a", "b"), None]
    ids, mask = padded(TEXTS, "right")
    labels = ids.masked_fill(mask == 0, -100)
    with use_adapters(model, rows=rows), torch.no_grad():
        loss, _ = token_loss(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        scores, _ = score_labels(model, TEXTS, [[5, 6, 2], [7, 2], [9]], pad_id=0)
    losses, alone = [], []
    for text, row in zip(TEXTS, rows, strict=True):
        with use_adapters(model, rows=[row]), torch.no_grad():
            one = torch.tensor([text])
            batch = {"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one}
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
def test_what_changes_the_words_may_come_after_a_prompt(later):
    """No other change of the embedding knows the virtual ids, whenever it was attached."""
    found = []
    for order in (("prompt", "later"), ("later", "prompt")):
        model = tiny_model("llama")
        configs = {"prompt": PromptTuning(num_virtual_tokens=3, init="random"), "later": later}
        for name in order:
            attach(model, configs[name], name=name)
        for name in configs:
            own = [value for path, value in trainable_parameters(model).items() if f".{name}." in path]
            perturb(own, scale=0.05)
        found.append(model(torch.tensor([TEXTS[0]])).logits)
    # The rows started at other places where they were drawn beside changed words; what is checked is that both run.
    assert all(logits.isfinite().all() for logits in found)
    if later.name == "lora":
        assert_close(found[0], found[1], 1e-6)
