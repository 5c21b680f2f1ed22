"""Completions of encoder-decoders: the same alone, in a batch, streamed, and by a loop by hand."""

import pytest
import torch
from tiny import perturb
from tiny_tasks import ENCODER_DECODERS, opened

from peftly import LoRA, attach, generate, load_base, trainable_parameters
from peftly.errors import ConfigError, DataError

PROMPTS = ["say late", "say again again again great never arrived", "love", "thanks for the help again"]


@pytest.fixture(params=ENCODER_DECODERS, name="base")
def _base(request, task_base):
    model, tokenizer = opened(task_base(request.param), task="seq2seq_lm")
    attach(model, LoRA(rank=2))
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.double()
    perturb(trainable_parameters(model).values())
    return model, tokenizer


def by_hand(model, tokenizer, prompt, steps):
    """Greedy search without a cache."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = [model.config.decoder_start_token_id]
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(ids, decoder_input_ids=torch.tensor([written])).logits[0, -1].argmax())
            written.append(token)
            if token == tokenizer.eos_token_id:
                break
    return tokenizer.decode(written, skip_special_tokens=True)


def test_greedy_completions_equal_a_loop_by_hand(base):
    model, tokenizer = base
    expected = [by_hand(model, tokenizer, prompt, 9) for prompt in PROMPTS]
    assert any(expected)
    assert len(set(expected)) > 1, "the prompts matter"
    for size in (1, 4):
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=9, batch_size=size) == expected


def test_streamed_pieces_are_the_text(base):
    model, tokenizer = base
    pieces = []
    text = generate(model, tokenizer, PROMPTS[1], max_new_tokens=9, stream=pieces.append)[0]
    assert "".join(pieces) == text
    assert generate(model, tokenizer, PROMPTS[1], max_new_tokens=9)[0] == text


def test_draws_depend_on_the_seed_and_the_prompt_alone(base):
    model, tokenizer = base
    settings = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    together = generate(model, tokenizer, PROMPTS, **settings)
    assert together == [generate(model, tokenizer, prompt, **settings)[0] for prompt in PROMPTS]
    assert together != generate(model, tokenizer, PROMPTS, **settings | {"seed": 4})


def test_beams_and_penalties_do_not_depend_on_the_batch(base):
    model, tokenizer = base
    for settings in ({"num_beams": 3}, {"repetition_penalty": 1.5}):
        together = generate(model, tokenizer, PROMPTS, max_new_tokens=6, **settings)
        assert together == [generate(model, tokenizer, p, max_new_tokens=6, **settings)[0] for p in PROMPTS]


def test_no_stop_text_is_none_as_in_other_libraries(base):
    model, tokenizer = base
    expected = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=4)
    assert generate(model, tokenizer, PROMPTS[:1], max_new_tokens=4, stop=None) == expected


def test_stop_texts_do_not_depend_on_the_batch(base):
    model, tokenizer = base
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=9)
    stop = whole[0].split()[-1]
    cut = generate(model, tokenizer, PROMPTS, max_new_tokens=9, stop=stop)
    assert cut == [text.partition(stop)[0] for text in whole]
    assert cut == [generate(model, tokenizer, prompt, max_new_tokens=9, stop=stop)[0] for prompt in PROMPTS]


def test_a_classifier_does_not_generate(task_base):
    model, tokenizer = load_base(str(task_base("roberta")), task="sequence_classification", labels=("a", "b"))
    with pytest.raises(ConfigError, match="RobertaForSequenceClassification does not generate text"):
        generate(model, tokenizer, "late")


def test_an_empty_prompt_has_its_special_tokens(base):
    model, tokenizer = base
    assert generate(model, tokenizer, "", max_new_tokens=5)[0] == by_hand(model, tokenizer, "", 5)
    with pytest.raises(DataError, match="no chat template"):
        generate(model, tokenizer, "late", chat=True)
