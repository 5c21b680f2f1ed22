"""Handwritten digits: a small network learns the digits from 0 to 4, and LoRA teaches it the others."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.datasets import load_digits
from torch import nn

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x):
        return self.layers(x)


def fit(model, x, y, steps, rate):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def accuracy(model, x, y):
    with torch.no_grad():
        return (model(x).argmax(-1) == y).float().mean().item()


torch.manual_seed(0)
base = Network()
known = labels < 5
fit(base, images[known], labels[known], steps=60, rate=3e-2)
torch.save(base.state_dict(), "base.pt")
before = accuracy(base, images, labels)

config = LoraConfig(r=8, lora_alpha=16, target_modules=["layers.0", "layers.2"], modules_to_save=["layers.4"])
model = get_peft_model(base, config)
model.print_trainable_parameters()
losses = fit(model, images, labels, steps=60, rate=3e-2)
after = accuracy(model, images, labels)
print(f"{before:.3f} -> {after:.3f}")
model.save_pretrained("adapter")

base = Network()
base.load_state_dict(torch.load("base.pt"))
opened = PeftModel.from_pretrained(base, "adapter")
print(f"opened: {accuracy(opened, images, labels):.3f}")
merged = opened.merge_and_unload()
print(f"merged: {accuracy(merged, images, labels):.3f}", type(merged).__name__)
