"""transformers' `generate` on an adapted model, against a loop written by hand without a cache on the plain base."""

import pytest
import torch
from generate_loop import NEW, beams_by_hand, by_hand, trimmed
from references import CELLS, DEFAULTS, HOMES, adapted, assert_close
from tiny import TASKS, padded, perturb, random_rows, tiny_model
from transformers import AutoModelForCausalLM, TextStreamer
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from peftly import METHODS, LoRA, PrefixTuning, PromptTuning, attach, trainable_parameters, use_adapters

ROWS = random_rows([5, 15, 9])


@pytest.mark.parametrize(("architecture", "method"), CELLS)
class TestGenerate:
    def test_greedy_batched_with_left_padding(self, architecture, method):
        model, logits = adapted(architecture, method, torch.float32)
        ids, mask = padded(ROWS, "left")
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
        assert [trimmed(g, row) for g, row in zip(generated, ROWS, strict=True)] == [by_hand(logits, r) for r in ROWS]

    def test_beams(self, architecture, method):
        model, logits = adapted(architecture, method, torch.float32)
        ids, mask = padded(ROWS, "left")
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, num_beams=3, do_sample=False)
        expected = [beams_by_hand(logits, row, beams=3) for row in ROWS]
        assert [trimmed(g, row) for g, row in zip(generated, ROWS, strict=True)] == expected


@pytest.mark.parametrize(("architecture", "method"), HOMES)
class TestOptions:
    @pytest.fixture
    def case(self, architecture, method):
        return adapted(architecture, method, torch.float32)

    def test_sampling_with_a_seed(self, case):
        model, logits = case
        torch.manual_seed(3)
        expected = by_hand(logits, ROWS[1], sample=True)
        torch.manual_seed(3)
        generated = model.generate(torch.tensor([ROWS[1]]), max_new_tokens=NEW, do_sample=True, top_k=0, top_p=1.0)
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
        row = ROWS[0] * 2
        generated = model.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False, **option)
        assert generated[0].tolist() == by_hand(logits, row, processors=[processor])

    def test_max_length_counts_text(self, case):
        model, logits = case
        generated = model.generate(torch.tensor([ROWS[0]]), max_length=11, do_sample=False)
        assert generated[0].tolist() == by_hand(logits, ROWS[0], new=11 - len(ROWS[0]))

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
        model.generate(torch.tensor([ROWS[0]]), max_new_tokens=NEW, do_sample=False, streamer=streamer)
        assert streamer.seen == [*by_hand(logits, ROWS[0]), "end"]

    @pytest.mark.parametrize("cache", ["static", "offloaded"])
    def test_other_caches(self, case, cache):
        if cache == "offloaded" and not torch.cuda.is_available():
            cache = "dynamic"
        model, logits = case
        ids, mask = padded(ROWS, "left")
        generated = model.generate(
            ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, cache_implementation=cache
        )
        assert [trimmed(g, row) for g, row in zip(generated, ROWS, strict=True)] == [by_hand(logits, r) for r in ROWS]

    def test_without_a_cache(self, case):
        model, logits = case
        ids, mask = padded(ROWS, "left")
        generated = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=False)
        assert [trimmed(g, row) for g, row in zip(generated, ROWS, strict=True)] == [by_hand(logits, r) for r in ROWS]

    def test_a_reused_cache_goes_on_where_it_was(self, case):
        model, logits = case
        first = model.generate(torch.tensor([ROWS[0]]), max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        longer = torch.cat([first.sequences, torch.tensor([ROWS[2]])], 1)
        again = model.generate(longer, past_key_values=first.past_key_values, max_new_tokens=NEW, do_sample=False)
        assert again[0].tolist() == by_hand(logits, longer[0].tolist())

    def test_chunked_prefill(self, case):
        model, logits = case
        generated = model.generate(torch.tensor([ROWS[1]]), max_new_tokens=NEW, do_sample=False, prefill_chunk_size=4)
        assert generated[0].tolist() == by_hand(logits, ROWS[1])

    def test_assisted_by_prompt_lookup(self, case):
        model, logits = case
        row = ROWS[0] * 3
        generated = model.generate(torch.tensor([row]), max_new_tokens=NEW, do_sample=False, prompt_lookup_num_tokens=3)
        assert generated[0].tolist() == by_hand(logits, row)

    def test_assisted_by_another_model(self, case):
        model, logits = case
        helper = AutoModelForCausalLM.from_config(model.config)
        generated = model.generate(torch.tensor([ROWS[1]]), max_new_tokens=NEW, do_sample=False, assistant_model=helper)
        assert generated[0].tolist() == by_hand(logits, ROWS[1])


def answer_by_hand(model, row):
    """The likeliest token after another, from the whole row and the whole answer each time; and the logits of each."""
    ids, answer, logits = torch.tensor([row]), [model.config.decoder_start_token_id], []
    while len(logits) < NEW and (len(answer) == 1 or answer[-1] != 2):
        with torch.no_grad():
            whole = model(ids, decoder_input_ids=torch.tensor([answer]), use_cache=False).logits
        logits.append(whole[0, -1])
        answer.append(int(logits[-1].argmax()))
    return answer[1:], torch.stack(logits)


def score_by_hand(model, row, answer):
    """The mean log-probability of the tokens of an answer."""
    given = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
    with torch.no_grad():
        logs = model(torch.tensor([row]), decoder_input_ids=given, use_cache=False).logits[0].log_softmax(-1)
    return float(logs[range(len(answer)), answer].mean())


def generated_from(model, rows, side="right", **settings):
    """What `generate` gives, and the answers in it: after the decoder's first token, up to the end token."""
    ids, mask = padded(rows, side)
    settings |= {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    found = model.generate(ids, attention_mask=mask, **settings)
    answers = [row[: row.index(2) + 1] if 2 in row else row for row in found.sequences[:, 1:].tolist()]
    return found, answers


def writer(architecture, configs):
    """An encoder-decoder with adapters, whose answers differ from text to text and from adapter to adapter."""
    model = tiny_model(architecture, task="seq2seq_lm")
    perturb(model.parameters(), scale=0.3)  # or it says one word only
    for seed, (name, config) in enumerate(configs.items()):
        attach(model, config, name=name, seed=seed)
    perturb(trainable_parameters(model).values(), scale=0.5)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "lora"])
