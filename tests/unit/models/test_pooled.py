"""Sequence classifiers with a linear head on pooled token states."""

import json
import pickle
from itertools import product

import pytest
import torch
import transformers as tf
from tiny_tasks import tiny_base

from peftly import LoRA, attach, load, load_adapter, load_base, save_adapter, trainable_parameters
from peftly.errors import AdapterError, BaseModelError
from peftly.exporting import export
from peftly.injection.targets import new_modules
from peftly.merging import save_merged
from peftly.models import classifier_layer, pooling_of, resolve_base, task_of, trained_pooling
from peftly.models.pooled import pool, pooled_class

LABELS = ("bad", "good", "so-so")
IDS = torch.tensor([[1, 20, 30, 40, 2], [1, 25, 35, 2, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*random")


def opened(folder, pooling="mean", **settings):
    task = "sequence_classification"
    return load_base(str(folder), dtype="float32", task=task, labels=LABELS, pooling=pooling, **settings).model


def logits(model, rows=slice(None)):
    with torch.no_grad():
        return model(IDS[rows], attention_mask=MASK[rows]).logits


def perturbed(model):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize(
    ("architecture", "pooling"),
    [*product(["bert", "roberta", "distilbert"], ["mean", "first"]), ("llama", "mean")],
)
def test_the_head_is_one_layer_on_the_pooled_states(architecture, pooling, task_base):
    model = opened(task_base(architecture), pooling)
    with torch.no_grad():
        states = model.base_model(IDS, attention_mask=MASK)[0]
        expected = [
            (states[row, :length].mean(0) if pooling == "mean" else states[row, 0]) @ model.pooled_head.weight.T
            for row, length in enumerate((5, 4))
        ]
    torch.testing.assert_close(logits(model), torch.stack(expected) + model.pooled_head.bias)
    torch.testing.assert_close(logits(model)[1:], model(IDS[1:, :4]).logits)  # padding changes nothing
    assert (task_of(model), pooling_of(model), new_modules(model)) == (
        "sequence_classification",
        pooling,
        ["pooled_head"],
    )
    assert not [name for name, _ in model.named_parameters() if "pooler" in name or "classifier" in name]


@pytest.mark.parametrize(
    "architecture", ["albert", "deberta-v2", "electra", "layoutlm", "modernbert", "mpnet", "opt", "squeezebert"]
)
def test_other_classes_have_such_a_head_too(architecture):
    sizes = {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 48, "vocab_size": 100}
    blocks = {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0}
    config = tf.AutoConfig.for_model(architecture, **sizes, **blocks, num_labels=3)
    plain = tf.AutoModelForSequenceClassification._model_mapping[type(config)]
    assert classifier_layer(plain(config)) is not None
    model = pooled_class(plain, "mean")(config).eval()
    assert classifier_layer(model)[0] == "pooled_head"
    torch.testing.assert_close(logits(model)[1:], model(IDS[1:, :4]).logits)


def test_padding_on_the_left_changes_nothing(task_base):
    model = opened(task_base("llama"))
    left = model(torch.tensor([[0, 1, 25, 35, 2]]), attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))
    torch.testing.assert_close(left.logits, model(torch.tensor([[1, 25, 35, 2]])).logits)
    states = torch.arange(8.0).reshape(1, 4, 2)
    assert pool(states, torch.tensor([[0, 1, 1, 1]]), "first").tolist() == [[2.0, 3.0]]


def test_a_pooled_model_is_saved_opened_and_pickled_with_its_class(task_base, tmp_path):
    model = opened(task_base("bert"), seed=4)
    model.save_pretrained(tmp_path)
    load_base(str(task_base("bert"))).tokenizer.save_pretrained(tmp_path)
    again = load_base(str(tmp_path), dtype="float32", task="sequence_classification", labels=LABELS).model
    assert not new_modules(again)
    for copy in (again, pickle.loads(pickle.dumps(model))):
        assert pooling_of(copy) == "mean"
        torch.testing.assert_close(logits(copy), logits(model))
    with pytest.raises(BaseModelError, match=r"has a head on pooling='mean', not on 'first'"):
        opened(tmp_path, "first")


def test_a_pooled_head_is_refused_where_it_cannot_learn(task_base):
    with pytest.raises(BaseModelError, match=r"pooling='mean' is for sequence_classification, not for token_class"):
        load_base(str(task_base("bert")), task="token_classification", labels=LABELS, pooling="mean")
    with pytest.raises(BaseModelError, match=r"no task was given; add task='sequence_classification'"):
        load_base(str(task_base("bert")), pooling="mean")
    with pytest.raises(BaseModelError, match="is a decoder, whose first token sees no other"):
        load_base(str(task_base("llama")), task="sequence_classification", labels=LABELS, pooling="first")


def test_an_adapter_with_a_pooled_head_opens_with_the_same_outputs(task_base, tmp_path):
    model = perturbed(attach(opened(task_base("bert"), seed=4), LoRA(rank=2)))
    save_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(load(tmp_path / "adapter", dtype="float32").model), logits(model))
    for pooling in (None, "first"):
        with pytest.raises(AdapterError, match=r"pooling='mean'.* open the adapter with peftly.load"):
            load_adapter(opened(task_base("bert"), pooling), tmp_path / "adapter")


def test_tools_that_lack_the_head_refuse_its_adapter(task_base, tmp_path):
    from peft import PeftConfig

    save_adapter(attach(opened(task_base("bert")), LoRA(rank=2)), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"Invalid task type: 'PEFTLY_MEAN_SEQ_CLS'"):
        PeftConfig.from_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"vLLM does not; train it with head: transformers$"):
        export(tmp_path / "adapter", "vllm", tmp_path / "exported")
    with pytest.raises(BaseModelError, match=r"MeanPooledBert.*Qwen3ForCausalLM can$"):
        export(tmp_path / "adapter", "gguf", tmp_path / "exported")
    assert "peftly export --to peft" in (tmp_path / "adapter" / "README.md").read_text()


