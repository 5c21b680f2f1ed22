"""LoRA on a vision transformer: a ViT that knows the digits 0 to 4 learns 5 to 9 with LoRA on queries and values.

The tutorials take `google/vit-base-patch16-224-in21k`, which cannot be shipped, so the script trains a small ViT first.
For yours, open it with `ViTForImageClassification.from_pretrained`; the line with `attach` stays. The images are those
of scikit-learn. Run it with `python examples/image_classifier.py` (a minute on a CPU).
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import peftly

CONFIG = ViTConfig(
    image_size=8, patch_size=2, num_channels=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=128, num_labels=10,
)  # fmt: skip


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, learning_rate: float) -> None:
    """Train the trainable parameters of `model` on batches of 64 images."""
    optimizer = torch.optim.AdamW(peftly.trainable_parameters(model).values(), lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        loss = model(pixel_values=x[batch], labels=y[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the fraction of correctly classified images."""
    model.eval()
    with torch.no_grad():
        return float((model(pixel_values=x).logits.argmax(1) == y).float().mean())


def main(folder: str = "runs/vit", steps: int = 300) -> dict[str, float]:
    """Train the base on 0 to 4, adapt it to 5 to 9, and return the accuracies."""
    torch.set_num_threads(1)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(digits)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    is_test, is_low = torch.arange(len(x)) >= 1200, y < 5

    torch.manual_seed(0)
    model = ViTForImageClassification(CONFIG)
    train(model, x[~is_test & is_low], y[~is_test & is_low], steps, learning_rate=1e-3)
    base = copy.deepcopy(model)
    found = {
        "0-4, base": accuracy(base, x[is_test & is_low], y[is_test & is_low]),
        "5-9, base": accuracy(base, x[is_test & ~is_low], y[is_test & ~is_low]),
    }

    # The settings of the tutorials: queries and values, and the whole classifier.
    targets = {"target_modules": ("q_proj", "v_proj"), "modules_to_save": ("classifier",)}
    peftly.attach(model, peftly.LoRA(rank=16, alpha=16, dropout=0.1, **targets))
    model.train()
    train(model, x[~is_test & ~is_low], y[~is_test & ~is_low], steps, learning_rate=5e-3)
    found["5-9, with LoRA"] = accuracy(model, x[is_test & ~is_low], y[is_test & ~is_low])
    trained = sum(parameter.numel() for parameter in peftly.trainable_parameters(model).values())
    found["share of parameters trained"] = trained / sum(parameter.numel() for parameter in base.parameters())

    peftly.save_adapter(model, f"{folder}/adapter")
    opened = peftly.load_adapter(copy.deepcopy(base), f"{folder}/adapter")
    found["5-9, opened again"] = accuracy(opened, x[is_test & ~is_low], y[is_test & ~is_low])
    with peftly.use_adapters(model):
        found["0-4, LoRA switched off"] = accuracy(model, x[is_test & is_low], y[is_test & is_low])
    found["5-9, merged"] = accuracy(peftly.merge(opened), x[is_test & ~is_low], y[is_test & ~is_low])
    for name, value in found.items():
        print(f"{name:28} {value:6.1%}")
    return found


if __name__ == "__main__":
    main()
