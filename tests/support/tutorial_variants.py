"""What the other chapters of a tutorial change in its script: the configuration."""

import re

VARIANTS = {
    "chinese_alpaca": {
        "random": "PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10)",
        "p_tuning": "PromptEncoderConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10,"
        " encoder_reparameterization_type=PromptEncoderReparameterizationType.MLP, encoder_hidden_size=64)",
        "p_tuning_lstm": "PromptEncoderConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10,"
        " encoder_reparameterization_type=PromptEncoderReparameterizationType.LSTM, encoder_dropout=0.0,"
        " encoder_num_layers=2, encoder_hidden_size=64)",
        "prefix": "PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10)",
        "prefix_projection": "PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=10,"
        " prefix_projection=True)",
        "lora": "LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=r'.*\\.1.*query_key_value',"
        " modules_to_save=['word_embeddings'])",
        "lora_default": "LoraConfig(task_type=TaskType.CAUSAL_LM)",
        "ia3": "IA3Config(task_type=TaskType.CAUSAL_LM)",
        "ia3_targets": "IA3Config(task_type=TaskType.CAUSAL_LM, target_modules=['query_key_value', 'dense_4h_to_h'],"
        " feedforward_modules=['dense_4h_to_h'])",
    },
    "film_reviews": {
        "p_tuning": "PromptEncoderConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=6, encoder_hidden_size=16)",
        "prefix": "PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=6)",
    },
}
"""Configurations by script and name."""
VARIANTS["chinese_continue"] = VARIANTS["chinese_alpaca"]


def with_config(source: str, config: str) -> str:
    """Return a script with another configuration, and an import of the classes that this one names."""
    classes = re.findall(r"\b[A-Z][A-Za-z0-9]*(?:Config|Type)\b", config)
    source, changed = re.subn(r"(?ms)^config = \w+\(.*?\)$", lambda _match: f"config = {config}", source, count=1)
    assert changed
    names = re.search(r"^from peft import (.*)$", source, re.MULTILINE)
    kept = [name for name in names[1].split(", ") if re.search(rf"\b{name}\b", source.replace(names[0], ""))]
    return source.replace(names[0], "from peft import " + ", ".join(dict.fromkeys(kept + classes)))
