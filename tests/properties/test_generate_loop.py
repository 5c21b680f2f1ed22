"""`generate` of transformers on an adapted model, compared with a loop without a cache on the plain base."""

import pytest
import torch
from generate_loop import END, NEW, beams_by_hand, by_hand, trimmed
from references import CELLS, DEFAULTS, METHOD_CELLS, adapted, assert_close
from tiny import TASKS, padded, perturb, random_token_ids, tiny_model
from transformers import AutoModelForCausalLM, TextStreamer
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from peftly import METHODS, LoRA, PrefixTuning, PromptTuning, attach, trainable_parameters, use_adapters

TEXTS = random_token_ids([5, 15, 9])


def continued(generated):
    """Return the texts with their continuations, without padding."""
    return [trimmed(ids, text) for ids, text in zip(generated, TEXTS, strict=True)]


@pytest.mark.sample(4)
@pytest.mark.parametrize(("architecture", "method"), CELLS)
class TestGenerate:
    def test_greedy_batched_with_left_padding(self, architecture, method):
        model, logits = adapted(architecture, method, torch.float32)
        ids, mask = padded(TEXTS, "left")
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        assert continued(generated) == [by_hand(logits, text) for text in TEXTS]

    def test_beams(self, architecture, method):
        model, logits = adapted(architecture, method, torch.float32)
        ids, mask = padded(TEXTS, "left")
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, num_beams=3, do_sample=False)
        expected = [beams_by_hand(logits, text, beams=3) for text in TEXTS]
        assert continued(generated) == expected


