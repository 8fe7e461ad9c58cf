"""What the kernels that take the adjoint along must not be confused by."""

from __future__ import annotations

import pytest
import torch

import reversible_hypergrad as rh

STEPS = 70  # more than the rows of one table of inner products


class HandsBack(torch.autograd.Function):
    """(a*b).sum(), whose backward returns copies of its inputs: the products are then the directions themselves."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return (a * b).sum()

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return b.clone(), a.clone()


class Pair(torch.nn.Module):
    def __init__(self, dtypes=(torch.float32, torch.float32)):
        super().__init__()
        numbers = torch.Generator().manual_seed(0)
        self.a, self.b = (torch.nn.Parameter(torch.randn(600, generator=numbers).to(dtype)) for dtype in dtypes)


def hypergradients(model, loss, momentum, adjoint=None, dampening=0.0):
    settings = {
        "lr": torch.full((STEPS,), 0.02, requires_grad=True),
        "weight_decay": torch.tensor(0.1, requires_grad=True),
        "dampening": torch.tensor(dampening, requires_grad=True),
    }
    trained = rh.train(
        model,
        lambda model, batch, hyperparameters: loss(model.a, model.b),
        lambda step: None,
        steps=STEPS,
        optimizer=rh.SGD(momentum=momentum, **settings),
        adjoint=adjoint or rh.Reversible(),
    )
    downstream = trained["a"].double().square().sum() + trained["b"].double().sum()
    return torch.autograd.grad(downstream, [*settings.values(), *model.parameters()])


@pytest.mark.parametrize("momentum", [0.5, {"a": 0.5, "b": 0.8}], ids=["one momentum", "two momenta"])
def test_a_loss_that_hands_the_directions_back(momentum):
    plain = hypergradients(Pair(), lambda a, b: (a * b).sum(), momentum)
    mine = hypergradients(Pair(), HandsBack.apply, momentum)
    for one, other in zip(mine, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.5, {"a": 0.5, "b": 0.8}], ids=["one momentum", "two momenta"])
def test_float64_weights_beside_float32_ones(momentum):
    def loss(a, b):
        return (a * b).sum() + 0.5 * (a.square().sum() + b.square().sum())

    dtypes = torch.float32, torch.float64
    mine = hypergradients(Pair(dtypes), loss, momentum, dampening=0.25)
    expected = hypergradients(Pair(dtypes), loss, momentum, rh.Snapshots(), dampening=0.25)
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 63, 64, 65, 130])
def test_any_number_of_steps(steps):
    """Learning rates per step, in and beyond the table that collects their derivatives."""
    results = []
    for adjoint in (rh.Reversible(), rh.Reversible(segments=2) if steps > 1 else rh.Reversible(), rh.Snapshots()):
        lr, momentum = torch.full((steps, 1), 0.02, requires_grad=True), torch.tensor(0.9, requires_grad=True)
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1).double()
        x = torch.randn(8, 3, dtype=torch.float64)
        trained = rh.train(
            model,
            lambda model, batch, hyperparameters: model(batch).square().mean(),
            lambda step, x=x: x[step % 8],
            steps=steps,
            optimizer=rh.SGD(lr=lr, momentum=momentum),
            adjoint=adjoint,
        )
        results.append(torch.autograd.grad(sum(w.sum() for w in trained.values()), [lr, momentum]))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    for one, other in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)
