"""Losses that take gradients by their inputs: penalties on them, and equations of physics."""

from __future__ import annotations

import pytest
import torch
from runs import STRATEGIES
from torch import nn

import reversible_hypergrad as rh

ALL = {**STRATEGIES, "forward mode": rh.ForwardMode()}
STEPS = 12


def network():
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def by_inputs(y, x):
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def penalty(model, x, weight):
    """Of a copy of the inputs."""
    x = x.detach().requires_grad_()
    y = model(x)
    return (y - x.sin().prod(1, keepdim=True)).square().mean() + weight * (by_inputs(y, x).norm(dim=1) - 1).square().mean()


def in_place(model, x, weight):
    """Of the batch's own tensor."""
    x.requires_grad_()
    y = model(x)
    return y.square().mean() + weight * by_inputs(y, x).square().sum(1).mean()


def physics(model, x, weight):
    """y'' = -y in the first direction, and a value on the border."""
    x = x.clone().requires_grad_()
    y = model(x)
    first = by_inputs(y, x)[:, :1]
    second = by_inputs(first, x)[:, :1]
    return (second + y).square().mean() + weight * (model(x.detach() * 0) - 1).square().mean()


def inner_step(model, x, weight):
    """One step of a learner inside the loss, whose own weights nobody holds."""
    own = torch.zeros(2, 1, dtype=x.dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad((model(x) - x @ own).square().mean(), own, create_graph=True)
    return (model(x) - x @ (own - weight * gradient)).square().mean() + 0.1 * model(x).square().mean()


LOSSES = {"penalty": penalty, "in place": in_place, "physics": physics, "inner step": inner_step}


def unrolled(loss, model, batches, weight, rate):
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    first, velocity = weights, {name: torch.zeros_like(p) for name, p in weights.items()}
    for x in batches:
        value = loss(lambda x, own=weights: torch.func.functional_call(model, own, (x,)), x.detach(), weight)
        gradients = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        velocity = {name: 0.9 * v + g for (name, v), g in zip(velocity.items(), gradients, strict=True)}
        weights = {name: w - rate * velocity[name] for name, w in weights.items()}
    return torch.autograd.grad(sum(w.square().sum() for w in weights.values()), [weight, rate, *first.values()])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("strategy", ALL)
def test_against_an_unroll(strategy, name):
    torch.manual_seed(0)
    model, batches, loss = network(), torch.randn(STEPS, 8, 2).double(), LOSSES[name]
    weight, rate = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, 0.05))
    expected = unrolled(loss, model, batches, weight, rate)
    leaves = [weight, rate, *(model.parameters() if strategy != "forward mode" else [])]
    trained = rh.train(model, loss, batches, optimizer=rh.SGD(rate), hyperparameters=weight, adjoint=ALL[strategy])
    found = torch.autograd.grad(sum(w.square().sum() for w in trained.values()), leaves)
    for a, b in zip(found, expected, strict=False):
        # As of other losses in float64: the integers' quanta, and the order of sums.
        assert (a - b).norm() < 1e-8 * b.norm()
    assert not batches.requires_grad
    assert trained.report.restored


def test_a_batch_stays_as_it_is():
    batches = list(torch.randn(STEPS, 8, 2).double())
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    trained = rh.train(network(), in_place, batches, optimizer=rh.SGD(0.05), hyperparameters=weight)
    sum(w.square().sum() for w in trained.values()).backward()
    assert not any(x.requires_grad for x in batches)


def test_a_loss_along_the_way():
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gradients = []
    for adjoint in (rh.Reversible(), rh.Unroll(), rh.ForwardMode()):
        torch.manual_seed(0)
        model, batches = network(), torch.randn(STEPS, 8, 2).double()
        curve = rh.LossAt(penalty, torch.randn(8, 2).double(), steps=[0, 5, STEPS])
        arguments = {"optimizer": rh.SGD(0.05), "hyperparameters": weight, "adjoint": adjoint, "readouts": {"curve": curve}}
        trained = rh.train(model, penalty, batches, **arguments)
        gradients += torch.autograd.grad(trained.readouts["curve"].sum(), weight)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=0)
    torch.testing.assert_close(gradients[2], gradients[1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("strategy", ALL)
def test_inputs_that_want_gradients_themselves_are_refused(strategy):
    """They would stay without one: data to be learned are hyperparameters."""
    batches = [x.requires_grad_() for x in torch.randn(STEPS, 8, 2).double()]
    with pytest.raises(ValueError, match=r"its gradient would be lost.*x = x.detach\(\).requires_grad_\(\)"):
        rh.train(network(), in_place, batches, optimizer=rh.SGD(0.05), hyperparameters=0.3, adjoint=ALL[strategy])