@pytest.mark.sample(4)
@pytest.mark.parametrize(("architecture", "method"), METHOD_CELLS)
class TestOptions:
    @pytest.fixture
    def case(self, architecture, method):
        return adapted(architecture, method, torch.float32)

    def test_sampling_with_a_seed(self, case):
        model, logits = case
        torch.manual_seed(3)
        expected = by_hand(logits, TEXTS[1], sample=True)
        torch.manual_seed(3)
        generated = model.generate(torch.tensor([TEXTS[1]]), max_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0)
        assert generated[0].tolist() == expected

    @pytest.mark.parametrize(
        ("option", "processor"),
        [
            ({"repetition_penalty": 1.7}, RepetitionPenaltyLogitsProcessor(1.7)),
            ({"no_repeat_ngram_size": 2}, NoRepeatNGramLogitsProcessor(2)),
        ],
    )
    def test_processors_see_text_only(self, case, option, processor):
        model, logits = case
        text = TEXTS[0] * 2
        generated = model.generate(torch.tensor([text]), max_new_tokens=NEW, do_sample=False, **option)
        assert generated[0].tolist() == by_hand(logits, text, processors=[processor])

    def test_max_length_counts_text(self, case):
        model, logits = case
        generated = model.generate(torch.tensor([TEXTS[0]]), max_length=11, do_sample=False)
        assert generated[0].tolist() == by_hand(logits, TEXTS[0], new=11 - len(TEXTS[0]))

    def test_streamer_gets_text_tokens(self, case):
        model, logits = case

        class Collect(TextStreamer):
            def __init__(self):
                self.seen = []

            def put(self, value):
                self.seen += value.flatten().tolist()

            def end(self):
                self.seen.append("end")

        streamer = Collect()
        model.generate(torch.tensor([TEXTS[0]]), max_new_tokens=NEW, do_sample=False, streamer=streamer)
        assert streamer.seen == [*by_hand(logits, TEXTS[0]), "end"]

    @pytest.mark.parametrize("cache", ["static", "offloaded"])
    def test_other_caches(self, case, cache):
        if cache == "offloaded" and not torch.cuda.is_available():
            cache = "dynamic"
        model, logits = case
        ids, mask = padded(TEXTS, "left")
        generated = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, cache_implementation=cache
        )
        assert continued(generated) == [by_hand(logits, text) for text in TEXTS]

    @pytest.mark.parametrize("mask", [True, False])
    def test_a_static_cache_without_padding(self, case, mask):
        model, logits = case
        ids = torch.tensor([TEXTS[1]])
        given = {"attention_mask": torch.ones_like(ids)} if mask else {}
        generated = model.generate(
            ids, **given, max_new_tokens=NEW, do_sample=False, cache_implementation="static", disable_compile=True
        )
        assert generated[0].tolist() == by_hand(logits, TEXTS[1])

    @pytest.mark.parametrize(
        "options", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}]
    )
    def test_texts_as_embeddings(self, case, options):
        model, logits = case
        ids, mask = padded(TEXTS, "left")
        embeds = model.get_input_embeddings()(ids).detach()
        generated = model.generate(
            inputs_embeds=embeds, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options
        )
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
        assert torch.equal(generated, expected[:, ids.shape[1] :])
        one = torch.tensor([TEXTS[1]])
        generated = model.generate(one, inputs_embeds=embeds[1:2], max_new_tokens=NEW, do_sample=False, **options)
        if "num_beams" not in options:
            assert generated[0].tolist() == by_hand(logits, TEXTS[1])

    def test_without_a_cache(self, case):
        model, logits = case
        ids, mask = padded(TEXTS, "left")
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=False)
        assert continued(generated) == [by_hand(logits, text) for text in TEXTS]

    def test_generation_continues_from_its_cache(self, case):
        model, logits = case
        first = model.generate(
            torch.tensor([TEXTS[0]]), max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        )
        longer = torch.cat([first.sequences, torch.tensor([TEXTS[2]])], 1)
        again = model.generate(longer, past_key_values=first.past_key_values, max_new_tokens=NEW, do_sample=False)
        assert again[0].tolist() == by_hand(logits, longer[0].tolist())

    def test_chunked_prefill(self, case):
        model, logits = case
        generated = model.generate(torch.tensor([TEXTS[1]]), max_new_tokens=NEW, do_sample=False, prefill_chunk_size=4)
        assert generated[0].tolist() == by_hand(logits, TEXTS[1])

    def test_assisted_by_prompt_lookup(self, case):
        model, logits = case
        text = TEXTS[0] * 3
        generated = model.generate(
            torch.tensor([text]), max_new_tokens=NEW, do_sample=False, prompt_lookup_num_tokens=3
        )
        assert generated[0].tolist() == by_hand(logits, text)

    def test_assisted_by_another_model(self, case):
        model, logits = case
        helper = AutoModelForCausalLM.from_config(model.config)
        generated = model.generate(
            torch.tensor([TEXTS[1]]), max_new_tokens=NEW, do_sample=False, assistant_model=helper
        )
        assert generated[0].tolist() == by_hand(logits, TEXTS[1])


def answer_by_hand(model, text):
    """Return the greedy answer to a text, from the whole text and the whole answer at each step, and its logits."""
    ids, answer, logits = torch.tensor([text]), [model.config.decoder_start_token_id], []
    while len(logits) < NEW and (len(answer) == 1 or answer[-1] != END):
        with torch.no_grad():
            whole = model(ids, decoder_input_ids=torch.tensor([answer]), use_cache=False).logits
        logits.append(whole[0, -1])
        answer.append(int(logits[-1].argmax()))
    return answer[1:], torch.stack(logits)


def score_by_hand(model, text, answer):
    """Return the mean log-probability of the tokens of an answer."""
    given = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
    with torch.no_grad():
        logs = model(torch.tensor([text]), decoder_input_ids=given, use_cache=False).logits[0].log_softmax(-1)
    return float(logs[range(len(answer)), answer].mean())


