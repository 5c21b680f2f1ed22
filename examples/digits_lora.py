"""LoRA on a plain image classifier: a network that knows the digits 0 to 4 learns 5 to 9 with 3% of its parameters.

The example does not use transformers: LoRA adapts any `torch.nn.Module` with linear layers. It needs scikit-learn, for
its 8 x 8 images of digits. Run it with `python examples/digits_lora.py` (ten seconds on a CPU).
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import peftly


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, learning_rate: float) -> None:
    """Train the trainable parameters of `model` on batches of 64 images."""
    optimizer = torch.optim.AdamW(peftly.trainable_parameters(model).values(), lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the fraction of correctly classified images."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> dict[str, float]:
    """Train the base on 0 to 4, adapt it to 5 to 9, and print the accuracies of both."""
    torch.set_num_threads(1)  # matrices of this size are slower with a second thread
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    is_test, is_low = torch.arange(len(x)) >= 1200, y < 5

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    train(model, x[~is_test & is_low], y[~is_test & is_low], steps=300, learning_rate=1e-3)
    base = copy.deepcopy(model)

    peftly.attach(model, peftly.LoRA(rank=4, alpha=8))
    train(model, x[~is_test & ~is_low], y[~is_test & ~is_low], steps=300, learning_rate=3e-3)

    trained = sum(parameter.numel() for parameter in peftly.trainable_parameters(model).values())
    results = {
        "0-4, base": accuracy(base, x[is_test & is_low], y[is_test & is_low]),
        "5-9, base": accuracy(base, x[is_test & ~is_low], y[is_test & ~is_low]),
        "5-9, with LoRA": accuracy(model, x[is_test & ~is_low], y[is_test & ~is_low]),
        "share of parameters trained": trained / sum(parameter.numel() for parameter in base.parameters()),
    }
    with peftly.use_adapters(model):
        results["0-4, LoRA switched off"] = accuracy(model, x[is_test & is_low], y[is_test & is_low])
    merged = peftly.merge(copy.deepcopy(model))
    results["5-9, merged"] = accuracy(merged, x[is_test & ~is_low], y[is_test & ~is_low])
    peftly.detach(model)
    is_unchanged = all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    for name, share in results.items():
        print(f"{name:28} {share:6.1%}")
    print("the base is", "unchanged, bit for bit" if is_unchanged else "CHANGED")
    return results


if __name__ == "__main__":
    main()
