import math
import weakref

import pytest
import torch
from label_data import EVALUATE, LABELS, PROMPTS, IdTokenizer, label_split
from tiny import ARCHITECTURES, VOCABULARY, WINDOW, perturb, random_token_ids, tiny_model

from peftly import LoRA, PromptTuning, attach, trainable_parameters
from peftly.data import EncodedExample, Example, RowFormat, Split
from peftly.errors import DataError
from peftly.evaluation.evaluate import evaluate
from peftly.evaluation.metrics import evaluate_tokens
from peftly.inference import labelled_logits
from peftly.inference.label_scoring import score_labels


def logits_alone(model, ids: list[int]) -> torch.Tensor:
    """Reference: logits of one unpadded text, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].double()


def log_probability(model, prompt: list[int], completion: list[int]) -> tuple[float, int]:
    logits = logits_alone(model, prompt + completion)[len(prompt) - 1 : -1]
    targets = torch.tensor(completion)
    hits = int((logits.argmax(-1) == targets).sum())
    return logits.log_softmax(-1).gather(1, targets[:, None]).sum().item(), hits


def prepared(name: str, method: str):
    """A tiny model; gemma's narrow window, absolute positions and alibi find mistakes with padding."""
    model = tiny_model(name)
    if method != "none":
        config = LoRA(rank=2) if method == "lora" else PromptTuning(num_virtual_tokens=3, init="random")
        perturb(trainable_parameters(attach(model, config)).values())
    return model, 1e-10 if model.dtype == torch.float64 and method == "none" else 1e-5


