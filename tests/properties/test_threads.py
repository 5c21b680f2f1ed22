"""Calls of one model in several threads: the active adapters, adapters that are loaded meanwhile, and modes."""

import contextvars
import threading

import pytest
import torch
from references import assert_close
from tiny import TASKS, perturb, random_token_ids, tiny_model
from transformers import TextIteratorStreamer

from peftly import (
    LoRA,
    PromptTuning,
    attach,
    attached,
    detach,
    load_adapter,
    save_adapter,
    trainable_parameters,
    use_adapters,
)
from peftly.adapters import active_adapters
from peftly.injection import evaluation_mode
from peftly.methods.lora import LoRAAdapter

IDS = torch.tensor(random_token_ids([9]))
WARNING = r"started inside peftly\.use_adapters and does not inherit its choice"


class Tokens:
    """Tokenizer for a streamer: a text is the ids of its tokens."""

    def decode(self, ids, **_):
        return "".join(f"{int(id_)}\n" for id_ in ids)


def with_adapters(**adapters):
    model = tiny_model("llama")
    for name, config in adapters.items():
        attach(model, config, name=name)
    perturb(trainable_parameters(model).values(), scale=0.3)
    return model.eval()


def in_thread(function, *args, **kwargs):
    """Run a function in a new thread and return its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args, **kwargs)))
    thread.start()
    thread.join()
    return results[0]


def generated(model, **kwargs):
    return model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=8, do_sample=False, **kwargs)


def generated_with(model, name):
    with use_adapters(model, name):
        return generated(model)


@pytest.mark.parametrize("config", [LoRA(rank=2), PromptTuning(num_virtual_tokens=3, init="random")])
def test_a_streaming_thread_has_the_adapters_of_a_copied_context(config):
    model = with_adapters(a=config, b=LoRA(rank=2))
    with use_adapters(model, "a"):
        expected = generated(model)
        streamer = TextIteratorStreamer(Tokens(), skip_prompt=True)
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(generated, model), kwargs={"streamer": streamer})
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text.split() == [str(id_) for id_ in expected[0, IDS.shape[1] :].tolist()]
    assert not torch.equal(expected, generated(model))


def test_a_thread_that_does_not_inherit_the_choice_says_so(recwarn):
    model = with_adapters(a=LoRA(rank=2))
    with use_adapters(model):
        with pytest.warns(UserWarning, match=WARNING):
            in_thread(generated, model)
        with pytest.warns(UserWarning, match=WARNING):
            in_thread(model, IDS)
    recwarn.clear()
    in_thread(generated, model)
    begin, ready = threading.Event(), threading.Event()
    server = threading.Thread(target=lambda: begin.wait() and (generated(model), ready.set()))
    server.start()
    with use_adapters(model):  # the thread began before, and uses the default on purpose
        begin.set()
        ready.wait()
        in_thread(generated_with, model, "a")
    server.join()
    assert not recwarn.list


def test_an_adapter_is_loaded_while_others_answer(tmp_path):
    model = with_adapters(a=LoRA(rank=2), prompt=PromptTuning(num_virtual_tokens=3, init="random"))
    save_adapter(model, tmp_path / "a", name="a")
    embedding = LoRA(rank=2, target_modules=("embed_tokens", "q_proj"))
    save_adapter(attach(tiny_model("llama"), embedding), tmp_path / "b")
    outputs, names, done = [], [*attached(model)], threading.Event()

    def answer():
        with torch.no_grad():
            while not done.is_set():
                outputs.append(model(IDS).logits)

    with torch.no_grad():
        expected = model(IDS).logits
    thread = threading.Thread(target=answer)
    thread.start()
    try:
        for _ in range(8):
            for source in "ab":
                load_adapter(model, tmp_path / source, name="new", on=False)
                assert active_adapters(model) == names
                detach(model, "new")
    finally:
        done.set()
        thread.join()
    assert len(outputs) > 1
    assert all(torch.equal(output, expected) for output in outputs)
    load_adapter(model, tmp_path / "a", name="new", on=False)
    with use_adapters(model, "a"):
        alone = model(IDS).logits
    with use_adapters(model, "new"):
        assert_close(model(IDS).logits, alone, 1e-6)  # files are in fp32


def test_an_adapter_is_on_only_when_its_tensors_are_loaded(tmp_path, monkeypatch):
    model, active = with_adapters(a=LoRA(rank=2)), []
    save_adapter(model, tmp_path)
    load = LoRAAdapter.load_file_tensors
    monkeypatch.setattr(
        LoRAAdapter, "load_file_tensors", lambda *args: active.append(active_adapters(model)) or load(*args)
    )
    load_adapter(model, tmp_path, name="b")
    assert active == [["a"]]
    assert active_adapters(model) == ["a", "b"]


def test_the_first_adapter_may_come_during_a_call_of_the_base(tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        expected = model(IDS).logits
    save_adapter(attach(tiny_model("llama"), LoRA(rank=2)), tmp_path)
    stack = model.get_decoder()
    handles = [stack.register_forward_hook(lambda *_: None)]  # torch then looks for hooks after the call, too
    handles.append(
        stack.layers[0].register_forward_pre_hook(
            lambda *_: None if attached(model) else in_thread(lambda: load_adapter(model, tmp_path, on=False) and None)
        )
    )
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
        assert attached(model)
        assert torch.equal(model(IDS).logits, expected)
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("inner_first", [True, False])
def test_modes_are_those_from_before_overlapping_evaluations(inner_first):
    model = tiny_model(TASKS["causal_lm"][0])
    model.train()
    model.lm_head.eval()
    before = [module.training for module in model.modules()]
    first, second = evaluation_mode(model), evaluation_mode(model.model if inner_first else model)
    entered, leave = threading.Event(), threading.Event()

    def evaluate():
        with second:
            entered.set()
            leave.wait()
            assert not any(module.training for module in model.model.modules())

    with first:
        thread = threading.Thread(target=evaluate)
        thread.start()
        entered.wait()
        assert not any(module.training for module in model.modules())
    assert not any(module.training for module in model.model.modules()), "the other thread evaluates still"
    leave.set()
    thread.join()
    assert [module.training for module in model.modules()] == before
