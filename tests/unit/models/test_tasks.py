"""Choice of a task for a base and data, and the head that a base gets for a task."""

import shutil

import pytest
import torch
import transformers as tf
from tiny import tiny_config
from tiny_tasks import DECODERS, ENCODER_DECODERS, ENCODERS, tiny_base

from peftly import BitFit, Full, LoRA, attach, load, load_base, save_adapter, trainable_parameters
from peftly.errors import BaseModelError, ConfigError
from peftly.injection.targets import new_modules
from peftly.models.base_spec import base_config
from peftly.models.tasks import TASKS, choose_task, labels_of, task_of, task_of_peft

pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")  # masked language models have no pooler
LABELS = ("bad", "good", "so-so")


def config_of(architecture: str):
    return tf.AutoConfig.for_model(architecture)


@pytest.mark.parametrize(
    ("architectures", "rows", "task"),
    [
        (ENCODERS, "labels", "sequence_classification"),
        (ENCODERS, "tags", "token_classification"),
        (ENCODER_DECODERS, "labels", "seq2seq_lm"),
        (ENCODER_DECODERS, "texts", "seq2seq_lm"),
        ((*DECODERS, "bloom", "opt", "qwen3"), "labels", "causal_lm"),
        (DECODERS, "texts", "causal_lm"),
    ],
)
def test_the_task_that_fits_is_chosen_with_a_reason(architectures, rows, task):
    for architecture in architectures:
        found, reason = choose_task(None, config_of(architecture), rows, "some/base")
        assert found == task, architecture
        assert "some/base is a" in reason
        assert architecture in reason


def test_a_decoder_may_be_asked_for_classification():
    assert choose_task("sequence_classification", config_of("llama"), "labels", "x") == (
        "sequence_classification",
        "as asked",
    )
    assert choose_task("causal_lm", None, "labels", "x.gguf")[0] == "causal_lm"


@pytest.mark.parametrize(
    ("asked", "architecture", "rows", "words"),
    [
        ("causal_lm", "bert", "labels", ["causal_lm", "encoder (bert)", "sequence_classification"]),
        ("seq2seq_lm", "roberta", "texts", ["encoder (roberta)", "token_classification"]),
        ("sequence_classification", "t5", "labels", ["encoder-decoder (t5)", "seq2seq_lm"]),
        ("seq2seq_lm", "llama", "texts", ["decoder (llama)", "causal_lm"]),
        ("token_classification", "bert", "labels", ["needs rows with tags", "labels", "sequence_classification"]),
        ("sequence_classification", "bert", "tags", ["needs rows with labels", "token_classification"]),
        ("token_classification", "opt", "tags", ["opt", "causal_lm"]),  # transformers has no such class
        ("causal_lm", "llama", "tags", ["needs rows with texts or labels", "token_classification"]),
        (None, "bert", "texts", ["encoder (bert)", "hold texts", "labels (text + label)", "tags (tokens + tags)"]),
        (None, "t5", "tags", ["encoder-decoder (t5)", "hold tags", "seq2seq_lm"]),
        (None, "llama", "tags", ["decoder (llama)", "hold tags", "--task token_classification"]),
    ],
)
def test_an_impossible_task_is_refused_with_the_possible_ones(asked, architecture, rows, words):
    with pytest.raises(ConfigError) as error:
        choose_task(asked, config_of(architecture), rows, "some/base")
    for word in words:
        assert word in str(error.value), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        *(("sequence_classification", name) for name in (*ENCODERS, *DECODERS)),
        *(("token_classification", name) for name in ENCODERS),
        *(("seq2seq_lm", name) for name in ENCODER_DECODERS),
        *(("causal_lm", name) for name in DECODERS),
    ],
)
def test_a_base_is_opened_for_its_task(task, architecture, task_base):
    classifies = TASKS[task].is_classification
    model, tokenizer = load_base(str(task_base(architecture)), task=task, labels=LABELS if classifies else ())
    assert task_of(model) == task
    assert task_of_peft(TASKS[task].peft_type) == task
    if classifies:
        assert tuple(labels_of(model)) == LABELS
        assert model.config.num_labels == 3
        assert model.config.label2id == {label: number for number, label in enumerate(LABELS)}
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert new_modules(model), "the head is new"
    else:
        assert not new_modules(model)


def test_a_bare_model_has_no_task():
    assert task_of(tf.AutoModel.from_config(config_of_tiny())) is None
    assert task_of(torch.nn.Linear(2, 2)) is None


def config_of_tiny():
    return tiny_config("llama")


def head_of(folder, **settings):
    model, _ = load_base(str(folder), dtype="float32", task="sequence_classification", **settings)
    return model.classifier.weight.detach()


