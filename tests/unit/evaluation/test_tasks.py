"""Evaluation of every task: metrics by hand, and results that depend neither on the batch nor on padding."""

import dataclasses
import math
from importlib import import_module

import pytest
import torch
from references import token_loss
from tiny import perturb
from tiny_tasks import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    TASK_CELLS,
    answer_rows,
    labelled_rows,
    pair_rows,
    prepared,
    tagged_rows,
)

from peftly import LoRA, attach, evaluate, trainable_parameters, use_adapters
from peftly.data import RowFormat, Split
from peftly.errors import ConfigError, DataError
from peftly.evaluation.metrics import metrics_of
from peftly.evaluation.tasks import SCORINGS
from peftly.inference.classification import classify, tag_words
from peftly.inference.label_scoring import score_answers
from peftly.inference.logits import decoder_logits
from peftly.kernels.cross_entropy import token_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")  # masked language models have no pooler


def adapted(task, architecture, task_base, tmp_path, rows=None, **settings):
    """A base with an adapter that does something, and rows of many lengths."""
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path, rows, **settings)
    attach(model, LoRA(rank=2))
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.double()
    perturb(trainable_parameters(model).values())
    return model, tokenizer, data


def own_inputs(row):
    inputs = {"input_ids": torch.tensor([row.input_ids]), "attention_mask": torch.ones(1, len(row.input_ids)).long()}
    if row.token_type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([row.token_type_ids])
    return inputs


@pytest.mark.parametrize(("task", "architecture"), TASK_CELLS)
def test_the_loss_is_that_of_transformers(task, architecture, task_base, tmp_path):
    """One row at a time, in which transformers' own mean is no matter of weights."""
    model, _, data = adapted(task, architecture, task_base, tmp_path)
    for row in data.train.encoded[:6]:
        labels = torch.tensor([row.targets])
        own = model(**own_inputs(row), labels=labels[:, 0] if task == "sequence_classification" else labels).loss
        batch = own_inputs(row) | {"labels": labels}
        loss, count = token_loss(model, batch, SCORINGS[task].logits)
        assert count == row.num_targets
        torch.testing.assert_close(loss, own.double() * count, rtol=1e-10, atol=1e-10)
        got = torch.autograd.grad(loss, list(trainable_parameters(model).values()))
        expected = torch.autograd.grad(own * count, list(trainable_parameters(model).values()))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("task", "architecture"), TASK_CELLS)
def test_scores_do_not_depend_on_the_batch(task, architecture, task_base, tmp_path):
    model, tokenizer, data = adapted(task, architecture, task_base, tmp_path)
    split = data.train
    assert len({len(row.input_ids) for row in split.encoded}) > 2, "rows of several lengths, so that some are padded"
    modes = [module.training for module in model.modules()]
    alone = evaluate(model, tokenizer, split, data.row_format, batch_size=1)
    for size in (5, 64):
        together = evaluate(model, tokenizer, split, data.row_format, batch_size=size)
        assert together.loss == pytest.approx(alone.loss, rel=1e-10)
        assert [row.predicted for row in together.predictions] == [row.predicted for row in alone.predictions]
        for one, other in zip(alone.predictions, together.predictions, strict=True):
            assert other.log_probabilities == pytest.approx(one.log_probabilities, rel=1e-9)
        plain = {field: getattr(together, field) for field in ("token_accuracy", "accuracy", "macro_f1", "entity_f1")}
        assert plain == {field: getattr(alone, field) for field in plain}
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_two_texts_do_not_depend_on_the_batch(architecture, task_base, tmp_path):
    rows = [{**row, "premise": row["premise"] + " late" * (n % 7)} for n, row in enumerate(pair_rows())]
    model, tokenizer, data = adapted("sequence_classification", architecture, task_base, tmp_path, rows)
    alone = evaluate(model, tokenizer, data.train, data.row_format, batch_size=1)
    together = evaluate(model, tokenizer, data.train, data.row_format, batch_size=64)
    for one, other in zip(alone.predictions, together.predictions, strict=True):
        assert other.log_probabilities == pytest.approx(one.log_probabilities, rel=1e-9)


def test_the_kind_of_a_token_reaches_the_model(task_base, tmp_path):
    model, tokenizer, data = adapted("sequence_classification", "bert", task_base, tmp_path, pair_rows())
    bare = Split(data.train.examples, [dataclasses.replace(row, token_type_ids=None) for row in data.train.encoded])
    assert evaluate(model, tokenizer, data.train, data.row_format).loss != pytest.approx(
        evaluate(model, tokenizer, bare, data.row_format).loss, rel=1e-6
    )


