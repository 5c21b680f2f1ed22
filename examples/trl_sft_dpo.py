"""LoRA in TRL: supervised training on packed texts, then DPO from the trained adapter as its own reference.

Run it with `pip install '.[interop]'` and `python examples/trl_sft_dpo.py` (ten minutes on two CPU cores).
"""

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import peftly

TEXTS = [f"Question: what is {a} plus {b}? Answer: {a + b}." for a in range(2, 12) for b in range(2, 12)]
PAIRS = [
    {
        "prompt": f"Question: what is {a} plus {b}? Answer:",
        "chosen": f" {a + b}.",
        "rejected": f" I think it is {a + b}.",
    }
    for a in range(2, 7)
    for b in range(2, 7)
]


def main(folder: str = "runs/trl", steps: int = 40) -> dict[str, list[float]]:
    """Train twice and return the losses of each training."""
    model, tokenizer = peftly.load_base("smollm2-135m", dtype="float32")
    peftly.attach(model, peftly.LoRA(rank=8, dropout=0.05))
    common = {"max_steps": steps, "logging_steps": 1, "report_to": [], "bf16": False}
    sft = SFTTrainer(
        model,
        SFTConfig(f"{folder}/sft", packing=True, max_length=128, per_device_train_batch_size=2, **common),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
    )
    sft.train()
    dpo = DPOTrainer(
        model,
        # Without this setting TRL opens the base again and compares with it, not with the adapter trained so far.
        args=DPOConfig(f"{folder}/dpo", precompute_ref_log_probs=True, per_device_train_batch_size=2, **common),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tokenizer,
    )
    dpo.train()
    trainers = {"sft": sft, "dpo": dpo}
    return {name: [x["loss"] for x in each.state.log_history if "loss" in x] for name, each in trainers.items()}


if __name__ == "__main__":
    print(main())