def generated_from(model, texts, side="right", **settings):
    """Return the output of `generate`, and its answers: after the first token of the decoder, up to the end token."""
    ids, mask = padded(texts, side)
    settings |= {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    output = model.generate(ids, attention_mask=mask, **settings)
    answers = [
        tokens[: tokens.index(END) + 1] if END in tokens else tokens for tokens in output.sequences[:, 1:].tolist()
    ]
    return output, answers


def encoder_decoder(architecture, configs):
    """Return an encoder-decoder with adapters, whose answers differ between texts and between adapters."""
    model = tiny_model(architecture, task="seq2seq_lm")
    perturb(model.parameters(), scale=0.3)  # otherwise it repeats one token
    for seed, (name, config) in enumerate(configs.items()):
        attach(model, config, name=name, seed=seed)
    perturb(trainable_parameters(model).values(), scale=0.5)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


@pytest.mark.parametrize(
    ("architecture", "method", "side"),
    [
        (architecture, method, side)
        for architecture in TASKS["seq2seq_lm"]
        for method in ("prompt_tuning", "prefix_tuning", "lora")
        for side in ("left", "right")
        # BART's encoder counts padding; a prompt in it gets positions, other adapters leave those of the base.
        if not (architecture == "bart" and side == "left" and method != "prompt_tuning")
    ],
)
class TestEncoderDecoders:
    """Texts are padded in the encoder, which also holds a prompt; a prefix is in front of the answer."""

    @pytest.fixture
    def model(self, architecture, method):
        return encoder_decoder(architecture, {method: METHODS[method].config(**DEFAULTS[method])})

    def test_greedy(self, model, side):
        expected, logits = zip(*[answer_by_hand(model, text) for text in TEXTS], strict=True)
        for use_cache in (True, False):
            output, answers = generated_from(model, TEXTS, side, output_logits=True, use_cache=use_cache)
            assert answers == list(expected)
            for index, steps in enumerate(logits):
                found = torch.stack([step[index] for step in output.logits[: len(steps)]])
                assert_close(found, steps, 1e-6)  # `generate` stores fp32
        assert len(set(map(tuple, expected))) > 1, "the texts matter"
        with use_adapters(model):
            assert generated_from(model, TEXTS, side)[1] != list(expected), "the adapter matters"

    def test_beams(self, model, side):
        settings = {"num_beams": 3, "output_scores": True}
        output, answers = generated_from(model, TEXTS, side, **settings)
        for text, answer, score in zip(TEXTS, answers, output.sequences_scores.tolist(), strict=True):
            alone, (expected,) = generated_from(model, [text], **settings)
            assert answer == expected
            assert score == pytest.approx(float(alone.sequences_scores), abs=1e-6)
            assert score == pytest.approx(score_by_hand(model, text, answer), abs=1e-6)


@pytest.mark.parametrize(
    "adapters",
    [["prompt", None, "lora"], ["long", None, ("short", "prompt")], ["short", "long", "lora"]],
    ids=["prompt-none-lora", "prefix-none-prefix_prompt", "prefix-prefix-lora"],
)
@pytest.mark.parametrize("architecture", TASKS["seq2seq_lm"])
def test_each_text_of_an_encoder_decoder_may_have_other_adapters(architecture, adapters):
    prompt, lora = PromptTuning(num_virtual_tokens=4, init="random"), LoRA(rank=2)
    prefixes = {"short": PrefixTuning(num_virtual_tokens=2), "long": PrefixTuning(num_virtual_tokens=5)}
    model = encoder_decoder(architecture, {"prompt": prompt, "lora": lora, **prefixes})
    expected, beams = [], []
    for names, text in zip(adapters, TEXTS, strict=True):
        with use_adapters(model, *([names] if isinstance(names, str) else names or ())):
            expected.append(answer_by_hand(model, text)[0])
            beams += generated_from(model, [text], num_beams=3)[1]
    with use_adapters(model, adapters=adapters):
        assert generated_from(model, TEXTS)[1] == expected
        assert generated_from(model, TEXTS, num_beams=3)[1] == beams