def fixed(monkeypatch, name, logits):
    """Let `class_logits` or `tag_logits` answer with these, row by row."""
    home = import_module("peftly.evaluation.classification")

    given = iter(logits)
    original = getattr(home, name)

    def answer(model, batch):
        targets = original(model, batch)[1]
        return torch.tensor([next(given) for _ in targets], dtype=torch.double), targets

    monkeypatch.setattr(home, name, answer)


def test_class_scores_by_hand(monkeypatch, task_base, tmp_path):
    rows = [{"text": "late", "label": label} for label in ("a", "a", "b", "c")]
    model, tokenizer, data = prepared(
        "sequence_classification", task_base("bert"), tmp_path, rows, validation_fraction=0.0
    )
    fixed(monkeypatch, "class_logits", [[2.0, 0, 0], [0, 2.0, 0], [0, 2.0, 0], [0, 2.0, 0]])
    found = evaluate(model, tokenizer, data.train, data.row_format)
    right, wrong = math.log(math.exp(2) + 2) - 2, math.log(math.exp(2) + 2)
    assert found.loss == pytest.approx((2 * right + 2 * wrong) / 4)
    assert (found.rows, found.tokens, found.accuracy) == (4, 4, 0.5)
    # a: precision 1, recall 1/2; b: precision 1/3, recall 1; c: nothing found.
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.confusion == ((1, 1, 0), (0, 1, 0), (0, 1, 0))
    assert (found.perplexity, found.token_accuracy, found.entity_f1) == (None, None, None)
    assert [(row.label, row.predicted) for row in found.predictions] == [("a", "a"), ("a", "b"), ("b", "b"), ("c", "b")]
    assert found.predictions[0].log_probabilities["a"] == pytest.approx(-right)


def test_scores_are_in_the_order_of_the_labels(monkeypatch, task_base, tmp_path):
    """The order of the row format, such as 2, 10, and not that of the texts."""
    rows = [{"text": "late", "label": label} for label in ("2", "10", "2")]
    model, tokenizer, data = prepared(
        "sequence_classification", task_base("bert"), tmp_path, rows, validation_fraction=0.0
    )
    row_format = dataclasses.replace(data.row_format, labels=("2", "10"))
    encoded = [dataclasses.replace(row, label=index) for row, index in zip(data.train.encoded, (0, 1, 0), strict=True)]
    fixed(monkeypatch, "class_logits", [[2.0, 0], [2.0, 0], [2.0, 0]])
    found = evaluate(model, tokenizer, Split(data.train.examples, encoded), row_format)
    assert found.labels == ("2", "10")
    assert found.confusion == ((2, 0), (1, 0))
    assert list(found.predictions[0].log_probabilities) == ["2", "10"]


@pytest.mark.parametrize("bio", [True, False])
def test_tag_scores_by_hand(monkeypatch, task_base, tmp_path, bio):
    names = ("B-X", "I-X", "O") if bio else ("noun", "other", "verb")
    rows = [
        {"tokens": ["Ada", "Lovelace", "was"], "tags": [names[0], names[1], names[2]]},
        {"tokens": ["London"], "tags": [names[0]]},
    ]
    model, tokenizer, data = prepared(
        "token_classification", task_base("bert"), tmp_path, rows, validation_fraction=0.0
    )
    # The longer row goes first: its second word is taken for the outside.
    fixed(monkeypatch, "tag_logits", [[3.0, 0, 0], [0, 0, 3.0], [0, 0, 3.0], [3.0, 0, 0]])
    found = evaluate(model, tokenizer, data.train, data.row_format)
    right, wrong = math.log(math.exp(3) + 2) - 3, math.log(math.exp(3) + 2)
    assert found.loss == pytest.approx((3 * right + wrong) / 4)
    assert (found.rows, found.tokens, found.token_accuracy) == (2, 4, 0.75)
    if bio:
        assert found.entity_f1 == pytest.approx(2 * 1 / (2 + 2))
        assert found.macro_f1 is None
    else:
        assert found.macro_f1 == pytest.approx((1 + 0 + 2 / 3) / 3)
        assert found.entity_f1 is None
    assert [(row.prompt, row.label) for row in found.predictions][1] == ("London", names[0])
    assert found.predictions[0].predicted == f"{names[0]} {names[2]} {names[2]}"
    assert (found.accuracy, found.perplexity, found.labels) == (None, None, ())
    assert metrics_of(data.row_format) == ("loss", "entity_f1" if bio else "macro_f1")


