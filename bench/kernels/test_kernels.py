"""A step, its undoing alone and with its adjoint, and the NumPy core's contraction, at several sizes;
torch.optim.SGD(fused) is the yardstick."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import reversible_hypergrad as rh
from bench.backward import Backward
from reversible_hypergrad import core

Timed = Callable[..., None]


def parameter(weights: int) -> torch.nn.Parameter:
    torch.manual_seed(0)
    made = torch.nn.Parameter(torch.randn(weights) * 0.1)
    made.grad = torch.randn(weights) * 1e-3
    return made


def reversible(weights: int, state_bits: int) -> rh.ReversibleSGD:
    optimizer = rh.ReversibleSGD([parameter(weights)], lr=1e-3, momentum=0.9, state_bits=state_bits)
    optimizer.step()  # so that undoing never dissolves the state
    return optimizer


def test_yardstick(timed: Timed, weights: int) -> None:
    timed(torch.optim.SGD([parameter(weights)], lr=1e-3, momentum=0.9, fused=True).step)


@pytest.mark.parametrize("state_bits", [32, 64])
def test_step(timed: Timed, weights: int, state_bits: int) -> None:
    optimizer = reversible(weights, state_bits)
    timed(lambda: optimizer.step(), after=lambda: optimizer.step_back(lambda: None))


@pytest.mark.parametrize("state_bits", [32, 64])
def test_undo(timed: Timed, weights: int, state_bits: int) -> None:
    optimizer = reversible(weights, state_bits)
    timed(lambda: optimizer.step_back(lambda: None), before=lambda: optimizer.step())


def backward(weights: int, state_bits: int) -> Backward:
    given = parameter(weights)
    assert given.grad is not None
    return Backward([given.detach()], [given.grad], state_bits, weight_decay=1e-4)


@pytest.mark.parametrize("state_bits", [32, 64])
def test_back(timed: Timed, weights: int, state_bits: int) -> None:
    run = backward(weights, state_bits)
    timed(run.back, before=run.step)


@pytest.mark.parametrize("state_bits", [32, 64])
def test_back_in_torch(timed: Timed, weights: int, state_bits: int) -> None:
    run = backward(weights, state_bits)
    timed(run.back_in_torch, before=run.step)


@pytest.mark.parametrize("state_bits", [32, 64])
def test_contract(timed: Timed, weights: int, state_bits: int) -> None:
    values = np.random.default_rng(0).integers(-(10**6), 10**6, weights).astype(core.FORMATS[state_bits].dtype)
    timed(lambda: core.contract(values, 1, 1))


@pytest.mark.parametrize("state_bits", [32, 64])
def test_expand(timed: Timed, weights: int, state_bits: int) -> None:
    values = np.random.default_rng(0).integers(-(10**6), 10**6, weights).astype(core.FORMATS[state_bits].dtype)
    contracted, planes = core.contract(values, 1, 1)
    timed(lambda: core.expand(contracted, planes, 1, 1))
