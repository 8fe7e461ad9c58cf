"""Gradients of train() against a float64 unroll of the same dynamics, and both against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import MODELS, batch_indices, problem, validation
from unroll import unroll

import reversible_hypergrad as rh

STEPS = 100


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


# Every maker gives (settings, hyperparameters, initial, loss, the leaves to compare), built afresh per dtype.


def plain(x, y, dtype):
    return {"lr": 0.1}, {"l2": leaf(-5.0, dtype), "more": [leaf(1.5, dtype)]}, None, penalty_loss(x, y)


def with_settings(**settings):
    def make(model, x, y, dtype):
        made = {k: v(model, dtype) if callable(v) else v for k, v in settings.items()}
        leaves = [t for v in made.values() for t in (v.values() if isinstance(v, dict) else [v]) if isinstance(t, torch.Tensor)]
        base, hyperparameters, initial, loss = plain(x, y, dtype)
        return {**base, **made}, hyperparameters, initial, loss, leaves

    return make


def loss_hyperparameters(model, x, y, dtype):
    settings, hyperparameters, initial, loss = plain(x, y, dtype)
    hyperparameters["unused"] = leaf([1.0, 2.0], dtype)
    return (
        settings,
        hyperparameters,
        initial,
        loss,
        [hyperparameters["l2"], hyperparameters["more"][0], hyperparameters["unused"]],
    )


def initial_weights(model, x, y, dtype):
    return *plain(x, y, dtype), [p for p in model.parameters() if p.requires_grad]


def initial_scales(model, x, y, dtype):
    own = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    scales = leaf([1.1] * len(own), dtype)
    settings, hyperparameters, _, loss = plain(x, y, dtype)
    return settings, hyperparameters, {n: scales[i] * p for i, (n, p) in enumerate(own.items())}, loss, [scales]


def data(model, x, y, dtype):
    images, weights = x.clone().requires_grad_(), leaf(torch.linspace(-1, 1, len(x)), dtype)

    def loss(model, index, hyperparameters):
        x, w = hyperparameters
        each = F.cross_entropy(model(x[index]), y[index], reduction="none")
        return (w[index].sigmoid() * each).mean()

    return {"lr": 0.1}, (images, weights), None, loss, [images, weights]


def steps_of(low, high):
    return lambda model, dtype: leaf(torch.linspace(low, high, STEPS).double().mul(1000).round().div(1000), dtype)


def per_weight(value):
    return lambda model, dtype: {
        n: leaf(value * torch.linspace(0.5, 1.5, p.numel()).reshape(p.shape), dtype) for n, p in model.named_parameters()
    }


KINDS = {
    "lr": with_settings(lr=lambda m, d: leaf(0.1, d)),
    "lr per step": with_settings(lr=steps_of(0.2, 0.02)),
    "lr per layer and step": with_settings(lr=lambda m, d: {"[02].*": steps_of(0.1, 0.2)(m, d), "*": leaf(0.05, d)}),
    "lr per weight": with_settings(lr=per_weight(0.1)),
    "momentum": with_settings(momentum=lambda m, d: leaf(0.8, d)),
    "momentum per step": with_settings(momentum=steps_of(0.5, 0.95)),
    "momentum per layer": with_settings(momentum=lambda m, d: {"*.weight": leaf(0.9, d), "*.bias": steps_of(0.6, 0.8)(m, d)}),
    "dampening": with_settings(dampening=lambda m, d: leaf(0.2, d)),
    "dampening per step, decay": with_settings(dampening=steps_of(0.0, 0.5), weight_decay=0.01),
    "dampening, decay per weight": with_settings(dampening=lambda m, d: leaf(0.25, d), weight_decay=per_weight(0.01)),
    "weight decay": with_settings(weight_decay=lambda m, d: leaf(0.01, d)),
    "weight decay per step": with_settings(weight_decay=steps_of(0.0, 0.05)),
    "weight decay per weight": with_settings(weight_decay=per_weight(0.01)),
    "loss hyperparameters": loss_hyperparameters,
    "initial weights": initial_weights,
    "initial scales": initial_scales,
    "data and example weights": data,
}

EVERYTHING = with_settings(
    lr=steps_of(0.1, 0.02),
    momentum=steps_of(0.8, 0.9),
    dampening=lambda m, d: leaf(0.1, d),
    weight_decay=lambda m, d: leaf(0.01, d),
)


def compare(name, make, dtype, state_bits, steps=STEPS, seed=3):
    """Relative errors: of the trained weights, and of every gradient (the leaves of the kind, and the initial weights).

    A velocity is rounded to 2^-47 and carries noise of up to d quanta for a momentum n/d, 7e-14 at 9/10 and 7e-12 at
    999/1000. That bounds what float64 models can reach with gradients of order 0.01 to 1e-8.
    """
    results = []
    for exact in (False, True):
        kind = torch.float64 if exact else dtype
        model, x, y = problem(name, kind)
        settings, hyperparameters, initial, loss, leaves = make(model, x, y, kind)
        arguments = {"steps": steps, "hyperparameters": hyperparameters, "initial": initial, "seed": seed}
        if exact:
            trained = unroll(model, loss, batch_indices, **settings, **arguments)
        else:
            adjoint = rh.Reversible(state_bits=state_bits)
            trained = rh.train(model, loss, batch_indices, optimizer=rh.SGD(**settings), adjoint=adjoint, **arguments)
        weights = [] if initial else [p for p in model.parameters() if p.requires_grad]
        validation(model, trained).backward()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in [*leaves, *weights]]
        results.append((list(trained.values()), grads))
    (weights, found), (exact_weights, expected) = results
    whole = error(torch.cat([w.flatten() for w in weights]).detach(), torch.cat([w.flatten() for w in exact_weights]).detach())
    return whole, [error(f, e) for f, e in zip(found, expected, strict=True)]


PRECISIONS = [
    pytest.param(torch.float64, 64, 1e-9, id="float64-64"),
    pytest.param(torch.float32, 64, 1e-5, id="float32-64"),
    pytest.param(torch.float32, 32, 1e-3, id="float32-32"),
]


@pytest.mark.parametrize(("dtype", "state_bits", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hyperparameter(kind, dtype, state_bits, tolerance):
    _, errors = compare("mlp", KINDS[kind], dtype, state_bits)
    assert max(errors) < tolerance


@pytest.mark.parametrize(("dtype", "state_bits", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name, dtype, state_bits, tolerance):
    _, errors = compare(name, EVERYTHING, dtype, state_bits)
    assert max(errors) < tolerance


@pytest.mark.parametrize("kind", ["lr per step", "lr per weight", "dampening", "weight decay per weight", "initial scales"])
def test_against_finite_differences_of_train_itself(kind):
    """Along one random direction of all leaves; the unroll shares the formulas of a step, this shares nothing."""
    model, x, y = problem("mlp", torch.float64)
    direction, values = [], []
    for sign in (0.0, 1.0, -1.0):
        settings, hyperparameters, initial, loss, leaves = KINDS[kind](model, x, y, torch.float64)
        if initial is not None:
            with torch.no_grad():
                leaves[0] += 1e-5 * sign
            own = {n: p.detach() for n, p in model.named_parameters()}
            initial = {n: leaves[0][i] * p for i, (n, p) in enumerate(own.items())}
            direction = direction or [torch.ones_like(leaves[0])]
        elif not direction:
            direction = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape) + 0.3 for t in leaves]
        if initial is None:
            with torch.no_grad():
                for t, d in zip(leaves, direction, strict=True):
                    t += 1e-5 * sign * d
        arguments = {"steps": STEPS, "hyperparameters": hyperparameters, "initial": initial}
        trained = rh.train(model, loss, batch_indices, optimizer=rh.SGD(**settings), **arguments)
        value = validation(model, trained)
        values.append(value.item())
        if sign == 0.0:
            gradients = torch.autograd.grad(value, leaves)
            slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    assert slope == pytest.approx((values[1] - values[2]) / 2e-5, rel=1e-5)
