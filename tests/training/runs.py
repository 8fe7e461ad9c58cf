"""Runs of small models in several parts, with losses of whatever comes out of them. Used by tests of starts, readouts, many
losses and resumption."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import batch_indices, problem, validation

import reversible_hypergrad as rh

STEPS = 12

STRATEGIES = {
    "reversible": rh.Reversible(),
    "reversible, 3 segments": rh.Reversible(segments=3),
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "tree": rh.RecursiveCheckpoint(),
    "unroll": rh.Unroll(),
}
MODELS = ["mlp", "convolution and batch norm", "transformer with dropout"]


class Run:
    """One problem and its leaves: a learning rate per step, a penalty, the model's own weights.

    Args:
        rule: "SGD", "AdamW" or "Lion".
    """

    def __init__(self, rule="SGD", name="mlp", dtype=torch.float64, steps=STEPS):
        self.model, self.x, self.y = problem(name, dtype)
        self.steps = steps
        self.lr = torch.linspace(0.1, 0.02, steps, dtype=torch.float64).to(dtype).mul_(0.1 if rule == "Lion" else 1)
        self.lr = self.lr.reshape(-1, 1).requires_grad_()
        self.l2 = torch.tensor(-4.0, dtype=dtype, requires_grad=True)
        self.weights = dict(self.model.named_parameters())
        self.leaves = {"lr": self.lr, "l2": self.l2, "weights": self.weights}
        self._rule = rule

    def optimizer(self, lr):
        if self._rule == "SGD":
            return rh.SGD(lr, momentum=0.8, dampening=0.1, weight_decay=0.01)
        return rh.AdamW(lr, (0.8, 0.9), 1e-3, 0.1) if self._rule == "AdamW" else rh.Lion(lr, (0.9, 0.9))

    def loss(self, model, index, hyperparameters):
        penalty = hyperparameters.exp() * sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(self.x[index]), self.y[index]) + penalty

    def train(self, adjoint=None, steps=None, lr=None, **more):
        lr = self.lr if lr is None else lr
        arguments = {"optimizer": self.optimizer(lr), "hyperparameters": self.l2, "adjoint": adjoint, "seed": 3, **more}
        return rh.train(self.model, self.loss, batch_indices, steps=self.steps if steps is None else steps, **arguments)

    def in_parts(self, adjoint, parts, whole_schedule=True, **more):
        """Continued run after run."""
        start, count = None, self.steps // parts
        for k in range(parts):
            lr = self.lr[: (k + 1) * count] if whole_schedule else self.lr[k * count : (k + 1) * count]
            trained = self.train(adjoint, count, lr, start=start, **more)
            start = trained.state if k < parts - 1 else None
        return trained

    def value(self, trained):
        return validation(self.model, trained)

    def gradients(self, value):
        """By all leaves, flat."""
        leaves = [self.lr, self.l2, *self.weights.values()]
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def error(found, expected):
    """Relative, of all gradients together."""
    found, expected = (torch.cat([g.double().flatten() for g in gradients]) for gradients in (found, expected))
    return float((found - expected).norm() / expected.norm())


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
