"""Tasks that are trained as one run of stacked weights are trained as each alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reversible_hypergrad as rh

TASKS, STEPS = 4, 10


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x = torch.randn(STEPS, TASKS, 12, 6).double()
    y = torch.randint(3, (STEPS, TASKS, 12))
    l2 = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    lr = torch.full((STEPS, 1), 0.1, dtype=torch.float64, requires_grad=True)
    return model, x, y, l2, lr


def loss(output, y, weights, l2):
    return F.cross_entropy(output.flatten(0, -2), y.flatten()) + l2.exp() * sum(w.square().sum() for w in weights)


@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Snapshots(), rh.Unroll()], ids=repr)
def test_as_each_alone(adjoint):
    model, x, y, l2, lr = problem()
    alone = [torch.zeros_like(l2), torch.zeros_like(lr)]
    results = []
    for i in range(TASKS):
        trained = rh.train(
            model,
            lambda model, batch, l2, i=i: loss(model(batch[0][i]), batch[1][i], model.parameters(), l2),
            list(zip(x, y, strict=True)),
            optimizer=rh.SGD(lr, momentum=0.9),
            hyperparameters=l2,
            adjoint=adjoint,
        )
        results.append(trained)
        value = F.cross_entropy(torch.func.functional_call(model, dict(trained), x[0, i]), y[0, i])
        alone = [a + g for a, g in zip(alone, torch.autograd.grad(value, [l2, lr]), strict=True)]

    def of_all(model, batch, l2):
        outputs = model(batch[0])
        mean = F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten()) * TASKS
        return mean + l2.exp() * sum(w.square().sum() for w in model.parameters())

    stacked = rh.Stacked(model, TASKS)
    trained = rh.train(
        stacked,
        of_all,
        list(zip(x, y, strict=True)),
        optimizer=rh.SGD(lr, momentum=0.9),
        hyperparameters=l2,
        adjoint=adjoint,
    )
    outputs = torch.func.functional_call(stacked, dict(trained), x[0])
    value = F.cross_entropy(outputs.flatten(0, 1), y[0].flatten()) * TASKS
    together = torch.autograd.grad(value, [l2, lr])
    # Sums of float64 in another order; in fixed point quanta are a stack's, not a task's: 2^-50 of the largest number.
    for name, weights in trained.items():
        for i, own in enumerate(results):
            torch.testing.assert_close(weights[i], own[name.removeprefix("model.")], rtol=1e-9, atol=1e-12)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_it_begins_at_the_models_weights_or_at_zero():
    layer = nn.Linear(4, 2)
    x = torch.randn(3, 5, 4)
    torch.testing.assert_close(rh.Stacked(layer, 3)(x), layer(x))
    assert not rh.Stacked(layer, 3, zero=True)(x).any()
    assert layer.weight.shape == (2, 4)


def test_ties_and_frozen_parameters_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    stacked = rh.Stacked(model, 2)
    assert stacked.model[1].weight is stacked.model[0].weight
    assert not stacked.model[2].bias.requires_grad
    x = torch.randn(2, 7, 4)
    torch.testing.assert_close(stacked(x), model(x))


def test_dropout_differs_between_copies():
    torch.manual_seed(0)
    y = rh.Stacked(nn.Dropout(0.5), 2)(torch.ones(2, 100))
    assert not torch.equal(y[0], y[1])


def test_bad_input():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        rh.Stacked("linear", 2)
    with pytest.raises(ValueError, match="count: expected an integer >= 1, got 0"):
        rh.Stacked(nn.Linear(2, 2), 0)
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected a tensor stacked along its first dimension, of size 3, got"):
        rh.Stacked(nn.Linear(2, 2), 3)(torch.ones(2, 2))
