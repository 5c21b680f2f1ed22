"""Virtual tokens before, inside and after a text: what the model makes of them, against sequences built by hand."""

import copy

import pytest
import torch
from generate_loop import NEW, beams_by_hand, by_hand, trimmed
from invariance import gradient_tolerance, loss_and_gradients, tolerance
from references import adapted, assert_close
from tiny import ARCHITECTURES, TASKS, WINDOW, padded, perturb, random_rows, tiny_model

from peftly import (
    METHODS,
    LoRA,
    PrefixTuning,
    PromptTuning,
    attach,
    attached,
    detach,
    load_adapter,
    save_adapter,
    trainable_parameters,
    use_adapters,
    use_prompt_positions,
)
from peftly.errors import AdapterError, MethodError
from peftly.inference.label_scoring import score_labels
from peftly.injection.module_copies import copied_parameters

ROWS = random_rows([5, 3 * WINDOW, 11])
PLACES = [[0, 2, 2, 5], [0, 0, WINDOW, 17], [3, 11, 11, 11]]
SETTINGS = {
    "prompt_tuning": {"num_virtual_tokens": 4, "init": "random"},
    "residual": {"num_virtual_tokens": 4, "init": "random", "residual_dim": 3},
    "p_tuning": {"num_virtual_tokens": 4, "encoder": "lstm", "encoder_dim": 5},
}
CAUSAL = [(a, m) for a in dict.fromkeys((*ARCHITECTURES, *TASKS["causal_lm"])) for m in ("prompt_tuning", "p_tuning")]
CAUSAL.append(("llama", "residual"))


def marked(architecture, method="prompt_tuning", dtype=torch.float64, task="causal_lm", **settings):
    """A tiny model with a moved adapter whose rows stand at marks."""
    model = tiny_model(architecture, dtype, task=task)
    config = METHODS[method.replace("residual", "prompt_tuning")].config
    attach(model, config(**{"place": "template", **SETTINGS[method]} | settings))
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


def by_concatenation(model, row, places, **inputs):
    """What the bare base gives for one text's words with the rows in between, and the column of each word."""
    base = detach(copy.deepcopy(model))
    for path, value in copied_parameters(model, "default").items():  # a classifier's head
        base.get_parameter(path).data.copy_(value)
    rows = attached(model)["default"].change.values()
    words = base.get_input_embeddings()(torch.tensor(row))
    pieces, columns = [], []
    for at in range(len(row) + 1):
        pieces += [rows[number].to(words.dtype) for number, place in enumerate(places) if place == at]
        if at < len(row):
            columns.append(len(pieces))
            pieces.append(words[at])
    return base(inputs_embeds=torch.stack(pieces)[None], **inputs), columns


def next_token_logits(model, row, places):
    """What a decoder says after each word: at the last column before the next word."""
    output, columns = by_concatenation(model, row, places, use_cache=False)
    return output.logits[:, [*(column - 1 for column in columns[1:]), -1]]


def gradients(model, loss):
    parameters = list(attached(model)["default"].parameters().values())
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters, retain_graph=True)])


@pytest.mark.parametrize(("architecture", "method"), CAUSAL)
class TestDecoders:
    def test_single_rows_equal_the_concatenation(self, architecture, method):
        model = marked(architecture, method)
        for row, places in zip(ROWS, PLACES, strict=True):
            expected = next_token_logits(model, row, places)
            with use_prompt_positions(model, [places]):
                logits = model(torch.tensor([row]), use_cache=False).logits
            assert_close(logits, expected, tolerance(model))
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=logits.dtype)
            found, wanted = (gradients(model, (one * weights).sum()) for one in (logits, expected))
            assert found.norm() > 0
            assert_close(found, wanted, gradient_tolerance(model))

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("use_cache", [False, True])
    def test_padding_changes_nothing(self, architecture, method, side, use_cache):
        model = marked(architecture, method)
        singles = []
        for row, places in zip(ROWS, PLACES, strict=True):
            with use_prompt_positions(model, [places]):
                singles.append(loss_and_gradients(model, torch.tensor([row])))
        ids, mask = padded(ROWS, side)
        with use_prompt_positions(model, PLACES):
            loss, logits, found = loss_and_gradients(model, ids, mask, use_cache=use_cache)
        assert_close(loss, sum(single[0] for single in singles), tolerance(model))
        assert_close(found, sum(single[2] for single in singles), gradient_tolerance(model))
        for row, single in enumerate(singles):
            assert_close(logits[row][mask[row].bool()], single[1][0], tolerance(model))

    def test_checkpointing_changes_nothing(self, architecture, method):
        model = marked(architecture, method)
        ids, mask = padded(ROWS, "left")
        with use_prompt_positions(model, PLACES):
            loss, _, once = loss_and_gradients(model, ids, mask, use_cache=False)
            model.gradient_checkpointing_enable()
            model.train()
            again, _, twice = loss_and_gradients(model, ids, mask, use_cache=False)
        assert_close(again, loss, tolerance(model))
        assert_close(twice, once, tolerance(model))

    def test_a_cache_goes_on_after_the_text(self, architecture, method):
        model = marked(architecture, method)
        ids, mask = padded(ROWS, "left")
        more = torch.tensor(random_rows([6, 6, 6], seed=9))
        longer, ones = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
        with torch.no_grad(), use_prompt_positions(model, PLACES):
            whole = model(longer, attention_mask=ones).logits
            cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        with torch.no_grad():  # what stands in the cache needs no place any more
            rest = model(more[:, :2], attention_mask=ones[:, :-4], past_key_values=cache)
            last = model(more[:, 2:], attention_mask=ones, past_key_values=rest.past_key_values)
        assert_close(torch.cat([rest.logits, last.logits], 1), whole[:, -6:], tolerance(model))

    def test_greedy_and_beams(self, architecture, method):
        model = marked(architecture, method, torch.float32)
        ids, mask = padded(ROWS, "left")
        by_one = [lambda ids, p=p: next_token_batch(model, ids, p) for p in PLACES]
        for options, expected in (
            ({}, [by_hand(logits, row) for logits, row in zip(by_one, ROWS, strict=True)]),
            ({"num_beams": 3}, [beams_by_hand(logits, row, beams=3) for logits, row in zip(by_one, ROWS, strict=True)]),
        ):
            with use_prompt_positions(model, PLACES):
                found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
            assert [trimmed(one, row) for one, row in zip(found, ROWS, strict=True)] == expected


