"""LoRA written from scratch with `torch.nn.utils.parametrize`, beside peftly's, on the digits of scikit-learn.

The job is that of the tutorials on MNIST: a network knows all digits, and LoRA is trained on one digit alone. Both
versions get the same first factors and the same batches, so they give the same numbers. Run it with
`python examples/lora_parametrize.py` (20 seconds on a CPU).
"""

import copy
import math
from collections.abc import Iterable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import parametrize

import peftly

DIGIT = 9


class LowRank(nn.Module):
    """A weight plus a trained low-rank update, `W + alpha / rank B A`.

    Attributes:
        lora_a: (rank, in_features), initially random.
        lora_b: (out_features, rank), initially zero, so that the weight is unchanged.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        """Make the factors for a weight of a linear layer, (out_features, in_features)."""
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(rank, weight.shape[1], dtype=weight.dtype))
        self.lora_b = nn.Parameter(torch.zeros(weight.shape[0], rank, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scaling = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return the updated weight."""
        return weight + self.scaling * (self.lora_b @ self.lora_a)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a model by their paths."""
    return {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def add_lora(model: nn.Module, rank: int, alpha: float) -> dict[str, nn.Parameter]:
    """Freeze a model, add an update to every linear layer, and return the trained parameters by path.

    A second call adds a second update on top of the first.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    trained = {}
    for path, layer in linear_layers(model).items():
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
        update = layer.parametrizations.weight[-1]  # the one that was added last
        trained |= {f"{path}.lora_a": update.lora_a, f"{path}.lora_b": update.lora_b}
    return trained


def merge_lora(model: nn.Module) -> None:
    """Replace every weight by the updated weight."""
    for layer in linear_layers(model).values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def train(model: nn.Module, trained: Iterable[nn.Parameter], x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    """Train some parameters of a model on batches of 10 images."""
    optimizer = torch.optim.Adam(trained, lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (10,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(steps: int = 100) -> dict[str, float]:
    """Train both versions on one digit, and on this digit mixed with others; return accuracies and differences."""
    torch.set_num_threads(1)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    is_test = torch.arange(len(x)) >= 1200

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    train(base, base.parameters(), x[~is_test], y[~is_test], steps=100, rate=1e-3)

    def scores(model: nn.Module, name: str) -> dict[str, float]:
        with torch.no_grad():
            right = model(x[is_test]).argmax(1) == y[is_test]
        alone = right[y[is_test] == DIGIT]
        return {f"{name}: all digits": float(right.float().mean()), f"{name}: {DIGIT}": float(alone.float().mean())}

    found = scores(base, "base")
    one_digit = (~is_test & (y == DIGIT)).nonzero()[:, 0]
    # As many images of other digits as of this one keep the others from being forgotten.
    others = (~is_test & (y != DIGIT)).nonzero()[: len(one_digit), 0]
    for name, rows in {"alone": one_digit, "mixed": torch.cat([one_digit, others])}.items():
        scratch, ours = copy.deepcopy(base), copy.deepcopy(base)
        torch.manual_seed(1)
        factors = add_lora(scratch, rank=1, alpha=1)
        peftly.attach(ours, peftly.LoRA(rank=1, alpha=1, target_modules=".*"))
        with torch.no_grad():
            for mine, theirs in zip(peftly.trainable_parameters(ours).values(), factors.values(), strict=True):
                mine.copy_(theirs)  # A and B of each layer, in the order of the layers
        train(scratch, factors.values(), x[rows], y[rows], steps, rate=1e-3)
        train(ours, peftly.trainable_parameters(ours).values(), x[rows], y[rows], steps, rate=1e-3)
        found |= scores(ours, name)
        found[f"{name}: difference of the two versions"] = difference(scratch, ours, x)
        merge_lora(scratch)
        peftly.merge(ours)
        found[f"{name}: difference of the two versions, merged"] = difference(scratch, ours, x)
    trained, all_of_base = (sum(p.numel() for p in those) for those in (factors.values(), base.parameters()))
    found["share of parameters trained"] = trained / all_of_base
    for name, value in found.items():
        print(f"{name:45} {value:.3g}")
    return found


def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Return the relative difference of the outputs of two models."""
    with torch.no_grad():
        return float((one(x) - other(x)).norm() / other(x).norm())


if __name__ == "__main__":
    main()