def test_a_merged_pooled_classifier_opens_in_peftly(task_base, tmp_path):
    model = perturbed(attach(opened(task_base("bert"), seed=4), LoRA(rank=2)))
    save_adapter(model, tmp_path / "adapter")
    lines = []
    save_merged(tmp_path / "adapter", tmp_path / "merged", dtype="float32", log=lines.append)
    assert lines[-1] == f"{tmp_path / 'merged'}: float32, opens with peftly.load_base or --base only"
    merged = load_base(str(tmp_path / "merged"), dtype="float32").model
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    assert "peftly.load_base" in (tmp_path / "merged" / "README.md").read_text()


def test_adapters_that_share_a_new_head_open_with_the_same_outputs(task_base, tmp_path):
    """Each adds its change of the drawn head, which is drawn again from the same seed."""
    model = load_base(str(task_base("bert")), dtype="float32", task="sequence_classification", labels=LABELS, seed=5)
    attach(model.model, LoRA(rank=2), name="one")
    attach(model.model, LoRA(rank=2), name="other")
    save_adapter(perturbed(model.model), tmp_path)
    torch.testing.assert_close(logits(load(tmp_path, dtype="float32").model), logits(model.model))


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),  # both, one after the other
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls"}, "first"),
        ([], None),
        (None, None),
    ],
)
def test_the_pooling_of_the_training_is_read_from_the_files(settings, pooling, tmp_path):
    base = tiny_base("bert", tmp_path / "base")
    if settings is not None:
        (base / "1_Pooling").mkdir()
        (base / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert trained_pooling(resolve_base(str(base))) == pooling


def test_the_class_of_transformers_stays_without_a_pooling(task_base):
    model = opened(task_base("bert"), None)
    assert type(model) is tf.BertForSequenceClassification
    assert pooling_of(model) is None


def test_the_head_of_a_quantized_base_is_not_quantized(task_base, tmp_path):
    model = opened(task_base("bert"), quantization="nf4")
    assert type(model.pooled_head) is torch.nn.Linear
    save_adapter(perturbed(attach(model, LoRA(rank=2))), tmp_path / "adapter")
    torch.testing.assert_close(logits(load(tmp_path / "adapter", dtype="float32").model), logits(model))