def test_words_past_the_length_are_not_scored(task_base, tmp_path):
    rows = [{"tokens": ["late"] * 30, "tags": ["x", "y"] * 15}] * 4
    model, tokenizer, data = prepared("token_classification", task_base("bert"), tmp_path, rows, max_length=12)
    found = evaluate(model, tokenizer, data.train, data.row_format)
    assert found.tokens == 10 * found.rows
    assert found.words_without_tag == 20 * found.rows
    label, predicted = (text.split() for text in (found.predictions[0].label, found.predictions[0].predicted))
    assert len(label) == len(predicted) == 30
    assert set(predicted[:10]) <= {"x", "y"}
    assert predicted[10:] == ["—"] * 20


def test_words_without_a_tag_are_outside_of_entities(monkeypatch, task_base, tmp_path):
    """BERT's tokenizer removes a zero-width space, and the last words are cut."""
    words = ["Ada", "\u200b", "Lovelace", "was", "in", *["late"] * 6, "London"]
    tags = ["B-PER", "I-PER", "I-PER", *["O"] * 8, "B-LOC"]
    rows = [{"tokens": words, "tags": tags}, {"tokens": ["London"], "tags": ["B-LOC"]}]
    model, tokenizer, data = prepared(
        "token_classification", task_base("bert"), tmp_path, rows, validation_fraction=0.0, max_length=16
    )
    (first, second), names = data.train.encoded, data.row_format.labels
    assert (first.num_targets, second.num_targets) == (10, 1)
    right = [tags[index] for index in (0, *range(2, 11))] + ["B-LOC"]
    fixed(monkeypatch, "tag_logits", [[3.0 * (name == tag) for name in names] for tag in right])
    found = evaluate(model, tokenizer, data.train, data.row_format)
    assert (found.tokens, found.words_without_tag, found.token_accuracy) == (11, 2, 1.0)
    assert found.predictions[0].predicted.split() == ["B-PER", "O", "I-PER", *["O"] * 9]
    # True: PER, LOC, LOC. Predicted: two wrong pieces of PER, and the LOC of the second text.
    assert found.entity_f1 == pytest.approx(2 * 1 / (3 + 3))


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_label_scores_are_exact(architecture, task_base, tmp_path, monkeypatch):
    """Each label by itself, its tokens one after another, in a full pass of the model."""
    model, tokenizer, data = adapted("seq2seq_lm", architecture, task_base, tmp_path, labelled_rows(2))
    assert data.row_format.kind == "label"
    answers = {example.label: row.answer for example, row in zip(data.train.examples, data.train.encoded, strict=True)}
    assert len({len(answer) for answer in answers.values()}) > 1, "labels of different lengths"

    def log_probability(row, answer):
        total, start = 0.0, model.config.decoder_start_token_id
        for at, token in enumerate(answer):
            logits = model(**own_inputs(row), decoder_input_ids=torch.tensor([[start, *answer[:at]]])).logits
            total += logits[0, -1].log_softmax(-1)[token].item()
        return total

    for branches in (128, 1):
        monkeypatch.setattr("peftly.inference.label_scoring._BRANCHES", branches)
        found = evaluate(model, tokenizer, data.train, data.row_format)
        with torch.no_grad():
            for prediction, row in zip(found.predictions[:5], data.train.encoded, strict=False):
                expected = {label: log_probability(row, answer) for label, answer in answers.items()}
                assert prediction.log_probabilities == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        batch = [token_loss(model, own_inputs(row) | {"labels": torch.tensor([row.answer])}, decoder_logits)
                 for row in data.train.encoded]  # fmt: skip
    assert found.loss == pytest.approx(sum(loss.item() for loss, _ in batch) / sum(count for _, count in batch))
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_the_encoder_reads_each_prompt_once(task_base, tmp_path):
    model, _, data = prepared("seq2seq_lm", task_base("t5"), tmp_path, labelled_rows(2))
    read = []
    model.get_encoder().register_forward_hook(lambda *_: read.append(None))
    with torch.no_grad():
        scores, hits = score_answers(model, data.train.encoded[:4], [[5, 2], [6, 7, 2], [8, 2]], pad_id=0)
    assert len(read) == 1
    assert scores.shape == hits.shape == (4, 3)


def test_free_answers_have_the_scores_of_their_tokens(task_base, tmp_path):
    model, tokenizer, data = prepared("seq2seq_lm", task_base("bart"), tmp_path, answer_rows())
    found = evaluate(model, tokenizer, data.train, data.row_format)
    assert found.tokens == sum(len(row.answer) for row in data.train.encoded)
    assert found.accuracy is None
    with torch.no_grad():
        row = data.train.encoded[0]
        logits, targets = decoder_logits(model, own_inputs(row) | {"labels": torch.tensor([row.answer])})
    assert token_cross_entropy(logits, targets).shape == (len(row.answer),)
    assert targets.tolist() == row.answer


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_classify_agrees_with_evaluate(architecture, task_base, tmp_path):
    model, tokenizer, data = adapted("sequence_classification", architecture, task_base, tmp_path)
    found = evaluate(model, tokenizer, data.train, data.row_format)
    said = classify(
        model, tokenizer, [data.row_format.format_prompt(example.prompt) for example in data.train.examples]
    )
    for prediction, probabilities in zip(found.predictions, said, strict=True):
        assert sum(probabilities.values()) == pytest.approx(1)
        for label, probability in probabilities.items():
            assert math.log(probability) == pytest.approx(prediction.log_probabilities[label], rel=1e-8)


