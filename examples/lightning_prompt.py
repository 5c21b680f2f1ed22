"""Prompt tuning in Lightning: the optimizer gets the trainable parameters, everything else is Lightning as usual.

Run it with `pip install '.[interop]'` and `python examples/lightning_prompt.py` (two minutes on two CPU cores).
"""

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import peftly

ROWS = [f"Question: what is {a} plus {b}? Answer: {a + b}." for a in range(2, 10) for b in range(2, 10)]


class Prompt(lightning.LightningModule):
    """A base with a soft prompt, which is trained on texts."""

    def __init__(self) -> None:
        """Open the base and attach the prompt."""
        super().__init__()
        self.base, self.tokenizer = peftly.load_base("smollm2-135m", dtype="float32")
        peftly.attach(self.base, peftly.PromptTuning(num_virtual_tokens=8), tokenizer=self.tokenizer)

    def training_step(self, texts: list[str], index: int) -> Tensor:
        """Return the loss of a batch of texts."""
        batch = self.tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss: Tensor = self.base(**batch, labels=labels).loss
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer of the prompt alone."""
        return torch.optim.AdamW(peftly.trainable_parameters(self.base).values(), lr=0.03)


def main(folder: str = "runs/lightning", steps: int = 30) -> float:
    """Train, save the prompt, and return the last loss."""
    module = Prompt()
    trainer = lightning.Trainer(max_steps=steps, logger=False, enable_checkpointing=False, accelerator="auto")
    trainer.fit(module, DataLoader(ROWS, batch_size=4))
    peftly.save_adapter(module.base, f"{folder}/adapter")
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    print(main())
