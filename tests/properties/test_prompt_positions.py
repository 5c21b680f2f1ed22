"""Virtual tokens before, inside and after a text, against sequences of embeddings that are built by hand."""

import copy

import pytest
import torch
from adapter_files import edit_config
from generate_loop import NEW, beams_by_hand, by_hand, trimmed
from invariance import gradient_tolerance, loss_and_gradients, tolerance
from references import adapted, assert_close
from tiny import ARCHITECTURES, TASKS, WINDOW, padded, perturb, random_token_ids, tiny_model

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

TEXTS = random_token_ids([5, 3 * WINDOW, 11])
POSITIONS = [[0, 2, 2, 5], [0, 0, WINDOW, 17], [3, 11, 11, 11]]
SETTINGS = {
    "prompt_tuning": {"num_virtual_tokens": 4, "init": "random"},
    "residual": {"num_virtual_tokens": 4, "init": "random", "residual_dim": 3},
    "p_tuning": {"num_virtual_tokens": 4, "encoder": "lstm", "encoder_dim": 5},
}
CAUSAL = [(a, m) for a in dict.fromkeys((*ARCHITECTURES, *TASKS["causal_lm"])) for m in ("prompt_tuning", "p_tuning")]
CAUSAL.append(("llama", "residual"))


def marked(architecture, method="prompt_tuning", dtype=torch.float64, task="causal_lm", **settings):
    """Return a tiny model with a perturbed adapter whose virtual tokens go to marked positions."""
    model = tiny_model(architecture, dtype, task=task)
    config = METHODS[method.replace("residual", "prompt_tuning")].config
    attach(model, config(**{"position": "template", **SETTINGS[method]} | settings))
    perturb(trainable_parameters(model).values())
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.to(model.dtype)
    return model


def by_concatenation(model, text, positions, **inputs):
    """Return the output of the base for embeddings of a text and virtual tokens, and the column of each token."""
    base = detach(copy.deepcopy(model))
    for path, value in copied_parameters(model, "default").items():  # a classifier's head
        base.get_parameter(path).data.copy_(value)
    virtual = attached(model)["default"].virtual_tokens.values()
    embedded = base.get_input_embeddings()(torch.tensor(text))
    pieces, columns = [], []
    for index in range(len(text) + 1):
        pieces += [virtual[i].to(embedded.dtype) for i, position in enumerate(positions) if position == index]
        if index < len(text):
            columns.append(len(pieces))
            pieces.append(embedded[index])
    return base(inputs_embeds=torch.stack(pieces)[None], **inputs), columns


def next_token_logits(model, text, positions):
    """Return the logits of a decoder after each token, from the last column before the next token."""
    output, columns = by_concatenation(model, text, positions, use_cache=False)
    return output.logits[:, [*(column - 1 for column in columns[1:]), -1]]


def gradients(model, loss):
    parameters = list(attached(model)["default"].parameters().values())
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters, retain_graph=True)])