def test_a_new_head_comes_from_its_seed_alone(task_base, recwarn):
    folder = task_base("bert")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = head_of(folder, labels=LABELS, seed=1)
    assert torch.equal(torch.rand(3), expected), "the global generator was left alone"
    torch.manual_seed(8)
    assert torch.equal(head_of(folder, labels=LABELS, seed=1), first)
    assert not torch.equal(head_of(folder, labels=LABELS, seed=2), first)
    assert first.std() > 0.01


def test_a_new_head_is_no_warning(task_base, capfd, recwarn):
    folder = str(task_base("roberta"))
    capfd.readouterr()  # of writing the base
    load_base(folder, task="sequence_classification", labels=LABELS)
    assert capfd.readouterr() == ("", "")
    assert not [warning for warning in recwarn if "random" in str(warning.message)]


def test_missing_weights_outside_the_head_are_reported(task_base):
    with pytest.warns(UserWarning, match=r"bert\.pooler\.dense.*random"):
        load_base(str(task_base("bert")), task="sequence_classification", labels=LABELS)


@pytest.fixture
def classifier(tmp_path):
    """A base with a head for three labels."""
    folder = tiny_base("bert", tmp_path / "bert")
    model, tokenizer = load_base(str(folder), dtype="float32", task="sequence_classification", labels=LABELS, seed=4)
    model.save_pretrained(tmp_path / "classifier")
    tokenizer.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier", model.classifier.weight.detach()


def test_a_head_for_the_same_labels_stays(classifier):
    folder, own = classifier
    assert torch.equal(head_of(folder, labels=LABELS, seed=9), own)
    assert torch.equal(head_of(folder), own), "without labels it stays too"
    assert not new_modules(load_base(str(folder), task="sequence_classification", labels=LABELS).model)


@pytest.mark.parametrize("labels", [("x", "y", "z"), ("good", "bad", "so-so"), ("x", "y")])
def test_a_head_for_other_labels_is_replaced_by_a_new_one(classifier, labels):
    folder, own = classifier
    head = head_of(folder, labels=labels, seed=9)
    assert head.shape[0] == len(labels)
    assert not torch.equal(head, own[: len(labels)])
    assert torch.equal(head_of(folder, labels=labels, seed=9), head)
    model, _ = load_base(str(folder), task="sequence_classification", labels=labels)
    assert new_modules(model) == ["classifier"]
    assert tuple(labels_of(model)) == labels


@pytest.mark.parametrize("method", [LoRA(rank=2), BitFit(), Full()], ids=lambda method: method.name)
def test_new_weights_outside_the_head_are_saved_with_the_adapter(method, task_base, tmp_path):
    """Otherwise they would be drawn again, with other values, when the adapter is loaded."""
    base = load_base(str(task_base("bert")), dtype="float32", task="sequence_classification", labels=LABELS, seed=3)
    assert new_modules(base.model) == ["bert.pooler.dense", "classifier"]
    attach(base.model, method)
    lora = [name for name in trainable_parameters(base.model) if "pooler" in name and "copy" not in name]
    assert lora == [], "the pooler is trained as a whole"
    with torch.no_grad():
        for parameter in trainable_parameters(base.model).values():
            parameter.add_(0.1)
    save_adapter(base.model, tmp_path / "adapter")
    again = load(tmp_path / "adapter", dtype="float32").model
    ids = torch.tensor([[1, 20, 30, 40, 2]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, base.model(ids).logits)


def test_a_gguf_file_opens_for_causal_lm_only(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert base_config(str(file)) is None
    with pytest.raises(BaseModelError, match=r"GGUF file, which opens for causal_lm only: sequence_classification"):
        load_base(str(file), task="sequence_classification")


def test_the_config_of_a_base_needs_no_weights(task_base, tmp_path):
    folder = shutil.copytree(task_base("t5"), tmp_path / "t5")
    (folder / "model.safetensors").write_bytes(b"")
    assert base_config(str(folder)).is_encoder_decoder
    with pytest.raises(BaseModelError, match=r"has no config\.json"):
        base_config(str(tmp_path))


def test_attach_alone_trains_the_head(task_base):
    model, _ = load_base(str(task_base("roberta")), task="token_classification", labels=LABELS)
    attach(model, LoRA(rank=2))
    assert any(name.startswith("classifier.") for name in trainable_parameters(model))


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_that_classifies_gets_the_pad_token(architecture, tmp_path):
    folder = tiny_base(architecture, tmp_path / "base", pad_token_id=None)
    assert base_config(str(folder)).pad_token_id is None
    model, tokenizer = load_base(str(folder), dtype="float32", task="sequence_classification", labels=LABELS)
    assert model.config.pad_token_id == tokenizer.pad_token_id == 0
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[1:], model(ids[1:, :2]).logits)
