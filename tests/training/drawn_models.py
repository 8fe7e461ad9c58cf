"""Small models for random runs, each with data and a loss that its hyperparameters enter in several ways."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["MODELS", "Task", "loss_of"]

EXAMPLES = 20
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.Softplus, nn.LeakyReLU, nn.Sigmoid, nn.ELU)


class Task(NamedTuple):
    model: nn.Module
    x: torch.Tensor  # of all examples
    y: torch.Tensor  # classes 0 and 1


class Tied(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.two.weight, self.activation = self.one.weight, activation

    def forward(self, x):
        return self.out(self.activation(self.two(self.activation(self.one(x)))))


class Odd(nn.Module):
    """A parameter without use, one without dimensions, a frozen one."""

    def __init__(self, activation):
        super().__init__()
        self.unused, self.gain = nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.hidden, self.activation, self.out = nn.Linear(3, 4), activation, nn.Linear(4, 2)

    def forward(self, x):
        return self.gain * self.out(self.activation(self.hidden(x * self.frozen)))


class Words(nn.Module):
    """Some rows are never looked up, so that their gradient is 0."""

    def __init__(self, activation):
        super().__init__()
        self.embed, self.activation, self.out = nn.Embedding(9, 3), activation, nn.Linear(3, 2)

    def forward(self, x):
        return self.out(self.activation(self.embed(x).mean(1)))


class Convolution(nn.Module):
    """No bias before the normalization: its gradient would be 0 but for rounding."""

    def __init__(self, activation):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 2, 3, bias=False), nn.BatchNorm1d(2)
        self.activation, self.out = activation, nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.activation(self.norm(self.conv(x[:, None]))).flatten(1))


def perceptron(activation):
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))


def normed(activation):
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), activation, nn.Linear(4, 2))


MODELS = {
    "perceptron": (perceptron, 3),
    "tied": (Tied, 3),
    "odd": (Odd, 3),
    "words": (Words, 0),
    "convolution": (Convolution, 6),
    "normed": (normed, 3),
}


def task(name, activation, generator, eval_mode):
    """With float64 weights; the ``generator`` draws everything."""
    make, width = MODELS[name]
    model = make(activation()).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    if width:
        x = torch.randn(EXAMPLES, width, generator=generator, dtype=torch.float64)
    else:
        x = torch.randint(0, 7, (EXAMPLES, 4), generator=generator)
    y = torch.randint(0, 2, (EXAMPLES,), generator=generator)
    return Task(model.eval() if eval_mode else model, x, y)


def loss_of(of: Task, classifies: bool, drops: bool) -> Any:
    """What ``train`` takes. Batches are dicts of "i", indices of examples, and "t", the step, which seeds the dropout.

    Hyperparameters, each of which may be left out: "l2", by name or one for all, logarithms of penalties; "example", logits of
    the examples' weights; "scale", of the outputs; "shift", of the data.
    """

    def loss(model, batch, hyperparameters):
        i, h = batch["i"], hyperparameters or {}
        x = of.x[i]
        if "shift" in h:
            x = x + h["shift"][i]
        if drops and x.is_floating_point():
            x = x * _mask(batch["t"], x.shape)
        out = model(x)
        if "scale" in h:
            out = h["scale"][0] * out
        squares = (out - F.one_hot(of.y[i], 2)).square().sum(1)
        each = F.cross_entropy(out, of.y[i], reduction="none") if classifies else squares
        if "example" in h:
            each = h["example"][i].sigmoid() * each
        value = each.mean()
        if "l2" in h:
            for name, p in model.named_parameters():
                log = h["l2"].get(name) if isinstance(h["l2"], dict) else h["l2"]
                value = value if log is None else value + (log.exp() * p.square()).sum()
        return value

    return loss


def _mask(t, shape):
    generator = torch.Generator().manual_seed(1000 + t)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) < 0.8) / 0.8