@pytest.mark.sample(4)
@pytest.mark.parametrize(("architecture", "method"), CAUSAL)
class TestDecoders:
    def test_single_texts_equal_the_concatenation(self, architecture, method):
        model = marked(architecture, method)
        for text, positions in zip(TEXTS, POSITIONS, strict=True):
            expected = next_token_logits(model, text, positions)
            with use_prompt_positions(model, [positions]):
                logits = model(torch.tensor([text]), use_cache=False).logits
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
        for text, positions in zip(TEXTS, POSITIONS, strict=True):
            with use_prompt_positions(model, [positions]):
                singles.append(loss_and_gradients(model, torch.tensor([text])))
        ids, mask = padded(TEXTS, side)
        with use_prompt_positions(model, POSITIONS):
            loss, logits, found = loss_and_gradients(model, ids, mask, use_cache=use_cache)
        assert_close(loss, sum(single[0] for single in singles), tolerance(model))
        assert_close(found, sum(single[2] for single in singles), gradient_tolerance(model))
        for index, single in enumerate(singles):
            assert_close(logits[index][mask[index].bool()], single[1][0], tolerance(model))

    def test_checkpointing_changes_nothing(self, architecture, method):
        model = marked(architecture, method)
        ids, mask = padded(TEXTS, "left")
        with use_prompt_positions(model, POSITIONS):
            loss, _, once = loss_and_gradients(model, ids, mask, use_cache=False)
            model.gradient_checkpointing_enable()
            model.train()
            again, _, twice = loss_and_gradients(model, ids, mask, use_cache=False)
        assert_close(again, loss, tolerance(model))
        assert_close(twice, once, tolerance(model))

    def test_a_cache_continues_after_the_text(self, architecture, method):
        model = marked(architecture, method)
        ids, mask = padded(TEXTS, "left")
        more = torch.tensor(random_token_ids([6, 6, 6], seed=9))
        longer, ones = torch.cat([ids, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
        with torch.no_grad(), use_prompt_positions(model, POSITIONS):
            whole = model(longer, attention_mask=ones).logits
            cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
        with torch.no_grad():  # the virtual tokens are in the cache, and need no positions
            rest = model(more[:, :2], attention_mask=ones[:, :-4], past_key_values=cache)
            last = model(more[:, 2:], attention_mask=ones, past_key_values=rest.past_key_values)
        assert_close(torch.cat([rest.logits, last.logits], 1), whole[:, -6:], tolerance(model))

    def test_greedy_and_beams(self, architecture, method):
        model = marked(architecture, method, torch.float32)
        ids, mask = padded(TEXTS, "left")
        by_one = [lambda ids, p=p: next_token_batch(model, ids, p) for p in POSITIONS]
        for options, expected in (
            ({}, [by_hand(logits, text) for logits, text in zip(by_one, TEXTS, strict=True)]),
            (
                {"num_beams": 3},
                [beams_by_hand(logits, text, beams=3) for logits, text in zip(by_one, TEXTS, strict=True)],
            ),
        ):
            with use_prompt_positions(model, POSITIONS):
                found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
            assert [trimmed(ids, text) for ids, text in zip(found, TEXTS, strict=True)] == expected


def next_token_batch(model, ids, positions):
    return torch.cat([next_token_logits(model, text, positions) for text in ids.tolist()])


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
    ids, mask = padded(TEXTS, "right")
    with use_prompt_positions(model, POSITIONS):
        batched = model(ids, attention_mask=mask).logits
    for index, (text, positions) in enumerate(zip(TEXTS, POSITIONS, strict=True)):
        output, columns = by_concatenation(model, text, positions)
        expected = output.logits[0] if task == "sequence_classification" else output.logits[0, columns]
        found = batched[index][: len(text)] if task == "token_classification" else batched[index]
        assert_close(found, expected, tolerance(model))
        wanted, own = (gradients(model, (one * torch.arange(3)).sum()) for one in (expected, found))
        assert own.norm() > 0
        assert_close(own, wanted, 10 * tolerance(model))


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
@pytest.mark.parametrize("architecture", TASKS["seq2seq_lm"])
class TestEncoderDecoders:
    def test_they_equal_the_concatenation(self, architecture, method):
        model = marked(architecture, method, task="seq2seq_lm")
        (ids, mask), answers = padded(TEXTS, "right"), torch.tensor(random_token_ids([4, 4, 4], seed=4))
        with use_prompt_positions(model, POSITIONS):
            batched = model(ids, attention_mask=mask, decoder_input_ids=answers).logits
        for index, (text, positions) in enumerate(zip(TEXTS, POSITIONS, strict=True)):
            output, _ = by_concatenation(model, text, positions, decoder_input_ids=answers[[index]])
            assert_close(batched[index], output.logits[0], tolerance(model))
            wanted, own = (gradients(model, one.square().sum()) for one in (output.logits, batched[index]))
            assert_close(own, wanted, 10 * tolerance(model))

    @pytest.mark.parametrize("beams", [1, 3])
    def test_a_text_is_written_as_alone(self, architecture, method, beams):
        model = marked(architecture, method, torch.float32, task="seq2seq_lm")
        ids, mask = padded(TEXTS, "right")
        options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
        with use_prompt_positions(model, POSITIONS):
            batched = model.generate(ids, attention_mask=mask, **options)
        for text, positions, generated in zip(TEXTS, POSITIONS, batched, strict=True):
            base = detach(copy.deepcopy(model))
            virtual = attached(model)["default"].virtual_tokens.values().detach()
            pieces = [base.get_input_embeddings()(torch.tensor([token]))[0] for token in text]
            for index, position in reversed(list(enumerate(positions))):
                pieces.insert(position, virtual[index])
            alone = base.generate(inputs_embeds=torch.stack(pieces)[None], **options)[0].tolist()
            assert generated.tolist()[: len(alone)] == alone


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_other_adapters_share_the_batch(architecture):
    """Marked virtual tokens alone, with a prompt in front, with a prefix and with LoRA, and a text without marks."""
    model = marked(architecture)
    attach(model, PromptTuning(num_virtual_tokens=2, init="random"), name="front", seed=3)
    attach(model, PTUNING, name="marked 2", seed=4)
    attach(model, PrefixTuning(num_virtual_tokens=3, init="random"), name="prefix", seed=5)
    attach(model, LoRA(rank=2), name="lora", seed=6)
    perturb(trainable_parameters(model).values())
    texts = random_token_ids([5, 3 * WINDOW, 11, 8, 14])
    positions = [*POSITIONS, [], [1, 3, 3, 14]]
    adapters = ["default", ("front", "default"), ("marked 2", "lora"), "front", ("default", "marked 2", "prefix")]
    ids, mask = padded(texts, "left")
    with use_adapters(model, adapters=adapters), use_prompt_positions(model, positions):
        together = loss_and_gradients(model, ids, mask)
    total = 0
    for index, (text, choice, own) in enumerate(zip(texts, adapters, positions, strict=True)):
        with use_adapters(model, adapters=[choice]), use_prompt_positions(model, [own] if own else None):
            alone = loss_and_gradients(model, torch.tensor([text]))
        assert_close(together[1][index][mask[index].bool()], alone[1][0], 1e-7)
        total = total + alone[2]
    assert_close(together[2], total, 1e-6)


PTUNING = METHODS["p_tuning"].config(**SETTINGS["p_tuning"], position="template")


def test_a_reused_cache_continues():
    model, options = marked("llama", dtype=torch.float32), {"max_new_tokens": 3, "do_sample": False}
    with use_prompt_positions(model, POSITIONS[:1]):
        first = model.generate(torch.tensor(TEXTS[:1]), return_dict_in_generate=True, **options)
    longer = torch.cat([first.sequences, torch.tensor([TEXTS[2]])], 1)
    again = model.generate(longer, past_key_values=first.past_key_values, **options)[0].tolist()
    assert again == by_hand(lambda ids: next_token_batch(model, ids, POSITIONS[0]), longer[0].tolist(), new=3)


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}, {"prompt_lookup": True}])
def test_generation_with_other_caches(options):
    model = marked("llama", dtype=torch.float32)
    if "prompt_lookup" in options:
        options, texts, positions = {"prompt_lookup_num_tokens": 3}, [TEXTS[0] * 3], POSITIONS[:1]
    else:
        texts, positions = TEXTS, POSITIONS
    ids, mask = padded(texts, "left")
    with use_prompt_positions(model, positions):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
    expected = [by_hand(lambda i, p=p: next_token_batch(model, i, p), t) for t, p in zip(texts, positions, strict=True)]
    assert [trimmed(ids, text) for ids, text in zip(found, texts, strict=True)] == expected