@pytest.mark.parametrize("method", ["none", "prompt_tuning", "lora"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_label_scores_equal_one_full_forward_per_text(name, method, monkeypatch):
    model, bound = prepared(name, method)
    labels = list(LABELS.values())
    expected = [[log_probability(model, prompt, label) for label in labels] for prompt in PROMPTS]
    for branches in (128, 2 * len(PROMPTS)):  # all labels in one pass; two in a pass, each from its own copy
        monkeypatch.setattr("peftly.inference.label_scoring._BRANCHES", branches)
        with torch.no_grad():
            scores, hits = score_labels(model, PROMPTS, labels, pad_id=0)
        for row, wanted in enumerate(expected):
            for column, (score, hit) in enumerate(wanted):
                assert scores[row, column].item() == pytest.approx(score, rel=bound)
                assert hits[row, column] == hit


@pytest.fixture
def known_labels(monkeypatch):
    monkeypatch.setattr(EVALUATE, "label_ids", lambda shape, tokenizer: LABELS)


@pytest.mark.usefixtures("known_labels")
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_examples_with_labels(batch_size):
    model = tiny_model("llama")
    split, shape = label_split()
    result = evaluate(model, IdTokenizer(), split, shape, batch_size=batch_size)
    names, golds = list(LABELS), [example.label for example in split.examples]
    wanted = [[log_probability(model, prompt, ids) for ids in LABELS.values()] for prompt in PROMPTS]
    own = [row[names.index(gold)] for row, gold in zip(wanted, golds, strict=True)]
    tokens = sum(sum(encoded.trained) for encoded in split.encoded)
    assert (result.rows, result.tokens, result.labels) == (len(PROMPTS), tokens, tuple(names))
    assert result.loss == pytest.approx(-sum(score for score, _ in own) / tokens, rel=1e-10)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert result.token_accuracy == pytest.approx(sum(hits for _, hits in own) / tokens)

    guesses = [names[max(range(len(row)), key=lambda index, row=row: row[index][0])] for row in wanted]
    assert [prediction.predicted for prediction in result.predictions] == guesses
    assert [prediction.prompt for prediction in result.predictions] == [f"row {n}" for n in range(len(PROMPTS))]
    assert [prediction.label for prediction in result.predictions] == golds
    assert result.accuracy == sum(map(str.__eq__, golds, guesses)) / len(golds)
    for i, own_label in enumerate(names):
        for j, taken in enumerate(names):
            assert result.confusion[i][j] == list(zip(golds, guesses, strict=True)).count((own_label, taken))
    for prediction, row in zip(result.predictions, wanted, strict=True):
        assert list(prediction.log_probabilities) == names
        assert list(prediction.log_probabilities.values()) == pytest.approx([score for score, _ in row], rel=1e-10)


@pytest.mark.usefixtures("known_labels")
def test_loss_over_labels_is_the_loss_of_the_completions():
    model = tiny_model("qwen3")
    split, shape = label_split()
    by_label = evaluate(model, IdTokenizer(), split, shape)
    as_text = evaluate(model, IdTokenizer(), split, RowFormat("completion", "{text} is", "label"))
    assert as_text.accuracy is as_text.macro_f1 is as_text.confusion is None
    for name in ("rows", "tokens", "loss", "perplexity", "token_accuracy"):
        assert getattr(as_text, name) == pytest.approx(getattr(by_label, name), rel=1e-10)


@pytest.mark.usefixtures("known_labels")
def test_each_prompt_goes_through_the_model_once():
    model, (split, shape) = tiny_model("llama"), label_split()
    seen = []
    probe = model.register_forward_pre_hook(
        lambda _model, _args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    evaluate(model, IdTokenizer(), split, shape)
    probe.remove()
    assert seen == [(5, 2 * WINDOW + 1), (5 * 4, 3)]


@pytest.mark.usefixtures("known_labels")
def test_macro_f1_by_hand(monkeypatch):
    split, shape = label_split()
    taken = ["no", "no", "maybe", "no", "yes, of course"]
    scores = torch.eye(5, dtype=torch.double)[[list(LABELS).index(label) for label in taken]]
    monkeypatch.setattr(EVALUATE, "score_labels", lambda *_args, **_kwargs: (scores, torch.zeros(5, 5)))
    # In one batch the longest prompt comes first, then in the order of the split.
    order = sorted(range(5), key=lambda row: -len(PROMPTS[row]))
    result = evaluate(tiny_model("llama"), IdTokenizer(), split, shape)
    assert [result.predictions[row].predicted for row in order] == taken
    own = [split.examples[row].label for row in order]
    assert own == ["yes, of course", "no", "yes, of course", "no", "no"]
    # no: 2 right of 3 taken and 3 own; yes: 0 right; maybe: never own. The labels that do not occur do not count.
    assert result.macro_f1 == pytest.approx((2 * 2 / 6 + 0 + 0) / 3)
    assert result.accuracy == 2 / 5


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_examples_without_labels(name):
    model, bound = prepared(name, "none")
    rows = random_token_ids([4, 12, 8], seed=5)
    starts = [2, 7, 1]
    encoded = [
        EncodedExample(row, [position >= start for position in range(len(row))], 0)
        for row, start in zip(rows, starts, strict=True)
    ]
    split = Split([Example(prompt="x", completion="y")] * 3, encoded)
    result = evaluate(model, IdTokenizer(), split, RowFormat("completion", "{prompt}", "completion"), batch_size=2)
    own = [log_probability(model, row[:start], row[start:]) for row, start in zip(rows, starts, strict=True)]
    tokens = sum(len(row) - start for row, start in zip(rows, starts, strict=True))
    assert result.tokens == tokens
    assert result.loss == pytest.approx(-sum(score for score, _ in own) / tokens, rel=bound)
    assert result.token_accuracy == pytest.approx(sum(hits for _, hits in own) / tokens)


@pytest.mark.usefixtures("known_labels")
def test_the_model_is_left_as_it_was():
    model, (split, shape) = tiny_model("llama").train(), label_split()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, IdTokenizer(), split, shape)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.usefixtures("known_labels")
def test_what_cannot_be_scored():
    model, (split, shape) = tiny_model("llama"), label_split()
    with pytest.raises(DataError, match="no examples"):
        evaluate(model, IdTokenizer(), Split([], []), shape)
    strange = Split([Example(prompt="p", completion=" c", label="perhaps")], split.encoded[:1])
    with pytest.raises(DataError, match=r"'perhaps'; the labels are 'no', "):
        evaluate(model, IdTokenizer(), strange, shape)


def test_a_perplexity_that_overflows_is_infinite():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    split = Split(
        [Example(prompt="x", completion="y")], [EncodedExample([3, VOCABULARY - 1, 5], [False, True, True], 0)]
    )
    result = evaluate(model, IdTokenizer(), split, RowFormat("completion", "{prompt}", "completion"))
    assert result.loss > 700
    assert result.perplexity == math.inf


def test_the_logits_of_a_batch_are_freed_before_the_next_one():
    """Two batches of them were in memory at once: 0.8 GB each for 32 texts of 128 tokens and 49,152 logits."""
    model, _ = prepared("llama", "none")
    texts = [EncodedExample(ids, [True] * len(ids)) for ids in random_token_ids([5, 6, 7, 8])]
    split = Split([Example("a", "b")] * 4, texts)
    earlier: list[weakref.ref] = []

    def logits_of(model, batch):
        assert all(logits() is None for logits in earlier)
        logits, targets = labelled_logits(model, batch)
        earlier.append(weakref.ref(logits))
        return logits, targets

    with torch.no_grad():
        found = evaluate_tokens(model, IdTokenizer(), split, 1, logits_of)
    assert len(earlier) == 4
    assert found.tokens == 22
