"""The oracle: a run with clipped gradients and micro-batches in plain float64 autograd, graph kept.

Clipping as torch.nn.utils documents it; the loss of a step is the mean of its micro-batches'; the rules as torch.optim has them.
"""

from __future__ import annotations

import copy

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from reversible_hypergrad.replay.environment import seed_step


def by_norm(max_norm, norm_type=2.0):
    """What clips a step's gradients."""

    def clip(gradients, t):
        limit = max_norm[t] if getattr(max_norm, "ndim", 0) else max_norm
        together = torch.cat([g.reshape(-1) for g in gradients])
        norm = together.square().sum().sqrt() if norm_type == 2 else together.abs().max()
        factor = limit / (norm + 1e-6)
        return [g * factor for g in gradients] if factor < 1 else gradients

    return clip


def by_value(max_value):
    def clip(gradients, t):
        limit = max_value[t] if getattr(max_value, "ndim", 0) else max_value
        return [torch.where(g.abs() > limit, g.sign() * limit, g) for g in gradients]

    return clip


class SGD:
    def __init__(self, lr, momentum):
        self.lr, self.momentum, self.v = lr, momentum, {}

    def step(self, t, name, w, g):
        self.v[name] = self.momentum * self.v.get(name, 0.0) + g
        return w - self.lr * self.v[name]


class AdamW:
    def __init__(self, lr, beta1, beta2, eps, decay):
        self.lr, self.beta1, self.beta2, self.eps, self.decay, self.m, self.s = lr, beta1, beta2, eps, decay, {}, {}

    def step(self, t, name, w, g):
        self.m[name] = self.beta1 * self.m.get(name, 0.0) + (1 - self.beta1) * g
        self.s[name] = self.beta2 * self.s.get(name, 0.0) + (1 - self.beta2) * g.square()
        s = self.s[name]
        root = torch.where(s > 0, torch.where(s > 0, s, 1.0).sqrt(), 0.0)
        m_hat, root_hat = self.m[name] / (1 - self.beta1 ** (t + 1)), root / (1 - self.beta2 ** (t + 1)) ** 0.5
        return w * (1 - self.lr * self.decay) - self.lr * m_hat / (root_hat + self.eps)


class Called(torch.nn.Module):
    """A loss as a module, so that functional_call can replace its model's weights."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *arguments):
        return self.loss(self.model, *arguments)


def unrolled(model, loss, micro_batches, *, steps, optimizer, clip=None, hyperparameters=None, seed=0):
    """Trained weights by name, attached. ``micro_batches(step)`` is a list."""
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    bound = Called(copy.deepcopy(model), loss)
    with torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
        for t in range(steps):
            parts = micro_batches(t)
            total = 0.0
            for j, part in enumerate(parts):
                seed_step(seed, t, part=j)
                total = total + functional_call(bound, {f"model.{n}": w for n, w in weights.items()}, (part, hyperparameters))
            found = torch.autograd.grad(total / len(parts), list(weights.values()), create_graph=True, allow_unused=True)
            gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights.values(), found, strict=True)]
            gradients = clip(gradients, t) if clip else gradients
            weights = {n: optimizer.step(t, n, w, g) for (n, w), g in zip(weights.items(), gradients, strict=True)}
    return weights
