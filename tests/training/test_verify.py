"""rh.verify compares a whole hypergradient with runs at other inputs, and tells wrong from chaotic."""

from __future__ import annotations

import math

import pytest
import torch
from runs import Run

import reversible_hypergrad as rh


def of_run(run):
    """The validation loss of a run of tests/training/runs.py as a function of its learning rates and penalty."""

    def outer(inputs):
        optimizer = run.optimizer(inputs["lr"])
        trained = run.train(run.adjoint, optimizer=optimizer, hyperparameters=inputs["l2"])
        return run.value(trained)

    return outer, {"lr": run.lr, "l2": run.l2}


def verified(rule="SGD", adjoint=None, **more):
    torch.manual_seed(0)
    run = Run(rule, **more)
    run.adjoint = adjoint
    return rh.verify(*of_run(run))


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
@pytest.mark.parametrize("adjoint", [rh.Reversible(), rh.Snapshots()], ids=repr)
def test_right(rule, adjoint):
    found = verified(rule, adjoint)
    assert found
    assert found.verdict == "right"
    assert found.difference == pytest.approx(found.derivative, rel=1e-4)
    assert found.reach >= 0.1 / 4**3
    assert not found.wrong
    assert str(found).startswith("right: along a random direction the gradient gives ")


def test_right_in_float32():
    assert verified(dtype=torch.float32).verdict == "right"


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_wrong_names_the_input():
    run = Run()
    run.adjoint = None
    outer, inputs = of_run(run)
    found = rh.verify(lambda inputs: outer({**inputs, "l2": Doubled.apply(inputs["l2"])}), inputs)
    assert found.verdict == "wrong"
    assert found.wrong == ["['l2']"]
    assert "by ['l2']. rh.check_replayable tells" in str(found)


def test_a_small_error_is_found():
    """Of a hundredth, in float64."""
    x = torch.linspace(1, 2, 5, dtype=torch.float64, requires_grad=True)
    assert rh.verify(lambda x: x.exp().sum(), x, directions=3).verdict == "right"
    assert rh.verify(lambda x: x.exp().sum() + 0.01 * (x.detach() - x).sum(), x, directions=3).wrong == ["inputs"]


def test_an_approximation_is_wrong():
    assert verified(adjoint=rh.Truncated(2)).verdict == "wrong"


def logistic(steps):
    """x -> r x (1 - x), whose derivative grows by about 1.6 per step at r = 3.9."""

    def outer(inputs):
        x = inputs["x"]
        for _ in range(steps):
            x = 3.9 * x * (1 - x)
        return x

    return outer, {"x": torch.tensor(0.3, dtype=torch.float64, requires_grad=True)}


@pytest.mark.parametrize("steps", [30, 300])
def test_chaotic(steps):
    """After 30 steps the derivative is right and holds for tiny changes; after 300 no difference settles."""
    found = rh.verify(*logistic(steps))
    assert found.verdict == "chaotic"
    assert not found
    assert (found.reach > 0) == (steps == 30)
    assert "training is chaotic" in str(found)


def test_the_same_map_before_chaos():
    assert rh.verify(*logistic(3)).verdict == "right"


def test_undecided():
    x = torch.ones(3, requires_grad=True)
    found = rh.verify(lambda x: 1e6 + (x * 1e-4).sum(), x)
    assert found.verdict == "undecided"
    assert "drown in rounding" in str(found)


def test_nothing_depends_on_an_input():
    x = torch.ones(3, requires_grad=True)
    assert rh.verify(lambda x: (0 * x).sum(), x)


def test_steps_outside_of_the_domain_are_left_out():
    x = torch.tensor(0.999, dtype=torch.float64, requires_grad=True)

    def outer(x):
        if float(x.detach()) >= 1:
            raise ValueError("momentum: expected less than 1")
        return x.square()

    found = rh.verify(outer, x)
    assert found
    assert math.isnan(next(iter(found.differences.values())))


def test_errors():
    x = torch.ones(3, requires_grad=True)
    counts = []
    with pytest.raises(ValueError, match="inputs: expected tensors that require grad, got none"):
        rh.verify(lambda x: x.sum(), torch.ones(3))
    with pytest.raises(TypeError, match=r"outer: expected it to return a scalar tensor, got shape \(3,\)"):
        rh.verify(lambda x: x * 2, x)
    with pytest.raises(ValueError, match="outer: expected a result that depends on the inputs"):
        rh.verify(lambda _: torch.ones(()), x)
    with pytest.raises(ValueError, match="outer: expected the same result whenever it is called"):
        rh.verify(lambda x: counts.append(1) or x.sum() * len(counts), x)
    with pytest.raises(ValueError, match="directions: expected an integer >= 1, got 0"):
        rh.verify(lambda x: x.sum(), x, directions=0)

    def only_here(x):
        if not torch.equal(x.detach(), torch.ones(3)):
            raise ValueError("elsewhere")
        return x.sum()

    with pytest.raises(ValueError, match="elsewhere"):
        rh.verify(only_here, x)
    assert x.grad is None
