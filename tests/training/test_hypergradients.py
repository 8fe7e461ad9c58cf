"""Gradients of train() against a float64 unroll of the same dynamics, and both against finite differences."""

from __future__ import annotations

import pytest
import torch
from kinds import EVERYTHING, KINDS, by_train, by_unroll, error, slope_by_differences, slope_of
from models import MODELS

import reversible_hypergrad as rh

STEPS = 100


def largest_error(name, make, dtype, state_bits):
    """Relative: of any gradient, by the leaves of the kind or by the initial weights.

    With 64 bits a step rounds velocities to some 2^-41 of a tensor's first gradient, 5e-13, and weights to some 2^-42 of its
    largest one. A hundred such steps, amplified by training, bound what float64 models can reach. With 32 bits it is 2^-23 at
    momentum 0.9 and 2^-25, near the float32 of the model: two errors of one size, and the model's depends on the processor's
    order of summation (5e-6 to 1.1e-5 in the worst kind), so twice as much is allowed.
    """
    found = by_train(name, make, dtype, rh.Reversible(state_bits=state_bits), STEPS)
    expected = by_unroll(name, make, STEPS)
    return max(error(f, e) for f, e in zip(found.grads, expected.grads, strict=True))


PRECISIONS = [
    pytest.param(torch.float64, 64, 1e-9, id="float64-64"),
    pytest.param(torch.float32, 64, 1e-5, id="float32-64"),
    pytest.param(torch.float32, 32, 2e-5, id="float32-32"),
]


@pytest.mark.parametrize(("dtype", "state_bits", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hyperparameter(kind, dtype, state_bits, tolerance):
    """One of the loss's own hyperparameters has a derivative whose terms, of both signs, are some 20 times as large, and autograd
    gives each in the model's float32. So twice as much is allowed there, to plain floats, too (Snapshots: 6e-6)."""
    cancels = kind == "loss hyperparameters" and dtype == torch.float32
    assert largest_error("mlp", KINDS[kind], dtype, state_bits) < (2 * tolerance if cancels else tolerance)


@pytest.mark.parametrize(("dtype", "state_bits", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_model(name, dtype, state_bits, tolerance):
    assert largest_error(name, EVERYTHING, dtype, state_bits) < tolerance


@pytest.mark.parametrize("kind", ["lr per step", "lr per weight", "dampening", "weight decay per weight", "initial scales"])
def test_against_finite_differences_of_train_itself(kind):
    """Along one direction of all leaves; the unroll shares the formulas of a step, this shares nothing."""
    found = by_train("mlp", KINDS[kind], torch.float64, rh.Reversible(), STEPS, seed=0)
    assert slope_of(found) == pytest.approx(slope_by_differences("mlp", KINDS[kind], STEPS, seed=0), rel=1e-5)