def test_labels_are_scored_after_virtual_tokens_at_the_end():
    model, labels = marked("llama"), [[5, 6, 2], [7, 2], [9]]
    with torch.no_grad(), use_prompt_positions(model, POSITIONS):
        scores, _ = score_labels(model, TEXTS, labels, pad_id=0)
    for text, positions, text_scores in zip(TEXTS, POSITIONS, scores, strict=True):
        for label, score in zip(labels, text_scores, strict=True):
            logits = next_token_logits(model, [*text, *label], positions)[0].log_softmax(-1)
            expected = sum(logits[len(text) - 1 + index, token] for index, token in enumerate(label))
            assert_close(score, expected, 1e-6)


def test_virtual_tokens_after_the_first_token_of_a_decoder_predict_the_next_one():
    model, _ = adapted("llama", "prompt_tuning", position="after_cls")
    ids = torch.tensor([TEXTS[0]])
    assert_close(model(ids).logits, next_token_logits(model, TEXTS[0], [1] * 4), 1e-10)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_they_are_saved_with_a_peft_type_of_our_own(method, tmp_path):
    import json

    model, ids = marked("llama", method, torch.float32), torch.tensor([TEXTS[0]])
    save_adapter(model, tmp_path / "adapter")
    peft = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert peft["peft_type"] == METHODS[method].adapter.peft_types[1]
    loaded = load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")
    assert attached(loaded)["default"].config == attached(model)["default"].config
    with use_prompt_positions(model, POSITIONS[:1]), use_prompt_positions(loaded, POSITIONS[:1]):
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    peft["settings"]["position"] = "elsewhere"
    edit_config(tmp_path / "adapter", **peft)
    with pytest.raises(AdapterError, match="position"):
        load_adapter(tiny_model("llama", torch.float32), tmp_path / "adapter")


def test_calls_without_positions_are_refused():
    model, (ids, mask) = marked("llama"), padded(TEXTS, "left")
    for call in (lambda: model(ids, attention_mask=mask), lambda: model.generate(ids, attention_mask=mask)):
        with pytest.raises(
            MethodError, match=r"this call has no positions; .*RowFormat.format_prompt.*use_prompt_positions"
        ):
            call()
    with use_adapters(model):  # no virtual tokens, so no positions are needed
        model(ids, attention_mask=mask)
    for positions, message in (
        ([[0, 1, 2]] * 3, "a text has positions for 3 virtual tokens, and the adapter has 4"),
        ([[0, 1, 2, 6], *POSITIONS[1:]], "past the end of the text in this call"),
        (POSITIONS[:2], "prompt positions were given for 2 batch elements and this call has 3"),
    ):
        with pytest.raises(MethodError, match=message), use_prompt_positions(model, positions):
            model(ids, attention_mask=mask)
    with pytest.raises(MethodError, match="past the end"), use_prompt_positions(model, POSITIONS):
        model(ids[:, :14], attention_mask=mask[:, :14], use_cache=True)
    with pytest.raises(MethodError, match="packed sequences"), use_prompt_positions(model, [[0, 1, 2, 2]]):
        model(torch.tensor([[5, 6, 7, 8]]), position_ids=torch.tensor([[0, 1, 0, 1]]), use_cache=False)
    with use_prompt_positions(tiny_model("llama"), POSITIONS):  # a model without adapters takes any positions
        pass