def test_each_text_with_its_own_adapters(task_base, tmp_path):
    for task in ("sequence_classification", "token_classification"):
        model, tokenizer, data = adapted(
            task, "roberta", task_base, tmp_path, tagged_rows() if "token" in task else None
        )
        attach(model, LoRA(rank=2), name="other")
        perturb(trainable_parameters(model).values())
        if task == "sequence_classification":
            texts, call = (
                [data.row_format.format_prompt(example.prompt) for example in data.train.examples[:4]],
                classify,
            )
        else:
            texts, call = [example.words for example in data.train.examples[:4]], tag_words
        choices = ["default", None, ("default", "other"), "other"]
        mixed = call(model, tokenizer, texts, batch_size=3, adapters=choices)
        for text, choice, found in zip(texts, choices, mixed, strict=True):
            with use_adapters(model, *([choice] if isinstance(choice, str) else choice or ())):
                expected = call(model, tokenizer, [text])[0]
            assert found == (pytest.approx(expected, rel=1e-9) if task == "sequence_classification" else expected)
        assert mixed != call(model, tokenizer, texts, adapters=["default"] * 4)
        with pytest.raises(ConfigError, match="one entry per text; got 1 for 4 texts"):
            call(model, tokenizer, texts, adapters=["default"])


def test_tag_words_agrees_with_evaluate(task_base, tmp_path):
    model, tokenizer, data = adapted("token_classification", "roberta", task_base, tmp_path)
    found = evaluate(model, tokenizer, data.train, data.row_format)
    for prediction, example in zip(found.predictions[:5], data.train.examples, strict=False):
        tagged = tag_words(model, tokenizer, [example.words])[0]
        assert tagged == list(zip(example.words, prediction.predicted.split(), strict=True))
    cut = tag_words(model, tokenizer, [["was", "in"] * 10], max_length=8)[0]
    assert cut[0][1] is not None
    assert cut[-1] == ("in", None)
    texts = [example.words for example in data.train.examples[:5]]
    assert tag_words(model, tokenizer, [*texts, []], batch_size=3) == [
        *(tag_words(model, tokenizer, [text])[0] for text in texts),
        [],
    ]
    assert tag_words(model, tokenizer, []) == []
    with pytest.raises(DataError, match="each a list of words; got the string 'was'"):
        tag_words(model, tokenizer, ["was", "in"])


@pytest.mark.parametrize(("architecture", "most"), [("bert", 160), ("roberta", 159), ("distilbert", 160)])
def test_examples_with_more_tokens_than_positions_are_refused(architecture, most, task_base, tmp_path):
    rows = [{"text": "a " * 300, "label": label} for label in ("x", "y")] * 4
    settings = {"validation_fraction": 0.0}
    for length, fits in ((most, True), (most + 1, False)):
        given = prepared(
            "sequence_classification", task_base(architecture), tmp_path, rows, max_length=length, **settings
        )
        if fits:
            assert evaluate(*given[:2], given[2].train, given[2].row_format).rows == 8
        else:
            with pytest.raises(DataError, match=f"set data.max_length to {most}"):
                evaluate(*given[:2], given[2].train, given[2].row_format)


def test_what_cannot_be_scored(task_base, tmp_path):
    model, tokenizer, data = prepared("sequence_classification", task_base("bert"), tmp_path)
    with pytest.raises(DataError, match="no examples"):
        evaluate(model, tokenizer, Split([], []), data.row_format)
    three = RowFormat("label", "{text}", "label", ("a", "b", "c"))
    with pytest.raises(DataError, match="has 2 labels and the examples have 3"):
        evaluate(model, tokenizer, data.train, three)
    tags = prepared("token_classification", task_base("bert"), tmp_path, tagged_rows())
    with pytest.raises(DataError, match=r"for sequence_classification and the examples were encoded for token_class"):
        evaluate(model, tokenizer, tags[2].train, tags[2].row_format)
    llama, own, rows = prepared("sequence_classification", task_base("llama"), tmp_path)
    with pytest.raises(DataError, match="has no tokens"):
        classify(llama, own, [rows.row_format.format_prompt("")])