@pytest.mark.parametrize("architecture", TASKS["seq2seq_lm"])
class TestEncoderDecoders:
    """The rows are padded in the encoder; a prompt stands there, and a prefix in front of the answer."""

    @pytest.fixture
    def model(self, architecture, method):
        return writer(architecture, {method: METHODS[method].config(**DEFAULTS[method])})

    def test_greedy(self, model, side):
        expected, logits = zip(*[answer_by_hand(model, row) for row in ROWS], strict=True)
        for use_cache in (True, False):
            found, answers = generated_from(model, ROWS, side, output_logits=True, use_cache=use_cache)
            assert answers == list(expected)
            for place, own in enumerate(logits):
                assert_close(
                    torch.stack([step[place] for step in found.logits[: len(own)]]), own, 1e-6
                )  # it keeps fp32
        assert len(set(map(tuple, expected))) > 1, "the rows matter"
        with use_adapters(model):
            assert generated_from(model, ROWS, side)[1] != list(expected), "the adapter matters"

    def test_beams(self, model, side):
        settings = {"num_beams": 3, "output_scores": True}
        found, answers = generated_from(model, ROWS, side, **settings)
        for row, answer, score in zip(ROWS, answers, found.sequences_scores.tolist(), strict=True):
            alone, (expected,) = generated_from(model, [row], **settings)
            assert answer == expected
            assert score == pytest.approx(float(alone.sequences_scores), abs=1e-6)
            assert score == pytest.approx(score_by_hand(model, row, answer), abs=1e-6)


@pytest.mark.parametrize(
    "rows", [["prompt", None, "lora"], ["long", None, ("short", "prompt")], ["short", "long", "lora"]]
)
@pytest.mark.parametrize("architecture", TASKS["seq2seq_lm"])
def test_every_row_of_an_encoder_decoder_has_its_own_adapters(architecture, rows):
    prompt, lora = PromptTuning(num_virtual_tokens=4, init="random"), LoRA(rank=2)
    prefixes = {"short": PrefixTuning(num_virtual_tokens=2), "long": PrefixTuning(num_virtual_tokens=5)}
    model = writer(architecture, {"prompt": prompt, "lora": lora, **prefixes})
    expected, beams = [], []
    for names, row in zip(rows, ROWS, strict=True):
        with use_adapters(model, *([names] if isinstance(names, str) else names or ())):
            expected.append(answer_by_hand(model, row)[0])
            beams += generated_from(model, [row], num_beams=3)[1]
    with use_adapters(model, rows=rows):
        assert generated_from(model, ROWS)[1] == expected
        assert generated_from(model, ROWS, num_beams=3)[1] == beams
