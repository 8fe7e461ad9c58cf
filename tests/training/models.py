"""Small models and batches of every kind that the library promises to differentiate through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LastOutput(nn.Module):
    def __init__(self, recurrent, classes=3):
        super().__init__()
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, classes)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def frozen():
    model = mlp()
    model[2].weight.requires_grad_(False)
    return model


def unused():
    model = mlp()
    model.extra = nn.Parameter(torch.randn(5))
    model.forward = None
    return model


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.extra = mlp(), nn.Linear(2, 2)

    def forward(self, x):
        return self.net(x)


def convolution():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Flatten(), nn.Linear(4 * 4 * 4, 3),
    )  # fmt: skip


def group_norm():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 8), nn.Mish(), nn.Linear(8, 3)
    )


class Norm(nn.Module):
    """Weights by their rows' lengths and directions: torch's own has wrong second derivatives on CPUs."""

    def forward(self, length, direction):
        return length * direction / direction.norm(dim=1, keepdim=True)

    def right_inverse(self, weight):
        return weight.norm(dim=1, keepdim=True), weight


def weight_norm():
    layers = nn.Linear(6, 8), nn.Linear(8, 3)
    for layer in layers:
        nn.utils.parametrize.register_parametrization(layer, "weight", Norm())
    return nn.Sequential(layers[0], nn.SiLU(), layers[1])


MODELS = {
    "mlp": (mlp, (6,)),
    "convolution and batch norm": (convolution, (2, 6, 6)),
    "GRU": (lambda: LastOutput(nn.GRU(4, 6, batch_first=True)), (5, 4)),
    "LSTM": (lambda: LastOutput(nn.LSTM(4, 6, batch_first=True)), (5, 4)),
    "transformer with dropout": (Attention, (4, 8)),
    "SiLU, Mish, group norm": (group_norm, (2, 6, 6)),
    "weight norm": (weight_norm, (6,)),
    "tied": (Tied, (6,)),
    "frozen": (frozen, (6,)),
    "unused parameters": (WithUnused, (6,)),
}


def problem(name, dtype, examples=24, batch=12):
    """A model, its inputs and its targets; the same numbers in every dtype."""
    build, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build().to(torch.float32)
        x = torch.randn(examples, *shape)
        y = torch.randint(3, (examples,))
    return model.to(dtype), x.to(dtype), y


def batch_indices(step, examples=24, batch=12):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randperm(examples, generator=generator)[:batch]


def validation(model, trained, buffers=None):
    """A smooth downstream loss."""
    return sum(
        (w * torch.linspace(-1, 1, w.numel(), dtype=w.dtype, device=w.device).reshape(w.shape)).sum() + w.square().sum()
        for w in trained.values()
    )


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y)
