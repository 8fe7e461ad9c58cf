"""Training in plain floats is torch.optim.SGD's."""

from __future__ import annotations

import functools

import pytest
import torch
from models import batch_indices, cross_entropy, problem

import reversible_hypergrad as rh
from reversible_hypergrad.replay.environment import Environment, seed_step

STEPS = 50

STRATEGIES = {
    "snapshots": rh.Snapshots(),
    "checkpoint": rh.Checkpoint(),
    "recursive checkpoint": rh.RecursiveCheckpoint(slots=3),
    "unroll": rh.Unroll(),
    "forward mode": rh.ForwardMode(),
    "truncated": rh.Truncated(5),
    "conjugate gradient": rh.ConjugateGradient(3),
}
SETTINGS = {
    "momentum 0": {"lr": 0.1, "momentum": 0.0},
    "momentum 0, dampening": {"lr": 0.1, "momentum": 0.0, "dampening": 0.5},
    "momentum": {"lr": 0.1, "momentum": 0.9},
    "momentum 1": {"lr": 0.01, "momentum": 1.0},
    "Nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    "weight decay": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05},
    "all but Nesterov": {"lr": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.05},
    "Nesterov, weight decay": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True},
}


def loss_on(x, y):
    return lambda model, index, hyperparameters: cross_entropy(model(x[index]), y[index])


@functools.cache
def fifty_steps(settings):
    return by_torch("mlp", torch.float64, STEPS, **SETTINGS[settings])


def by_torch(name, dtype, steps, **settings):
    model, x, y = problem(name, dtype)
    loss = loss_on(x, y)
    optimizer = torch.optim.SGD(model.parameters(), **settings, foreach=False)
    with Environment.current().pinned():
        for step in range(steps):
            seed_step(4, step)
            optimizer.zero_grad()
            loss(model, batch_indices(step), None).backward()
            optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}


def by_train(name, dtype, steps, adjoint, **settings):
    model, x, y = problem(name, dtype)
    return rh.train(model, loss_on(x, y), batch_indices, steps=steps, optimizer=rh.SGD(**settings), adjoint=adjoint, seed=4)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fifty_steps_are_those_of_torch(strategy, settings):
    expected = fifty_steps(settings)
    found = by_train("mlp", torch.float64, STEPS, STRATEGIES[strategy], **SETTINGS[settings])
    for name, weight in found.items():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["convolution and batch norm", "LSTM", "transformer with dropout"])
def test_models(name):
    """The same path without a graph as a plain training loop, to rounding: 6e-8 a step in float32, which training amplifies."""
    settings = SETTINGS["all but Nesterov"]
    expected = by_torch(name, torch.float32, 10, **settings)
    found = by_train(name, torch.float32, 10, rh.Checkpoint(), **settings)
    for n, weight in found.items():
        torch.testing.assert_close(weight.detach(), expected[n], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["SiLU, Mish, group norm", "transformer with dropout"])
def test_without_gradients_the_weights_have_the_same_bits(name, strategy):
    recorded = by_train(name, torch.float32, 8, STRATEGIES[strategy], lr=0.1)
    with torch.no_grad():
        plain = by_train(name, torch.float32, 8, STRATEGIES[strategy], lr=0.1)
    assert all(torch.equal(recorded[n], w) and recorded[n].requires_grad and not w.requires_grad for n, w in plain.items())
    assert plain.report.kept_bytes == 0
