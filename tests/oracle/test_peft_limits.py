"""Adapters on bases where PEFT changes other layers than its file says: written so that it does not, or refused."""

import copy
import json

import peft
import pytest
import torch
import transformers
from references import assert_close
from tiny import VOCABULARY, perturb, random_token_ids

from peftly import DoRA, LoRA, PrefixTuning, PromptTuning, attach, export, load_adapter, save_adapter
from peftly import trainable_parameters as trained
from peftly.errors import AdapterError

IDS = torch.tensor(random_token_ids([9]))
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}
EXPERTS = {
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "qwen3_moe": {"num_experts": 4, "mlp_only_layers": [0], "head_dim": 8},
    "glm4_moe": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 8},
}
PATTERNS = {
    "rank_pattern": {"q_proj": 2, r"layers\.0\..*up_proj": 7, "down_proj": 3},
    "alpha_pattern": {"o_proj|up_proj": 3, "mlp.gate_proj": 40},
}


def model_of(architecture, task="CausalLM", **settings):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(architecture, **SMALL | EXPERTS.get(architecture, {}) | settings)
    return getattr(transformers, f"AutoModelFor{task}").from_config(config).eval()


def saved(base, config, folder):
    """Save a changed adapter, and return the model with it."""
    model = attach(copy.deepcopy(base), config)
    perturb(trained(model).values(), seed=3)
    save_adapter(model, folder)
    return model


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    "config",
    [
        LoRA(rank=4, alpha=6, dropout=0.1),
        LoRA(rank=4, rslora=True, target_modules=("o_proj", "gate_proj", "up_proj", "down_proj"), **PATTERNS),
        LoRA(rank=3, init="pissa", target_modules=("layers.0.mlp.down_proj",)),
    ],
    ids=["all linear layers", "ranks and alphas", "one layer, pissa"],
)
@pytest.mark.parametrize("architecture", EXPERTS)
def test_layers_with_the_names_of_experts(architecture, config, tmp_path):
    base = model_of(architecture)
    expected = logits(saved(base, config, tmp_path / "ours"))
    export(tmp_path / "ours", "peft", tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
        assert_close(logits(theirs), expected)
        assert_close(logits(load_adapter(copy.deepcopy(base), folder)), expected)
    again = load_adapter(copy.deepcopy(base), tmp_path / "ours")
    assert again._peftly.adapters["default"].config.dropout == config.dropout
    theirs.save_pretrained(tmp_path / "again")
    assert_close(logits(load_adapter(copy.deepcopy(base), tmp_path / "again")), expected)


def test_other_architectures_keep_the_names_of_modules(tmp_path):
    saved(model_of("llama"), LoRA(rank=2), tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "gate_proj" in written["target_modules"]
    assert "target_parameters" not in written


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2)

    def forward(self, states):
        return self.attention(states, states, states)[0]


def limits():
    """Yield a base, settings, and words of the reason why PEFT computes otherwise."""
    fused = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16), 1, enable_nested_tensor=False)
    yield (
        "attention of torch",
        Attention,
        LoRA(rank=2, target_modules=("out_proj",)),
        "weight of attention.out",
    )
    yield (
        "fused encoder",
        lambda: fused,
        LoRA(rank=2, target_modules=("linear1",)),
        "weight of layers.0.linear1",
    )
    mamba = {"state_size": 4, "num_hidden_layers": 1, "intermediate_size": 64, "time_step_rank": 4}
    yield "mamba", lambda: model_of("mamba", **mamba), LoRA(rank=2, target_modules=("dt_proj",)), "dt_proj instead"
    laguna = {"num_experts": 4, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    yield "renamed", lambda: model_of("laguna", **laguna), LoRA(rank=2), "under other names"
    yield "dora", lambda: model_of("qwen3_moe"), DoRA(rank=2), "for stacked experts"
    bert = {"max_position_embeddings": 32, "num_key_value_heads": 4}
    masked = lambda: model_of("bert", "MaskedLM", **bert)  # noqa: E731
    dpr = {"max_position_embeddings": 32, "num_key_value_heads": 4}
    encoder = lambda: transformers.DPRQuestionEncoder(transformers.DPRConfig(**SMALL | dpr)).eval()  # noqa: E731
    yield (
        "prefix of a wrapped body",
        encoder,
        PrefixTuning(num_virtual_tokens=2, init="random"),
        "leaves the prefix out",
    )
    yield "prompt", masked, PromptTuning(num_virtual_tokens=2, init="random", position="front"), "PEFT has no task"
    sentences = lambda: model_of("bert", "NextSentencePrediction", **bert)  # noqa: E731
    yield "prefix", sentences, PrefixTuning(num_virtual_tokens=2, init="random"), "PEFT has no task"


@pytest.mark.parametrize(("base", "config", "reason"), [pytest.param(*case, id=name) for name, *case in limits()])
def test_what_peft_computes_otherwise_is_not_exported(base, config, reason, tmp_path):
    base = base()
    if "no task" in reason:
        saved(base, config, tmp_path / "ours")
    else:
        with pytest.warns(match=reason):
            saved(base, config, tmp_path / "ours")
    with pytest.raises(AdapterError, match=reason) as error:
        export(tmp_path / "ours", "peft", tmp_path / "theirs")
    assert "\n" not in str(error.value)
    load_adapter(copy.deepcopy(base), tmp_path / "ours")


@pytest.mark.parametrize("config", [PromptTuning, PrefixTuning])
def test_peft_refuses_a_prompt_that_it_would_leave_out(config, tmp_path):
    settings = {"position": "front"} if config is PromptTuning else {}
    base = model_of("bert", "MaskedLM", max_position_embeddings=32, num_key_value_heads=4)
    expected = logits(saved(base, config(num_virtual_tokens=2, init="random", **settings), tmp_path))
    with pytest.raises(Exception, match="PEFTLY"):
        peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert torch.equal(logits(load_adapter(copy.deepcopy(base), tmp_path)), expected)


def test_the_card_names_the_reason(tmp_path):
    with pytest.warns(match="saved for peftly only"):
        saved(Attention(), LoRA(rank=2, target_modules=("out_proj",)), tmp_path)
    assert "not with PEFT: the model reads the weight" in (tmp_path / "README.md").read_text()
