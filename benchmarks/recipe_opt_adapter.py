"""A published OPT adapter: a stand-in with pickled weights, opened, merged and written, beside PEFT."""

import json
from pathlib import Path
from typing import Any

from recipes import example

BASE = "a random OPT of two layers"
BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "changed": (0.01, None),
    "logits": (None, 1e-6),
    "written": (None, 1e-6),
    "merged": (None, 1e-5),
    "same_text": (1, 1),
}
TEXTS = (
    "Two things are infinite: the sea and the sky.",
    "Bread first, then the stars.",
    "Count the bricks as you lay.",
)


def write_stand_in(folder: Path) -> None:
    """Write a tiny OPT, `opt-350m`, and an adapter of it, `opt-350m-lora`, both with pickled weights as of 2023."""
    import torch
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "</s>"]
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    ends = {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>"}
    wrapped = tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)
    config = tf.OPTConfig(
        vocab_size=len(wrapped),
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        dropout=0.0,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tf.OPTForCausalLM(config)
        settings = {
            "base_model_name_or_path": "opt-350m",
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": 32,
            "lora_dropout": 0.05,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": 16,
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
        }
        start = "base_model.model.model.decoder.layers"
        adapter = {
            f"{start}.{layer}.self_attn.{name}.lora_{letter}.weight": 0.1 * torch.randn(shape)
            for layer in range(2)
            for name in settings["target_modules"]
            for letter, shape in (("A", (16, 64)), ("B", (64, 16)))
        }
    base = folder / "opt-350m"
    wrapped.save_pretrained(base)
    config.architectures = ["OPTForCausalLM"]
    config.save_pretrained(base)
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    (folder / "opt-350m-lora").mkdir()
    (folder / "opt-350m-lora" / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    torch.save(adapter, folder / "opt-350m-lora" / "adapter_model.bin")


def measure(folder: Path) -> dict[str, Any]:
    """Run the script on the stand-in, and compare the logits of what it writes with those of PEFT."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import peftly

    write_stand_in(folder)
    module = example("opt_adapter")
    module.ADAPTER, module.BASE = str(folder / "opt-350m-lora"), str(folder / "opt-350m")
    texts = module.main(str(folder / "run"))
    inputs = AutoTokenizer.from_pretrained(module.BASE)(list(TEXTS), return_tensors="pt", padding=True)
    seen = inputs["attention_mask"].bool()

    @torch.no_grad()
    def logits(model: Any) -> torch.Tensor:
        found: torch.Tensor = model.eval()(**inputs).logits[seen]
        return found

    def difference(model: Any) -> float:
        return float((logits(model) - expected).norm() / expected.norm())

    def in_peft(adapter: str | Path) -> Any:
        return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(module.BASE), adapter)

    expected = logits(in_peft(module.ADAPTER))
    base = peftly.load_base(module.BASE, allow_pickle=True, dtype="float32").model
    return {
        "changed": difference(base),
        "logits": difference(peftly.load_adapter(base, folder / "run" / "adapter")),
        "written": difference(in_peft(folder / "run" / "peft")),
        "merged": difference(AutoModelForCausalLM.from_pretrained(folder / "run" / "merged")),
        "same_text": texts["merged"] == texts["with the adapter"],
    }


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the table of the page."""
    result = content["result"]
    lines = ["| opened | relative difference from PEFT's logits |", "|---|---|"]
    for key, title in (
        ("changed", "the base alone"),
        ("logits", "the converted adapter, in peftly"),
        ("written", "the adapter that `save_adapter` wrote, in PEFT"),
        ("merged", "the merged model, in plain transformers"),
    ):
        lines.append(f"| {title} | {f'{result[key]:.1e}' if result[key] else '0'} |")
    return {"opt": "\n".join(lines)}
