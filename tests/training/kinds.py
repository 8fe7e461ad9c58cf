"""Every kind of hyperparameter on every small model, and its gradients: by train(), and by the oracle's unroll in float64."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from models import batch_indices, problem, validation
from unroll import unroll

import reversible_hypergrad as rh


def error(found, expected):
    scale = expected.double().norm()
    return float((found.double() - expected.double()).norm() / scale) if scale else float(found.double().norm())


def penalty_loss(x, y):
    def loss(model, index, hyperparameters):
        penalty = sum(hyperparameters["l2"].exp() * p.square().sum() for _, p in model.named_parameters())
        return F.cross_entropy(hyperparameters["more"][0] * model(x[index]), y[index]) + penalty

    return loss


def leaf(values, dtype):
    return torch.as_tensor(values, dtype=torch.float64).to(dtype).requires_grad_()


# Every maker gives (settings, hyperparameters, a function that gives initial weights or None, loss, the leaves to compare),
# built afresh per dtype and number of steps.


def plain(x, y, dtype):
    return {"lr": 0.1}, {"l2": leaf(-5.0, dtype), "more": [leaf(1.5, dtype)]}, None, penalty_loss(x, y)


def with_settings(**settings):
    def make(model, x, y, dtype, steps):
        made = {k: v(model, dtype, steps) if callable(v) else v for k, v in settings.items()}
        leaves = [t for v in made.values() for t in (v.values() if isinstance(v, dict) else [v]) if isinstance(t, torch.Tensor)]
        base, hyperparameters, initial, loss = plain(x, y, dtype)
        return {**base, **made}, hyperparameters, initial, loss, leaves

    return make


def loss_hyperparameters(model, x, y, dtype, steps):
    settings, hyperparameters, initial, loss = plain(x, y, dtype)
    hyperparameters["unused"] = leaf([1.0, 2.0], dtype)
    leaves = [hyperparameters["l2"], hyperparameters["more"][0], hyperparameters["unused"]]
    return settings, hyperparameters, initial, loss, leaves


def initial_weights(model, x, y, dtype, steps):
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    settings, hyperparameters, _, loss = plain(x, y, dtype)
    return settings, hyperparameters, lambda: own, loss, list(own.values())


def initial_scales(model, x, y, dtype, steps):
    own = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    scales = leaf([1.1] * len(own), dtype)
    settings, hyperparameters, _, loss = plain(x, y, dtype)
    return settings, hyperparameters, lambda: {n: scales[i] * p for i, (n, p) in enumerate(own.items())}, loss, [scales]


def data(model, x, y, dtype, steps):
    images, weights = x.clone().requires_grad_(), leaf(torch.linspace(-1, 1, len(x)), dtype)

    def loss(model, index, hyperparameters):
        x, w = hyperparameters
        each = F.cross_entropy(model(x[index]), y[index], reduction="none")
        return (w[index].sigmoid() * each).mean()

    return {"lr": 0.1}, (images, weights), None, loss, [images, weights]


def steps_of(low, high):
    return lambda model, dtype, steps: leaf(torch.linspace(low, high, steps).double().mul(1000).round().div(1000), dtype)


def per_weight(value):
    return lambda model, dtype, steps: {
        n: leaf(value * torch.linspace(0.5, 1.5, p.numel()).reshape(p.shape), dtype) for n, p in model.named_parameters()
    }


def always(value):
    return lambda model, dtype, steps: leaf(value, dtype)


KINDS = {
    "lr": with_settings(lr=always(0.1)),
    "lr per step": with_settings(lr=steps_of(0.2, 0.02)),
    "lr per layer and step": with_settings(lr=lambda *a: {"[02].*": steps_of(0.1, 0.2)(*a), "*": always(0.05)(*a)}),
    "lr per weight": with_settings(lr=per_weight(0.1)),
    "momentum": with_settings(momentum=always(0.8)),
    "momentum per step": with_settings(momentum=steps_of(0.5, 0.95)),
    "momentum per layer": with_settings(momentum=lambda *a: {"*.weight": always(0.9)(*a), "*.bias": steps_of(0.6, 0.8)(*a)}),
    "dampening": with_settings(dampening=always(0.2)),
    "dampening per step, decay": with_settings(dampening=steps_of(0.0, 0.5), weight_decay=0.01),
    "dampening, decay per weight": with_settings(dampening=always(0.25), weight_decay=per_weight(0.01)),
    "weight decay": with_settings(weight_decay=always(0.01)),
    "weight decay per step": with_settings(weight_decay=steps_of(0.0, 0.05)),
    "weight decay per weight": with_settings(weight_decay=per_weight(0.01)),
    "loss hyperparameters": loss_hyperparameters,
    "initial weights": initial_weights,
    "initial scales": initial_scales,
    "data and example weights": data,
}

EVERYTHING = with_settings(lr=steps_of(0.1, 0.02), momentum=steps_of(0.8, 0.9), dampening=always(0.1), weight_decay=always(0.01))


class Gradients:
    """Trained weights, and gradients by the leaves of a kind and then by the model's own weights."""

    def __init__(self, trained, value, leaves, weights):
        value.backward()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in [*leaves, *weights]]
        self.trained, self.leaves, self.grads = trained, leaves, grads
        self.of_leaves = grads[: len(leaves)]


def by_train(name, make, dtype, adjoint, steps, seed=3, device="cpu"):
    model, x, y = (t.to(device) for t in problem(name, dtype))
    settings, hyperparameters, initial, loss, leaves = make(model, x, y, dtype, steps)
    weights = [] if initial else [p for p in model.parameters() if p.requires_grad]
    trained = rh.train(
        model,
        loss,
        batch_indices,
        steps=steps,
        optimizer=rh.SGD(**settings),
        hyperparameters=hyperparameters,
        initial=initial() if initial else None,
        adjoint=adjoint,
        seed=seed,
    )
    return Gradients(trained, validation(model, trained), leaves, weights)


@functools.cache
def by_unroll(name, make, steps, seed=3):
    model, x, y = problem(name, torch.float64)
    settings, hyperparameters, initial, loss, leaves = make(model, x, y, torch.float64, steps)
    weights = [] if initial else [p for p in model.parameters() if p.requires_grad]
    initial = initial() if initial else None
    trained = unroll(
        model, loss, batch_indices, steps=steps, **settings, hyperparameters=hyperparameters, initial=initial, seed=seed
    )
    return Gradients(trained, validation(model, trained), leaves, weights)


def direction_of(t):
    """Zero where the value is zero: no setting may be negative, so there are no central differences."""
    return (torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) + 0.3) * (t.detach() != 0)


def slope_by_differences(name, make, steps, adjoint=None, width=1e-5, seed=3):
    """Central differences of train() itself in float64 along one direction of all leaves. It shares no formula with anything."""
    values = []
    for sign in (1.0, -1.0):
        model, x, y = problem(name, torch.float64)
        settings, hyperparameters, initial, loss, leaves = make(model, x, y, torch.float64, steps)
        with torch.no_grad():
            for t in leaves:
                t += width * sign * direction_of(t)
            arguments = {"steps": steps, "hyperparameters": hyperparameters, "initial": initial() if initial else None}
            trained = rh.train(model, loss, batch_indices, optimizer=rh.SGD(**settings), adjoint=adjoint, seed=seed, **arguments)
            values.append(float(validation(model, trained)))
    return (values[0] - values[1]) / (2 * width)


def slope_of(gradients):
    return sum(float((g * direction_of(t)).sum()) for g, t in zip(gradients.of_leaves, gradients.leaves, strict=True))
