"""Classifiers with a pooled head in Hugging Face PEFT: the code in the card computes the same scores."""

import re

import pytest
import torch

from peftly import IA3, DoRA, LoRA, PromptTuning, attach, export, load_base, save_adapter, trainable_parameters
from peftly.errors import AdapterError

LABELS = ("bad", "good", "so-so")
CASES = [
    ("bert", "mean", LoRA(rank=3)),
    ("bert", "first", IA3()),
    ("distilbert", "mean", DoRA(rank=2)),
    ("roberta", "mean", LoRA(rank=2, target_modules=("roberta.encoder.layer.0.attention.self.query", "output.dense"))),
    ("llama", "mean", LoRA(rank=2, rank_pattern={"q_proj": 3})),
    ("bert", "mean", LoRA(rank=2, target_modules=r".*\.query")),
]


def adapted(folder, pooling, config):
    base = load_base(
        str(folder), dtype="float32", task="sequence_classification", labels=LABELS, pooling=pooling, seed=3
    )
    attach(base.model, config, tokenizer=base.tokenizer)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable_parameters(base.model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return base


@pytest.mark.parametrize(("architecture", "pooling", "config"), CASES)
def test_the_card_computes_the_scores(architecture, pooling, config, task_base, tmp_path, monkeypatch):
    model, tokenizer = adapted(task_base(architecture), pooling, config)
    save_adapter(model, tmp_path / "adapter")
    notes = export(tmp_path / "adapter", "peft", tmp_path / "out").notes
    assert any("head.safetensors" in note for note in notes)
    code = re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path / "out")
    names: dict = {}
    with torch.no_grad():
        exec(code.replace('["a text"]', '["late again", "great service thanks"]'), names)
        inputs = tokenizer(["late again", "great service thanks"], return_tensors="pt", padding=True)
        expected = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).logits
    torch.testing.assert_close(names["scores"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config", [PromptTuning(num_virtual_tokens=2), LoRA(modules_to_save=("pooled_head", "0.output"))]
)
def test_other_adapters_are_refused(config, task_base, tmp_path):
    model, _ = adapted(task_base("bert"), "mean", config)
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match=r"pooled token states .* head: transformers"):
        export(tmp_path / "adapter", "peft", tmp_path / "out")
