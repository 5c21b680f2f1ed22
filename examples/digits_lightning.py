"""LoRA in Lightning: a network that knows the digits 0 to 4 learns 5 to 9, with the usual tools of Lightning.

These are a CSV logger, the learning rate finder and early stopping. A small callback keeps the best adapter, since
early stopping leaves the last weights in the model. Run it with `pip install 'peftly[interop]'` and
`python examples/digits_lightning.py` (a minute on a CPU).
"""

import copy
import csv
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import peftly


class Classifier(lightning.LightningModule):
    """A classifier of images, of which the trainable parameters are trained."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        """Keep the model, and the rate that the finder will change."""
        super().__init__()
        self.model, self.learning_rate = model, learning_rate

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Log the loss and the accuracy of a batch."""
        logits = self.model(batch[0])
        self.log("validation_loss", nn.functional.cross_entropy(logits, batch[1]))
        self.log("validation_accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer of the adapter, or of the whole model before it has one."""
        return torch.optim.AdamW(peftly.trainable_parameters(self.model).values(), lr=self.learning_rate)


class KeepBest(Callback):
    """Save the adapter after each epoch with a lower validation loss."""

    def __init__(self, folder: str) -> None:
        """Start without a best loss."""
        self.folder, self.loss = folder, float("inf")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save the adapter if it is the best one so far."""
        loss = float(trainer.callback_metrics["validation_loss"])
        if loss < self.loss and not trainer.sanity_checking:
            self.loss = loss
            peftly.save_adapter(pl_module.model, self.folder)


def main(folder: str = "runs/digits", max_epochs: int = 200) -> dict[str, float]:
    """Train the base on 0 to 4 and LoRA on 5 to 9; return accuracies on test images."""
    torch.set_num_threads(1)
    lightning.seed_everything(0)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    part = torch.bucketize(torch.arange(len(x)), torch.tensor([999, 1199]))  # 0: training, 1: validation, 2: test

    def rows(number: int, low: bool) -> DataLoader[Any]:
        chosen = (part == number) & ((y < 5) == low)
        return DataLoader(TensorDataset(x[chosen], y[chosen]), batch_size=64, shuffle=number == 0)

    def accuracy(model: nn.Module, low: bool) -> float:
        data: Any = rows(2, low).dataset
        with torch.no_grad():
            return float((model(data.tensors[0]).argmax(1) == data.tensors[1]).float().mean())

    common: dict[str, Any] = {"accelerator": "cpu", "default_root_dir": folder, "enable_checkpointing": False}
    common |= {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    module = Classifier(network, learning_rate=1e-3)
    lightning.Trainer(max_epochs=20, logger=False, **common).fit(module, rows(0, low=True))
    base = copy.deepcopy(network)

    peftly.attach(network, peftly.LoRA(rank=4, alpha=8))
    found: dict[str, float] = {"0-4, base": accuracy(base, low=True), "5-9, base": accuracy(base, low=False)}
    train, validation = rows(0, low=False), rows(1, low=False)
    tuner = Tuner(lightning.Trainer(max_epochs=max_epochs, logger=False, **common))
    finder = tuner.lr_find(module, train, validation, min_lr=1e-5, max_lr=1.0, num_training=100)
    found["learning rate"] = finder.suggestion()  # the finder has set module.learning_rate

    stop, keep = EarlyStopping("validation_loss", patience=8), KeepBest(f"{folder}/adapter")
    logger = CSVLogger(folder)
    trainer = lightning.Trainer(max_epochs=max_epochs, logger=logger, callbacks=[stop, keep], **common)
    trainer.fit(module, train, validation)
    found |= {"epochs": trainer.current_epoch, "5-9, last weights": accuracy(network, low=False)}
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["validation_loss"]) for row in csv.DictReader(file) if row["validation_loss"]]
    found |= {"best epoch": 1 + losses.index(min(losses)), "best validation loss": min(losses)}
    trainer.save_checkpoint(f"{folder}/lightning.ckpt", weights_only=True)
    found["bytes of the checkpoint"] = Path(f"{folder}/lightning.ckpt").stat().st_size

    peftly.load_adapter(peftly.detach(network), f"{folder}/adapter")  # the best one
    found["bytes of the adapter"] = Path(f"{folder}/adapter/adapter_model.safetensors").stat().st_size
    found["5-9, best weights"] = accuracy(network, low=False)
    with peftly.use_adapters(network):
        found["0-4, LoRA switched off"] = accuracy(network, low=True)
    for name, value in found.items():
        print(f"{name:32} {value:.4g}")
    return found


if __name__ == "__main__":
    main()
