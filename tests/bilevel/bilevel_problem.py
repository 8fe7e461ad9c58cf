"""Small bilevel problems in float64, and their hypergradients by autograd through an unrolled run."""

from __future__ import annotations

import torch
from torch import nn

import reversible_hypergrad as rh

STEPS, LR, MOMENTUM = 12, 0.1, 0.9


class Problem:
    """A penalty per layer, which the outer loss contains, too; a learning rate per step."""

    def __init__(self, momentum=MOMENTUM):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.x, self.v = torch.randn(STEPS, 16, 5).double(), torch.randn(16, 5).double()
        self.momentum = momentum
        self.l2 = torch.full((2,), -3.0, dtype=torch.float64, requires_grad=True)
        self.lr = torch.linspace(0.15, 0.05, STEPS, dtype=torch.float64).requires_grad_()

    def loss(self, model, x, l2):
        return self.penalized(model(x), dict(model.named_parameters()), l2)

    def penalized(self, output, named, l2):
        weights = [named["0.weight"], named["2.weight"]]
        return output.exp().mean() + sum(a.exp() * w.square().sum() for a, w in zip(l2, weights, strict=True))

    def outer_of(self, l2):
        def outer(weights):
            return (torch.func.functional_call(self.model, dict(weights), self.v) - 1).square().mean() + 0.01 * l2.square().sum()

        return outer

    def task(self, k, h, rates=True):
        """Of the hyperparameters [l2, lr], or with learning rates that are not learned."""
        l2, lr = h
        return rh.Task(
            self.model,
            self.loss,
            self.x,
            outer=self.outer_of(l2),
            optimizer=rh.SGD(lr if rates else lr.detach(), momentum=self.momentum),
            hyperparameters=l2,
        )

    def unrolled(self, first, stop, state=None):
        """Weights and velocities after ``stop`` steps as functions of both, of those from ``first`` on alone."""
        weights = [p.detach().clone() for p in self.model.parameters()] if state is None else state[0]
        velocities = [torch.zeros_like(w) for w in weights] if state is None else state[1]
        names = [name for name, _ in self.model.named_parameters()]
        weights = [w.requires_grad_() if w.is_leaf else w for w in weights]
        for t in range(first, stop):
            bound = nn.Module()
            bound.inner = self.model
            named = dict(zip(names, weights, strict=True))
            value = self.penalized(torch.func.functional_call(self.model, named, self.x[t]), named, self.l2)
            gradients = torch.autograd.grad(value, weights, create_graph=True)
            velocities = [self.momentum * v + g for v, g in zip(velocities, gradients, strict=True)]
            weights = [w - self.lr[t] * v for w, v in zip(weights, velocities, strict=True)]
        return weights, velocities

    def value(self, weights):
        names = [name for name, _ in self.model.named_parameters()]
        return self.outer_of(self.l2)(dict(zip(names, weights, strict=True)))


def cut(state):
    return [[t.detach() for t in part] for part in state]


class Scaled(Problem):
    """A hyperparameter for each output, so that what it does depends on the batch."""

    def penalized(self, output, named, l2):
        return (output * (l2 + 4)).exp().mean()


class Toy:
    """One weight: training loss (x - 1)^2 + lam x^2, outer loss (x - 1/2)^2. At the minimum of the first, x = 1 / (1 + lam), the
    hypergradient is (lam - 1) / (lam + 1)^3.

    Source: the one-dimensional example of Bohdal, Yang, Hospedales, *EvoGrad*, NeurIPS 2021.
    """

    def __init__(self, x, lam, steps=1, rule=None):
        self.lam = torch.tensor(lam, dtype=torch.float64, requires_grad=True)
        model = nn.Module()
        model.x = nn.Parameter(torch.tensor([x], dtype=torch.float64))
        self.task = lambda: rh.Task(
            model,
            lambda model, _, lam: ((model.x - 1).square() + lam * model.x.square()).sum(),
            [None] * steps,
            outer=lambda weights: (weights["x"] - 0.5).square().sum(),
            optimizer=rule or rh.SGD(0.1, momentum=0.0),
            hyperparameters=self.lam,
        )

    @property
    def exact(self):
        lam = float(self.lam.detach())
        return (lam - 1) / (lam + 1) ** 3
