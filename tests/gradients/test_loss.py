"""The two halves of a loss's gradient, and what evaluations change beside their results."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import batch_indices, problem
from torch import nn

from reversible_hypergrad.gradients.loss import LossGradient


def gradient_of(loss, model, **settings):
    return LossGradient(model, {n: p for n, p in model.named_parameters() if p.requires_grad}, loss, batch_indices, **settings)


@pytest.mark.parametrize("first", ["values", "attached", "of"])
def test_the_first_step_asks_for_one_batch_and_one_loss(first):
    """The check of the first loss takes part in its evaluation, and leaves no trace."""
    model, x, y = problem("convolution and batch norm", torch.float32)
    calls = []

    def loss(model, i, _):
        calls.append(i)
        return F.cross_entropy(model(x[i]), y[i])

    gradient = gradient_of(loss, model)
    batch = gradient.batch(0)
    arguments = [batch, gradient.weights] if first == "attached" else [batch]
    getattr(gradient, first)(*arguments)
    assert len(calls) == 1
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("name", ["LSTM", "SiLU, Mish, group norm", "transformer with dropout"])
def test_the_check_does_not_change_the_first_values(name):
    """These have other last bits where a graph of the gradient is made."""
    model, x, y = problem(name, torch.float32)
    gradient = gradient_of(lambda model, i, _: F.cross_entropy(model(x[i]), y[i]), model)
    first, again = (gradient.values(gradient.batch(0)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1], strict=True))


@pytest.mark.parametrize("ask", ["of", "values", "attached"])
def test_whatever_is_asked_first_is_checked(ask):
    model, x, y = problem("mlp", torch.float32)
    outside = torch.ones((), requires_grad=True)
    gradient = gradient_of(lambda model, i, _: outside * F.cross_entropy(model(x[i]), y[i]), model)
    more = [gradient.weights] if ask == "attached" else []
    for _ in range(2):
        with pytest.raises(ValueError, match="its gradient would be lost"):
            getattr(gradient, ask)(gradient.batch(0), *more)


class Replacing(nn.Module):
    """Its buffer is another tensor after each call."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.net(x) * self.calls


def test_restart_puts_back_buffers_that_were_replaced():
    _, x, y = problem("mlp", torch.float32)
    model = Replacing()
    gradient = gradient_of(lambda model, i, _: F.cross_entropy(model(x[i]), y[i]), model)
    first = gradient(0).gradients
    assert not torch.equal(gradient(0).gradients[0], first[0])
    gradient.restart()
    assert model.calls.item() == 0
    assert torch.equal(gradient(0).gradients[0], first[0])


def test_restart_puts_back_a_buffer_that_was_none():
    class Late(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.register_buffer("first", None)

        def forward(self, x):
            if self.first is None:
                self.first = x.detach().mean()
            return super().forward(x)

    _, x, y = problem("mlp", torch.float32)
    model = Late()
    gradient = gradient_of(lambda model, i, _: F.cross_entropy(model(x[i]), y[i]), model)
    gradient(0)
    assert model.first is not None
    gradient.restart()
    assert model.first is None


def test_side_effects_are_put_back():
    model, x, y = problem("convolution and batch norm", torch.float32)
    gradient = gradient_of(lambda model, i, _: F.cross_entropy(model(x[i]), y[i]), model)
    before = gradient.side_effects()
    expected = torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
    gradient(0)
    assert int(model[1].num_batches_tracked) == 1
    assert not torch.equal(before.buffers[0], model[1].running_mean)
    before.put_back()
    assert int(model[1].num_batches_tracked) == 0
    assert torch.equal(before.buffers[0], model[1].running_mean)
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]  # noqa: NPY002
