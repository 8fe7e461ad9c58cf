"""A step, its undoing alone and with its adjoint, and the NumPy core's information buffer, at several sizes;
torch.optim.SGD(fused) is the yardstick."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

import reversible_hypergrad as rh
from bench.backward import Backward
from reversible_hypergrad import core

Timed = Callable[..., None]
NINE_TENTHS = Fraction(9, 10)


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
    values = np.random.default_rng(0).integers(-(10**6), 10**6, weights)
    buffer = core.InformationBuffer(weights, state_bits)
    decayed = core.InformationBuffer(weights, state_bits).contract(values, NINE_TENTHS)
    timed(lambda: buffer.contract(values, NINE_TENTHS), after=lambda: buffer.expand(decayed, NINE_TENTHS))
    assert buffer.is_empty()


@pytest.mark.parametrize("state_bits", [32, 64])
def test_expand(timed: Timed, weights: int, state_bits: int) -> None:
    values = np.random.default_rng(0).integers(-(10**6), 10**6, weights)
    buffer = core.InformationBuffer(weights, state_bits)
    decayed = core.InformationBuffer(weights, state_bits).contract(values, NINE_TENTHS)
    timed(lambda: buffer.expand(decayed, NINE_TENTHS), before=lambda: buffer.contract(values, NINE_TENTHS))
    assert buffer.is_empty()


@pytest.mark.parametrize("state_bits", [32, 64])
def test_push(timed: Timed, weights: int, state_bits: int) -> None:
    digits = np.random.default_rng(0).integers(0, 10, weights)
    buffer = core.InformationBuffer(weights, state_bits)
    timed(lambda: buffer.push(digits, 10), after=lambda: buffer.pop(10))
    assert buffer.is_empty()


@pytest.mark.parametrize("state_bits", [32, 64])
def test_pop(timed: Timed, weights: int, state_bits: int) -> None:
    digits = np.random.default_rng(0).integers(0, 10, weights)
    buffer = core.InformationBuffer(weights, state_bits)
    timed(lambda: buffer.pop(10), before=lambda: buffer.push(digits, 10))
    assert buffer.is_empty()
