"""Modules that do not simply call their layers: they read weights, pass inputs by keyword, or return tuples."""

import torch
import transformers as tf
from torch import nn
from torch.nn import functional as F

WIDTH = 8


class Read(nn.Module):
    """Reads the weight of a layer by its name."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.out(F.linear(x, self.inner.weight, self.inner.bias).tanh())


class ReadFromList(nn.Module):
    """Reads the weight of a layer that the source code does not name."""

    def __init__(self):
        super().__init__()
        self.layers, self.out = nn.ModuleList([nn.Linear(WIDTH, WIDTH)]), nn.Linear(WIDTH, 2)

    def forward(self, x):
        layer = self.layers[0]
        return self.out(F.linear(x, layer.weight, layer.bias).tanh())


class ReadInEvaluation(Read):
    """Calls the layer in training mode, and reads its weight in evaluation mode."""

    def forward(self, x):
        return self.out(self.inner(x).tanh()) if self.training else super().forward(x)


class Attention(nn.Module):
    """torch's attention, which reads the weight of its output projection."""

    def __init__(self, **settings):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(WIDTH, 2, **settings), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.out(self.attention(query=x, key=x, value=x)[0])


class Block(nn.Module):
    """Attention block that is called by keyword and returns a tuple."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.output = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden_states, attention_mask=None, *, scale=1.0):
        scores = self.query(input=hidden_states) @ self.key(hidden_states).transpose(1, 2) * scale
        return self.output(input=scores.softmax(-1) @ hidden_states), scores, None


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    def forward(self, x):
        return self.head(input=self.block(hidden_states=x, attention_mask=None, scale=0.5)[0])


class Shared(nn.Module):
    """Calls one layer twice, under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.second = self.first

    def forward(self, x):
        return self.out(self.second(self.first(x).tanh()))


class Logits(nn.Module):
    """A transformers model whose input are fixed token ids, and whose output are its logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(torch.arange(3, 3 + x.shape[1]).repeat(len(x), 1)).logits


def _layer(**settings):
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True, **settings)


def _bloom():
    config = tf.BloomConfig(vocab_size=97, hidden_size=16, n_layer=1, n_head=2, pretraining_tp=2, slow_but_exact=True)
    return Logits(tf.BloomForCausalLM(config))


def _mamba():
    return Logits(tf.MambaForCausalLM(tf.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)))


ODD_MODULES = {
    "reads a weight": Read,
    "reads a weight of a list": ReadFromList,
    "reads a weight in evaluation": ReadInEvaluation,
    "encoder": lambda: nn.TransformerEncoder(_layer(), 2),
    "encoder layer": lambda: nn.Sequential(_layer(norm_first=True)),
    "attention": lambda: Attention(batch_first=True),
    "attention, sequence first": Attention,
    "by keyword": ByKeyword,
    "shared": Shared,
    "bloom, slow": _bloom,
    "mamba": _mamba,
}


def odd_module(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ODD_MODULES[name]().requires_grad_(False).eval()