def next_token_batch(model, ids, places):
    return torch.cat([next_token_logits(model, row, places) for row in ids.tolist()])


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        *(("sequence_classification", a) for a in TASKS["sequence_classification"]),
        *(("token_classification", a) for a in TASKS["token_classification"]),
    ],
)
def test_classifiers_equal_the_concatenation(task, architecture, method):
    model = marked(architecture, method, task=task)
    ids, mask = padded(ROWS, "right")
    with use_prompt_positions(model, PLACES):
        batched = model(ids, attention_mask=mask).logits
    for place, (row, places) in enumerate(zip(ROWS, PLACES, strict=True)):
        output, columns = by_concatenation(model, row, places)
        expected = output.logits[0] if task == "sequence_classification" else output.logits[0, columns]
        found = batched[place][: len(row)] if task == "token_classification" else batched[place]
        assert_close(found, expected, tolerance(model))
        wanted, own = (gradients(model, (one * torch.arange(3)).sum()) for one in (expected, found))
        assert own.norm() > 0
        assert_close(own, wanted, 10 * tolerance(model))


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("architecture", TASKS["seq2seq_lm"])
class TestEncoderDecoders:
    def test_they_equal_the_concatenation(self, architecture, method):
        model = marked(architecture, method, task="seq2seq_lm")
        (ids, mask), answers = padded(ROWS, "right"), torch.tensor(random_rows([4, 4, 4], seed=4))
        with use_prompt_positions(model, PLACES):
            batched = model(ids, attention_mask=mask, decoder_input_ids=answers).logits
        for place, (row, places) in enumerate(zip(ROWS, PLACES, strict=True)):
            output, _ = by_concatenation(model, row, places, decoder_input_ids=answers[[place]])
            assert_close(batched[place], output.logits[0], tolerance(model))
            wanted, own = (gradients(model, one.square().sum()) for one in (output.logits, batched[place]))
            assert_close(own, wanted, 10 * tolerance(model))

    @pytest.mark.parametrize("beams", [1, 3])
    def test_a_text_is_written_as_alone(self, architecture, method, beams):
        model = marked(architecture, method, torch.float32, task="seq2seq_lm")
        ids, mask = padded(ROWS, "right")
        options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
        with use_prompt_positions(model, PLACES):
            batched = model.generate(ids, attention_mask=mask, **options)
        for row, places, found in zip(ROWS, PLACES, batched, strict=True):
            base = detach(copy.deepcopy(model))
            rows, words = attached(model)["default"].change.values().detach(), base.get_input_embeddings()
            pieces = [words(torch.tensor([token]))[0] for token in row]
            for number, place in reversed(list(enumerate(places))):
                pieces.insert(place, rows[number])
            alone = base.generate(inputs_embeds=torch.stack(pieces)[None], **options)[0].tolist()
            assert found.tolist()[: len(alone)] == alone


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_other_adapters_share_the_batch(architecture):
    """A row at marks alone, beside a prompt in front, a prefix and LoRA, and rows without marks of their own."""
    model = marked(architecture)
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"), name="front", seed=3)
    attach(model, PTUNING, name="marked 2", seed=4)
    attach(model, PrefixTuning(num_virtual_tokens=3, init="random"), name="prefix", seed=5)
    attach(model, LoRA(rank=2), name="lora", seed=6)
    perturb(trainable_parameters(model).values())
    texts = random_rows([5, 3 * WINDOW, 11, 8, 14])
    places = [*PLACES, [], [1, 3, 3, 14]]
    rows = ["default", ("front", "default"), ("marked 2", "lora"), "front", ("default", "marked 2", "prefix")]
    ids, mask = padded(texts, "left")
    with use_adapters(model, rows=rows), use_prompt_positions(model, places):
        together = loss_and_gradients(model, ids, mask)
    total = 0
    for place, (text, row, own) in enumerate(zip(texts, rows, places, strict=True)):
        with use_adapters(model, rows=[row]), use_prompt_positions(model, [own] if own else None):
            alone = loss_and_gradients(model, torch.tensor([text]))
        assert_close(together[1][place][mask[place].bool()], alone[1][0], 1e-7)
        total = total + alone[2]
    assert_close(together[2], total, 1e-6)


