"""The oracle: the same training run in plain float64 autograd, graph kept. Written from torch.optim.SGD's documentation."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from reversible_hypergrad.replay.environment import seed_step


def setting(given, name, step, shape, steps):
    """One setting of one parameter at one step."""
    if isinstance(given, dict):
        keys = [name] if name in given else [k for k in given if k != "*" and fnmatchcase(name, k)] or ["*"]
        given = given[keys[0]]
    if not isinstance(given, torch.Tensor) or given.ndim == 0:
        return given
    if given.shape == shape:
        return given
    return given.reshape(steps)[step]


class Bound(torch.nn.Module):
    """A module whose call and named_parameters() use given weights."""

    def __init__(self, model, weights):
        super().__init__()
        self._inner = [model]
        self._weights = weights

    def named_parameters(self, *args, **kwargs):
        return iter(self._weights.items())

    def forward(self, *args, **kwargs):
        return functional_call(self._inner[0], self._weights, args, kwargs)


def unroll(
    model,
    loss,
    batches,
    *,
    steps,
    lr,
    momentum=0.9,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    hyperparameters=None,
    initial=None,
    seed=0,
):
    """Trained weights, by name, attached to all tensors given and to the model's parameters. Memory grows with steps."""
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights.update(initial or {})
    model = copy.deepcopy(model)
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    velocity = {n: torch.zeros_like(w) for n, w in weights.items()}
    with torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
        for t in range(steps):
            seed_step(seed, t)
            batch = batches(t) if callable(batches) else batches[t]
            value = loss(Bound(model, {**weights, **frozen}), batch, hyperparameters)
            gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True, allow_unused=True)
            after = {}
            for (n, w), g in zip(weights.items(), gradients, strict=True):

                def get(given, n=n, t=t, w=w):
                    return setting(given, n, t, w.shape, steps)

                g = get(weight_decay) * w + (0.0 if g is None else g)
                mu = get(momentum)
                share = 1.0 if t == 0 or mu == 0 else 1.0 - get(dampening)
                velocity[n] = mu * velocity[n] + share * g
                after[n] = w - get(lr) * (g + mu * velocity[n] if nesterov else velocity[n])
            weights = after
    return weights
