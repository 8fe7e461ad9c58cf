"""The norms of the gradient on its way back, and the warning where they explode."""

from __future__ import annotations

import warnings

import pytest
import torch

import reversible_hypergrad as rh

STEPS = 10
STRATEGIES = [rh.Reversible(), rh.Reversible(segments=3), rh.Snapshots(), rh.Checkpoint()]


def trained_on(curvature, adjoint, lr=0.1, **more):
    """One weight in a parabola: each step multiplies it by 1 - lr * curvature, and on the way back its gradient, too."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)

    def loss(model, batch, hyperparameters):
        return curvature / 2 * model.weight.square().sum()

    rule = rh.SGD(torch.tensor(lr, requires_grad=True), momentum=2.0**-16)
    return rh.train(model, loss, lambda step: None, steps=STEPS, optimizer=rule, adjoint=adjoint, **more)


@pytest.mark.parametrize("adjoint", STRATEGIES, ids=repr)
def test_norms(adjoint):
    trained = trained_on(5.0, adjoint)
    assert len(trained.report.adjoint_norms) == 0
    (3 * trained["weight"]).sum().backward()
    expected = [3 * 0.5 ** (STEPS - taken) for taken in range(STEPS + 1)]
    assert list(trained.report.adjoint_norms) == pytest.approx(expected, rel=1e-3)  # the momentum is not 0


@pytest.mark.parametrize("adjoint", STRATEGIES, ids=repr)
def test_a_warning_where_they_explode(adjoint):
    trained = trained_on(50.0, adjoint)
    with pytest.warns(RuntimeWarning, match=r"grew 1\.0e\+06-fold from step 10 back to step 0: training is chaotic there"):
        trained["weight"].sum().backward()


def test_no_warning_below():
    trained = trained_on(30.0, rh.Reversible())  # a thousandfold
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained["weight"].sum().backward()


def test_only_the_last_steps():
    trained = trained_on(50.0, rh.Truncated(3, rh.Reversible()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained["weight"].sum().backward()
    assert list(trained.report.adjoint_norms) == pytest.approx([64, 16, 4, 1], rel=1e-3)