PTUNING = METHODS["p_tuning"].config(**SETTINGS["p_tuning"], position="template")


def test_a_reused_cache_goes_on_where_it_was():
    model, options = marked("llama", dtype=torch.float32), {"max_new_tokens": 3, "do_sample": False}
    with use_prompt_positions(model, PLACES[:1]):
        first = model.generate(torch.tensor(ROWS[:1]), return_dict_in_generate=True, **options)
    longer = torch.cat([first.sequences, torch.tensor([ROWS[2]])], 1)
    again = model.generate(longer, past_key_values=first.past_key_values, **options)[0].tolist()
    assert again == by_hand(lambda ids: next_token_batch(model, ids, PLACES[0]), longer[0].tolist(), new=3)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}, {"prompt_lookup": True}])
def test_generation_with_other_caches(options):
    model = marked("llama", dtype=torch.float32)
    if "prompt_lookup" in options:
        options, rows, places = {"prompt_lookup_num_tokens": 3}, [ROWS[0] * 3], PLACES[:1]
    else:
        rows, places = ROWS, PLACES
    ids, mask = padded(rows, "left")
    with use_prompt_positions(model, places):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
    expected = [by_hand(lambda i, p=p: next_token_batch(model, i, p), r) for r, p in zip(rows, places, strict=True)]
    assert [trimmed(one, row) for one, row in zip(found, rows, strict=True)] == expected


def test_labels_are_scored_after_rows_at_the_end():
    model, labels = marked("llama"), [[5, 6, 2], [7, 2], [9]]
    with torch.no_grad(), use_prompt_positions(model, PLACES):
        scores, _ = score_labels(model, ROWS, labels, pad_id=0)
    for row, places, found in zip(ROWS, PLACES, scores, strict=True):
        for label, score in zip(labels, found, strict=True):
            logits = next_token_logits(model, [*row, *label], places)[0].log_softmax(-1)
            expected = sum(logits[len(row) - 1 + at, token] for at, token in enumerate(label))
            assert_close(score, expected, 1e-6)


def test_rows_after_the_first_token_of_a_decoder_say_what_comes_next():
    model, _ = adapted("llama", "prompt_tuning", position="after_cls")
    ids = torch.tensor([ROWS[0]])
    assert_close(model(ids).logits, next_token_logits(model, ROWS[0], [1] * 4), 1e-10)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_they_travel_under_a_name_of_our_own(method, tmp_path):
    import json

    model, ids = marked("llama", method, torch.float32), torch.tensor([ROWS[0]])
    save_adapter(model, tmp_path / "adapter")
    peft = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert peft["peft_type"] == METHODS[method].adapter.peft_types[1]
    again = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")
    assert attached(again)["default"].config == attached(model)["default"].config
    with use_prompt_positions(model, PLACES[:1]), use_prompt_positions(again, PLACES[:1]):
        assert torch.equal(again(ids).logits, model(ids).logits)
    peft["settings"]["place"] = "elsewhere"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(peft))
    with pytest.raises(AdapterError, match="place"):
        load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")


def test_calls_that_do_not_say_where_are_refused():
    model, (ids, mask) = marked("llama"), padded(ROWS, "left")
    for call in (lambda: model(ids, attention_mask=mask), lambda: model.generate(ids, attention_mask=mask)):
        with pytest.raises(
            MethodError, match=r"does not say where that is; .*RowFormat.format_prompt.*use_prompt_positions"
        ):
            call()
    with use_adapters(model):  # nothing that needs a place
        model(ids, attention_mask=mask)
    for places, words in (
        ([[0, 1, 2]] * 3, "a text has places for 3 virtual tokens, and the adapter has 4"),
        ([[0, 1, 2, 6], *PLACES[1:]], "past the end of the text in this call"),
        (PLACES[:2], "places were given for 2 rows and this call has 3"),
    ):
        with pytest.raises(MethodError, match=words), use_prompt_positions(model, places):
            model(ids, attention_mask=mask)
    with pytest.raises(MethodError, match="past the end"), use_prompt_positions(model, PLACES):
        model(ids[:, :14], attention_mask=mask[:, :14], use_cache=True)
    with pytest.raises(MethodError, match="packed rows"), use_prompt_positions(model, [[0, 1, 2, 2]]):
        model(torch.tensor([[5, 6, 7, 8]]), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)
    with use_prompt_positions(tiny_model("llama"), PLACES):  # a model without adapters has nothing to place
        pass
