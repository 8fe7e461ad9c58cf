"""A gradient made of another one, by its interface alone, and captured with it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import batch_indices, problem

from reversible_hypergrad.gradients.captured import captured
from reversible_hypergrad.gradients.decorator import Decorator
from reversible_hypergrad.gradients.loss import LossGradient
from reversible_hypergrad.problem.gradient import Evaluation


class Scaled(Decorator):
    """Half of the gradients, so half of their derivatives."""

    def of(self, batch):
        return HalfOf(self.inner.of(batch))

    def values(self, batch):
        value, gradients = self.inner.values(batch)
        return value, [g / 2 for g in gradients]

    def attached(self, batch, weights):
        value, gradients = self.inner.attached(batch, weights)
        return value, [None if g is None else g / 2 for g in gradients]


class HalfOf(Evaluation):
    def __init__(self, inner):
        self.inner, self.value, self.gradients = inner, inner.value, [g / 2 for g in inner.gradients]

    @property
    def is_attached(self):
        return self.inner.is_attached

    def products(self, directions, keep=False):
        return self.inner.products([u / 2 for u in directions], keep)

    def tangents(self, by_weights, by_hyperparameters):
        return [None if t is None else t / 2 for t in self.inner.tangents(by_weights, by_hyperparameters)]


def loss_gradient(name="transformer with dropout"):
    model, x, y = problem(name, torch.float32)
    scale = torch.tensor(0.3, requires_grad=True)

    def loss(model, i, scale):
        return scale.exp() * F.cross_entropy(model(x[i]), y[i])

    return LossGradient(model, dict(model.named_parameters()), loss, batch_indices, scale, seed=3)


def halves(tensors):
    return [None if t is None else t / 2 for t in tensors]


def assert_same(mine, expected):
    assert len(mine) == len(expected)
    for a, b in zip(mine, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("graph", [False, True], ids=["as it is", "captured"])
@pytest.mark.parametrize("name", ["transformer with dropout", "convolution and batch norm", "unused parameters"])
def test_everything_passes_through(name, graph, tapes):
    inner, other = loss_gradient(name), loss_gradient(name)
    gradient = captured(Scaled(inner), None) if graph else Scaled(inner)
    assert (gradient.names, gradient.weights, gradient.wanted) == (inner.names, inner.weights, inner.wanted)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        directions = [torch.randn(w.shape, generator=generator) for w in inner.weights]
        mine, expected = gradient(step), other(step)
        assert torch.equal(mine.value, expected.value)
        assert mine.is_attached
        assert_same(mine.gradients, halves(expected.gradients))
        for found, right in zip(mine.products(directions), expected.products(halves(directions)), strict=True):
            assert_same(found, right)
        value, gradients = gradient.values(gradient.batch(step))
        right, of_other = other.values(other.batch(step))
        assert torch.equal(value, right)
        assert_same(gradients, halves(of_other))
    gradient.restart()
    other.restart()
    assert torch.equal(gradient(0).value, other(0).value)
    assert "are the same when asked for twice now" in gradient.diagnose(4)
    if graph:
        assert tapes[0].captures == 3
        gradient.let_go()
        assert not tapes[0].is_open


def test_tangents_and_attached():
    inner = loss_gradient("mlp")
    gradient = Scaled(inner)
    stacks = [torch.randn(2, *w.shape) for w in inner.weights]
    along = [torch.ones(2)]
    assert_same(gradient(1).tangents(stacks, along), halves(inner(1).tangents(stacks, along)))
    mine = gradient.attached(gradient.batch(1), inner.weights)
    expected = inner.attached(inner.batch(1), inner.weights)
    assert_same(mine[1], halves(expected[1]))
    assert all(g.requires_grad for g in mine[1])
