"""LoRA on a plain image classifier: a net that knows the digits 0 to 4 learns 5 to 9 from a thirtieth of its numbers.

No transformers in sight: any `torch.nn.Module` with linear layers will do. Run it with `python examples/digits_lora.py`
(ten seconds on a CPU); it needs scikit-learn, whose 8 x 8 digits it uses.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import peftly


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    """Train what is trainable in `model`, 64 images at a time."""
    optimizer = torch.optim.AdamW(peftly.trainable_parameters(model).values(), lr=rate)
    draw = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=draw)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of images that are taken for what they are."""
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def main() -> dict[str, float]:
    """Train the net on 0 to 4, adapt it to 5 to 9, and print what each version knows."""
    torch.set_num_threads(1)  # the products are so small that a second thread costs more than it does
    images, names = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(names)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    fresh, small = torch.arange(len(x)) >= 1200, y < 5

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    train(model, x[~fresh & small], y[~fresh & small], steps=300, rate=1e-3)
    base = copy.deepcopy(model)

    peftly.attach(model, peftly.LoRA(rank=4, alpha=8))
    train(model, x[~fresh & ~small], y[~fresh & ~small], steps=300, rate=3e-3)

    trained = sum(parameter.numel() for parameter in peftly.trainable_parameters(model).values())
    found = {
        "0-4, base": accuracy(base, x[fresh & small], y[fresh & small]),
        "5-9, base": accuracy(base, x[fresh & ~small], y[fresh & ~small]),
        "5-9, with LoRA": accuracy(model, x[fresh & ~small], y[fresh & ~small]),
        "share of parameters trained": trained / sum(parameter.numel() for parameter in base.parameters()),
    }
    with peftly.use_adapters(model):
        found["0-4, LoRA switched off"] = accuracy(model, x[fresh & small], y[fresh & small])
    merged = peftly.merge(copy.deepcopy(model))
    found["5-9, merged"] = accuracy(merged, x[fresh & ~small], y[fresh & ~small])
    peftly.detach(model)
    unchanged = all(torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters(), strict=True))
    for name, share in found.items():
        print(f"{name:28} {share:6.1%}")
    print("the base is", "the same, bit for bit" if unchanged else "CHANGED")
    return found


if __name__ == "__main__":
    main()
