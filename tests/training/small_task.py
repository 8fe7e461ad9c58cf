"""A small problem to plant faults in."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import reversible_hypergrad as rh

STEPS = 60


class Task:
    """A small problem whose parts can be replaced, and what must be unchanged after a failure."""

    def __init__(self, width=64):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
        self.x, self.y = torch.randn(STEPS, 8, 4), torch.randn(STEPS, 8, 1)
        self.log_l2 = torch.tensor(-4.0, requires_grad=True)
        self.before = [p.detach().clone() for p in self.model.parameters()]

    def batch(self, step):
        return self.x[step], self.y[step]

    def loss(self, model, batch, hyperparameters):
        return F.mse_loss(model(batch[0]), batch[1]) + hyperparameters.exp() * sum(p.square().sum() for p in model.parameters())

    def train(self, loss=None, batch=None, adjoint=None, **settings):
        adjoint = rh.Reversible(**settings) if adjoint is None else adjoint
        arguments = {"steps": STEPS, "optimizer": rh.SGD(lr=0.05), "hyperparameters": self.log_l2, "adjoint": adjoint}
        return rh.train(self.model, loss or self.loss, batch or self.batch, **arguments)

    def backward(self, trained):
        sum(w.square().sum() for w in trained.values()).backward()

    def check_untouched(self):
        assert all(torch.equal(p, b) for p, b in zip(self.model.parameters(), self.before, strict=True))
        assert all(p.grad is None for p in self.model.parameters())
        assert self.log_l2.grad is None
        assert self.log_l2.item() == -4.0
