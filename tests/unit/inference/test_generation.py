import copy
import random
from collections import Counter
from importlib import import_module

import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from peftly import LoRA, PrefixTuning, PromptTuning, attach, trainable_parameters, use_adapters
from peftly.data import EncodedExample, Example, encode_prompt
from peftly.data.chat import prompt_ids
from peftly.errors import ConfigError, DataError
from peftly.inference.generation import generate
from peftly.inference.sampling import Sampling, sampling_processors
from peftly.inference.stopping import TextPieces

PROMPTS = ["The train was late again", "thanks", "What time do you open on Sunday? I love", "thanks"]


@pytest.fixture(scope="module")
def base(tiny_llama_folder):
    """The random model, its logits stretched so that the greedy choice is clear and sampling still varies."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    return model, tokenizer


def by_hand(model, tokenizer, ids: list[int], count: int, penalty: float = 1.0) -> str:
    """Greedy search without a cache for one unpadded prompt."""
    ids, start = list(ids), len(ids)
    for _ in range(count):
        with torch.no_grad():
            scores = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        for token in set(ids):
            scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
        ids.append(int(scores.argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("method", ["none", "lora", "prompt_tuning"])
def test_greedy_batches_equal_a_loop_by_hand(base, method, penalty):
    model, tokenizer = copy.deepcopy(base[0]), base[1]
    if method != "none":
        attach(model, LoRA(rank=2) if method == "lora" else PromptTuning(num_virtual_tokens=3, init="random"))
        for parameter in trainable_parameters(model).values():
            torch.nn.init.normal_(parameter, std=0.1)
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=12, repetition_penalty=penalty, batch_size=3)
    assert texts == [by_hand(model, tokenizer, encode_prompt(text, tokenizer), 12, penalty) for text in PROMPTS]
    assert len(set(texts)) > 1


def test_padding_has_no_repetition_penalty(base):
    """The pad token may be any token of the text, the end token for one; a penalty must not count the padding."""
    model, tokenizer = base[0], copy.deepcopy(base[1])
    with torch.no_grad():
        likeliest = model(torch.tensor([encode_prompt("thanks", tokenizer)])).logits[0, -1].argmax()
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(int(likeliest))
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=6, repetition_penalty=50.0)
    assert texts == [by_hand(model, tokenizer, encode_prompt(text, tokenizer), 6, 50.0) for text in PROMPTS]


def test_the_input_of_the_head_is_contiguous(base):
    """In bf16 a slice would make torch copy a frozen head for every batch element."""
    model, tokenizer = base
    seen, before = [], dict(model.lm_head._forward_pre_hooks)
    handle = model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].is_contiguous()))
    generate(model, tokenizer, PROMPTS, max_new_tokens=2)
    handle.remove()
    assert len(seen) == 2
    assert all(seen)
    assert dict(model.lm_head._forward_pre_hooks) == before


def test_one_prompt_or_several(base):
    alone = generate(*base, PROMPTS[0], max_new_tokens=5)
    assert alone == generate(*base, PROMPTS[:1], max_new_tokens=5)
    assert generate(*base, [], max_new_tokens=5) == []


def test_a_text_ends_at_the_end_token(base):
    model, tokenizer = base
    with torch.no_grad():
        first = int(model(torch.tensor([encode_prompt("thanks", tokenizer)])).logits[0, -1].argmax())
    configured = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [first, 1]
        pieces = []
        assert generate(model, tokenizer, "thanks", max_new_tokens=8) == [""]
        assert generate(model, tokenizer, "thanks", max_new_tokens=8, stream=pieces.append) == [""]
        assert not pieces
    finally:
        model.generation_config.eos_token_id = configured


def test_sampling_follows_seed_and_prompt_not_the_batch(base):
    settings = {"max_new_tokens": 10, "temperature": 20.0, "top_p": 0.95}
    together = generate(*base, PROMPTS, seed=3, **settings)
    state = torch.get_rng_state()
    assert together == generate(*base, PROMPTS, seed=3, batch_size=1, **settings)
    assert together[:3] == [generate(*base, text, seed=3, **settings)[0] for text in PROMPTS[:3]]
    assert together[1] != together[3], "a prompt that comes twice gets two draws"
    assert together != generate(*base, PROMPTS, seed=4, **settings)
    assert torch.equal(state, torch.get_rng_state())
    assert generate(*base, PROMPTS, **settings) != generate(*base, PROMPTS, **settings)


def test_prompts_draw_independently_of_each_other(base):
    """Where the temperature hides the model, prompts that shared their noise would get the same text."""
    prompts = list(dict.fromkeys(PROMPTS))
    settings = {"max_new_tokens": 8, "temperature": 1e6, "seed": 0}
    together = generate(*base, prompts, **settings)
    assert len(set(together)) == len(prompts)
    firsts = Counter(text[:1] for text in generate(*base, [f"{n} trains" for n in range(64)], **settings))
    assert max(firsts.values()) < 32
    assert generate(*base, prompts[::-1], **settings) == together[::-1]
    assert generate(*base, [*prompts, "other", *prompts], batch_size=2, **settings)[: len(prompts)] == together


def test_draws_neither_read_nor_change_the_global_generators(base):
    settings = {"max_new_tokens": 8, "temperature": 1e6}
    torch.manual_seed(0)
    state, python_state = torch.get_rng_state(), random.getstate()
    first = generate(*base, PROMPTS, **settings)
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == python_state
    assert generate(*base, PROMPTS, **settings) != first
    seeded = generate(*base, PROMPTS, seed=1, **settings)
    torch.manual_seed(1)
    assert generate(*base, PROMPTS, seed=1, **settings) == seeded


def test_draws_follow_the_models_probabilities(base):
    model, tokenizer = base
    ids = encode_prompt("thanks", tokenizer)
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0, -1] / 20.0
    probabilities, order = scores.softmax(-1).sort(descending=True)
    inside = order[: int((probabilities.cumsum(0) < 0.6).sum()) + 1]
    wanted = scores[inside].softmax(-1)
    texts = generate(
        model, tokenizer, ["thanks"] * 2000, max_new_tokens=1, temperature=20.0, top_p=0.6, seed=0, batch_size=500
    )
    shares = Counter()
    for token, share in zip(inside.tolist(), wanted.tolist(), strict=True):
        shares[tokenizer.decode([token], skip_special_tokens=True)] += share  # bytes that are no text look alike
    assert set(texts) <= set(shares)
    assert len(shares) > 2
    for word, share in shares.items():
        spread = (share * (1 - share) / 2000) ** 0.5
        assert abs(texts.count(word) / 2000 - share) < 4.5 * spread


@pytest.mark.parametrize(
    "settings",
    [{}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}],
    ids=str,
)
def test_logits_are_masked_as_by_transformers(base, settings):
    model, tokenizer = base
    ids = torch.tensor([encode_prompt("thanks", tokenizer)])
    theirs = model.generate(
        ids,
        generation_config=GenerationConfig(
            **{"do_sample": True, "temperature": 20.0, "top_k": 0, "max_new_tokens": 1, "pad_token_id": 0} | settings
        ),
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    *warpers, noise = sampling_processors(Sampling(20.0, **settings), [torch.Generator().manual_seed(0)])
    scores = theirs.logits[0]
    for warper in warpers:
        scores = warper(ids, scores)
    assert torch.equal(scores, theirs.scores[0])
    assert (scores.isinf().any() == bool(settings)).item()
    assert torch.equal(noise(ids, scores).isinf(), scores.isinf())


def test_draws_are_among_the_top_k(base):
    model, tokenizer = base
    with torch.no_grad():
        best = model(torch.tensor([encode_prompt("thanks", tokenizer)])).logits[0, -1].topk(3).indices
    settings = {"max_new_tokens": 1, "temperature": 50.0, "seed": 0, "batch_size": 100}
    texts = generate(model, tokenizer, ["thanks"] * 100, top_k=3, **settings)
    assert set(texts) == {tokenizer.decode([token]) for token in best.tolist()}
    assert set(generate(model, tokenizer, ["thanks"] * 20, top_k=1, **settings)) == {tokenizer.decode([best[0]])}
    assert set(generate(model, tokenizer, ["thanks"] * 20, min_p=1.0, **settings)) == {tokenizer.decode([best[0]])}


def test_do_sample_is_that_of_transformers(base):
    drawn = generate(*base, PROMPTS, do_sample=True, seed=1, max_new_tokens=5)
    assert drawn == generate(*base, PROMPTS, temperature=1.0, seed=1, max_new_tokens=5)
    greedy = generate(*base, PROMPTS, do_sample=False, max_new_tokens=5)
    assert greedy == generate(*base, PROMPTS, temperature=0, max_new_tokens=5)
    assert greedy == generate(*base, PROMPTS, max_new_tokens=5)


@pytest.mark.parametrize("settings", [{"top_k": 10}, {"min_p": 0.02}, {"stop": ["e", "a"]}], ids=str)
def test_completions_do_not_depend_on_the_batch(base, settings):
    settings = {"max_new_tokens": 12, "temperature": 20.0, "seed": 3} | settings
    alone = [generate(*base, text, **settings)[0] for text in PROMPTS[:3]]
    assert len(set(alone)) > 1
    assert generate(*base, PROMPTS[:3], **settings) == alone
    assert generate(*base, PROMPTS[:3], batch_size=2, **settings) == alone


def stop_text(texts):
    """A short stop text in the middle of the first text, after its beginning."""
    return next(
        text[start : start + 2]
        for text in texts
        for start in range(len(text) // 3, len(text) - 2)
        if text[start : start + 2].isascii() and text.find(text[start : start + 2]) == start
    )


@pytest.mark.parametrize("num_beams", [1, 3])
def test_every_batch_element_ends_at_its_own_stop_text(base, num_beams):
    model, tokenizer = base
    settings = {"max_new_tokens": 24, "num_beams": num_beams}
    whole = generate(model, tokenizer, PROMPTS, **settings)
    for text in whole[:3]:
        stop = stop_text([text])
        cut = generate(model, tokenizer, PROMPTS, stop=stop, **settings)
        assert cut == [generate(model, tokenizer, prompt, stop=[stop], **settings)[0] for prompt in PROMPTS]
        assert not any(stop in text for text in cut)
        if num_beams == 1:
            assert cut == [text.partition(stop)[0] for text in whole]
            assert cut != whole


def test_generation_ends_once_all_completions_have_a_stop_text(base):
    model, tokenizer = base
    steps = []
    handle = model.lm_head.register_forward_hook(lambda *_: steps.append(None))
    text = generate(model, tokenizer, "thanks", max_new_tokens=24)[0]
    count = len(steps)
    generate(model, tokenizer, ["thanks"] * 2, max_new_tokens=24, stop=stop_text([text]))
    handle.remove()
    assert count == 24
    assert len(steps) - count < 24


def test_the_stop_text_that_is_complete_first_ends_a_completion(base):
    text = generate(*base, "thanks", max_new_tokens=24)[0]
    stop = stop_text([text])
    start = text.index(stop)
    assert generate(*base, "thanks", max_new_tokens=24, stop=[stop, "never there", text[-2:]]) == [text[:start]]
    longer = text[start - 1 : start + 3]
    assert generate(*base, "thanks", max_new_tokens=24, stop=[longer, stop]) == [text[:start]]
    assert generate(*base, "thanks", max_new_tokens=24, stop=[]) == [text]


def test_a_special_token_as_stop_text(base):
    model, tokenizer = base
    tokenizer = copy.deepcopy(tokenizer)
    with torch.no_grad():
        first = int(model(torch.tensor([encode_prompt("thanks", tokenizer)])).logits[0, -1].argmax())
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(first)]})
    name = tokenizer.convert_ids_to_tokens(first)
    assert generate(model, tokenizer, "thanks", max_new_tokens=8, stop=name) == [""]
    assert generate(model, tokenizer, "thanks", max_new_tokens=8) != [""]


def test_streamed_pieces_end_in_front_of_the_stop_text(base):
    whole = generate(*base, PROMPTS[0], max_new_tokens=24)[0]
    for length in (1, 2, 5):
        for start in range(len(whole) // 3, len(whole) - length, 7):
            stop, pieces = whole[start : start + length], []
            text = generate(*base, PROMPTS[0], max_new_tokens=24, stop=stop, stream=pieces.append)[0]
            assert "".join(pieces) == text == whole.partition(stop)[0]


def test_pieces_that_may_begin_a_stop_text_are_held_back():
    pieces = []
    streamer = TextPieces(None, pieces.append, ["\n\nQ:", "END"])
    for piece in ("one\n", "\n", "two EN", "D of", " it"):
        streamer.on_finalized_text(piece)
    streamer.on_finalized_text("", stream_end=True)
    assert pieces == ["one", "\n\ntwo "]
    pieces.clear()
    streamer = TextPieces(None, pieces.append, ["END"])
    streamer.on_finalized_text("an EN")
    streamer.on_finalized_text("", stream_end=True)
    assert pieces == ["an ", "EN"]
    pieces.clear()
    TextPieces(None, pieces.append, ["bc", "ab"]).on_finalized_text("xabc")
    assert pieces == ["x"], "the stop text that is complete first counts"


def test_streamed_pieces_are_the_text(base):
    pieces = []
    text = generate(*base, PROMPTS[0], max_new_tokens=20, stream=pieces.append)[0]
    assert len(pieces) > 1
    assert "".join(pieces) == text


def test_beams_find_a_text_at_least_as_likely(base):
    model, tokenizer = base
    ids = encode_prompt(PROMPTS[0], tokenizer)

    def score(text):
        more = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logs = model(torch.tensor([ids + more])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        return logs.gather(1, torch.tensor(more)[:, None]).sum().item()

    settings = model.generation_config.to_dict()
    greedy, beams = (generate(model, tokenizer, PROMPTS[0], max_new_tokens=2, num_beams=n)[0] for n in (1, 40))
    assert score(beams) >= score(greedy)
    assert model.generation_config.to_dict() == settings


def test_chat(base):
    model, tokenizer = base
    messages = [{"role": "user", "content": "hello"}]
    ids = prompt_ids(messages, tokenizer)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    answer = by_hand(model, tokenizer, ids, 6)
    assert generate(model, tokenizer, "hello", chat=True, max_new_tokens=6) == [answer]
    assert generate(model, tokenizer, messages, max_new_tokens=6) == [answer]
    assert generate(model, tokenizer, [messages, messages], max_new_tokens=6) == [answer, answer]


def test_the_text_that_ends_a_turn_ends_conversations_only(base):
    model, tokenizer = base[0], copy.deepcopy(base[1])
    plain, messages = PROMPTS[0], [{"role": "user", "content": "thanks"}]
    whole = generate(model, tokenizer, plain, max_new_tokens=12)[0]
    turn = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}END{% endif %}{% endfor %}"
    tokenizer.chat_template = turn
    answer = generate(model, tokenizer, messages, max_new_tokens=12)[0]
    for text in (answer, whole):
        tokenizer.chat_template = turn.replace("END", text[4:8])
        both = generate(model, tokenizer, [plain, messages], max_new_tokens=12)
        assert both == [whole, answer.partition(text[4:8])[0]]


def test_the_models_own_sampling_settings_are_not_used(base):
    model, tokenizer = base
    greedy = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    configured = model.generation_config
    try:
        model.generation_config = type(configured)(do_sample=True, temperature=5.0, top_k=3, eos_token_id=[3])
        assert generate(model, tokenizer, PROMPTS, max_new_tokens=6) == greedy
    finally:
        model.generation_config = configured


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p within"),
        ({"temperature": float("inf")}, "temperature must be at least 0 and finite"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and finite"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"num_beams": 2**40}, "num_beams from 1 to 1000"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty above 0"),
        ({"temperature": 1.0, "seed": 2**32}, "seed must be a whole number from 0"),
        ({"top_p": 0.5}, "top_p=0.5 has no effect at temperature 0"),
        ({"top_k": 5}, "top_k=5 has no effect at temperature 0"),
        ({"min_p": 0.1}, "min_p=0.1 has no effect at temperature 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p within"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample=True draws tokens"),
        ({"do_sample": False, "temperature": 0.5}, "temperature=0.5 has no effect with do_sample=False"),
        ({"do_sample": True, "num_beams": 2}, "use one of the two"),
        ({"stop": ["a", ""]}, "stop has an empty text"),
        ({"adapters": "lora"}, "adapters is a list with one entry per prompt"),
        ({"temperature": 1.0, "num_beams": 2}, "use one of the two"),
        ({"stream": print, "num_beams": 2}, "num_beams=2"),
        ({"stream": print}, "got 4 prompts"),
    ],
)
def test_settings_that_do_not_go_together(base, settings, message):
    with pytest.raises(ConfigError, match=message):
        generate(*base, PROMPTS, **settings)


def test_prompts_without_tokens_or_chat_template(base):
    model, tokenizer = base
    with pytest.raises(DataError, match="no tokens"):
        generate(model, tokenizer, [""], max_new_tokens=2)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    try:
        with pytest.raises(DataError, match="no chat template"):
            generate(model, tokenizer, "hello", chat=True)
    finally:
        tokenizer.chat_template = template


def test_training_mode_survives(base):
    model, tokenizer = base
    model.train()
    generate(model, tokenizer, "thanks", max_new_tokens=2)
    assert all(module.training for module in model.modules())
    model.eval()


def test_alibi_and_learned_positions_with_padding(monkeypatch):
    class Letters:
        """One letter, one token."""

        pad_token_id = eos_token_id = 2
        chat_template = None

        def __call__(self, text, **_settings):
            return {"input_ids": [ord(letter) - ord("a") + 10 for letter in text]}

        def decode(self, ids, **_settings):
            return " ".join(str(token) for token in ids if token != 2)

    def read(example, letters):
        ids = letters(example.prompt)["input_ids"]
        return EncodedExample(ids, [False] * len(ids))

    # Imported by name, for the package's attribute of that name is the function.
    monkeypatch.setattr(import_module("peftly.inference.generation"), "encode_example_prompt", read)
    for name in ("bloom", "gpt2", "gemma3"):
        model = tiny_model(name, torch.float32)
        model.generation_config.pad_token_id = model.generation_config.bos_token_id = None
        texts = ["abcdefghijk", "xy", "hello"]
        assert generate(model, Letters(), texts, max_new_tokens=9) == [
            by_hand(model, Letters(), Letters()(text)["input_ids"], 9) for text in texts
        ]


def test_each_prompt_with_its_own_adapters(base):
    model, tokenizer = copy.deepcopy(base[0]), base[1]
    attach(model, LoRA(rank=2), name="a")
    attach(model, PromptTuning(num_virtual_tokens=3, init="random"), name="b")
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    choices = ["a", None, ("a", "b"), "b"]
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=12, adapters=choices, batch_size=3)
    for text, prompt, choice in zip(texts, PROMPTS, choices, strict=True):
        with use_adapters(model, *([choice] if isinstance(choice, str) else choice or ())):
            assert text == generate(model, tokenizer, prompt, max_new_tokens=12)[0]
    assert texts[1] == generate(*base, PROMPTS[1], max_new_tokens=12)[0]
    assert len(set(texts)) == 4
    settings = {"max_new_tokens": 12, "temperature": 20.0, "seed": 0}
    draws = generate(model, tokenizer, ["thanks"] * 4, adapters=["a", "b", "a", None], **settings)
    assert draws[:2] == [generate(model, tokenizer, "thanks", adapters=[name], **settings)[0] for name in "ab"]
    assert draws[0] != draws[2]
    with pytest.raises(ConfigError, match="got 2 for 4 prompts"):
        generate(model, tokenizer, PROMPTS, adapters=["a", "b"])


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize(
    "method", [PromptTuning(num_virtual_tokens=3, init="random"), PrefixTuning(num_virtual_tokens=3)]
)
def test_prompts_of_equal_length_with_their_own_adapters(base, method, num_beams):
    """`generate` of transformers passes no mask where no prompt has padding."""
    model, tokenizer = copy.deepcopy(base[0]), base[1]
    attach(model, method, name="a")
    attach(model, LoRA(rank=2), name="b")
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    settings = {"max_new_tokens": 6, "num_beams": num_beams}
    choices = ["a", "b", None, ("a", "b")]
    alone = [generate(model, tokenizer, "thanks", adapters=[choice], **settings)[0] for choice in choices]
    assert len(set(alone)) == 4
    assert generate(model, tokenizer, ["thanks"] * 4, adapters=choices, **settings) == alone


@pytest.mark.parametrize(
    "prompt",
    [
        "a\ud800",
        [{"role": "user", "content": "a\ud800"}],
        Example("\udcff"),
        Example(messages=({"role": "user", "content": "\ud800"},)),
    ],
)
def test_half_of_a_character_is_no_prompt(base, prompt):
    with pytest.raises(DataError, match=r"the prompt holds half of a character"):
        generate(*base, prompt)
