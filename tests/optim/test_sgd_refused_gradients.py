"""Gradients and weights that are not finite, or would not stay so: refused at the step, by name, with nothing changed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, refused, setting_gradients, take_steps, weights_of
from torch import Tensor, nn

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])
by_steps = pytest.mark.parametrize("steps", [0, 3], ids=["at-the-first-step", "later"])


def make(state_bits: int, names: bool = False, **settings: Any) -> tuple[rh.ReversibleSGD, list[nn.Parameter]]:
    """Two groups of two parameters; sizes around a block of the kernels."""
    parameters = random_parameters((9,), (3, 5), (600,), (17,))
    named: list[Any] = [(f"layer{i}.weight", p) for i, p in enumerate(parameters)] if names else list(parameters)
    groups = [{"params": named[:2]}, {"params": named[2:], "momentum": 0.5}]
    return rh.ReversibleSGD(groups, **{"lr": 0.01, "state_bits": state_bits, **settings}), parameters


def then_goes_on(optimizer: rh.ReversibleSGD, start: Any, closures: list[Any]) -> None:
    """After a refusal, training and rewinding to the start must still work."""
    more = take_steps(optimizer, 2, first=100, scale=0.1)
    optimizer.rewind(reversed([*closures, *more]))
    assert frozen(optimizer) == start


@by_width
@by_steps
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("names", [False, True], ids=["positions", "names"])
def test_a_gradient_that_is_not_finite(value: float, steps: int, names: bool, state_bits: int) -> None:
    optimizer, parameters = make(state_bits, names)
    start = frozen(optimizer)
    closures = take_steps(optimizer, steps, scale=0.1)
    gradients = random_gradients(parameters, 50, 0.1)
    gradients[2][-1] = value
    name = "parameter 'layer2.weight'" if names else "parameter 0 of group 1"
    with refused(optimizer, FloatingPointError, name, "not finite"):
        optimizer.step(setting_gradients(parameters, gradients))
    then_goes_on(optimizer, start, closures)


@by_width
@by_steps
@pytest.mark.parametrize("bad", range(4))
def test_what_moved_before_is_taken_back(bad: int, steps: int, state_bits: int) -> None:
    """The other group, and scales that were chosen by this step's gradients, or grew in it."""
    optimizer, parameters = make(state_bits)
    start = frozen(optimizer)
    closures = take_steps(optimizer, steps, scale=0.1)
    gradients = random_gradients(parameters, 50, 1e6)
    gradients[bad].view(-1)[-1] = math.nan
    with refused(optimizer, FloatingPointError, f"parameter {bad % 2} of group {bad // 2}", "not finite"):
        optimizer.step(setting_gradients(parameters, gradients))
    twin, _ = make(state_bits)
    take_steps(twin, steps, scale=0.1)
    take_steps(twin, 3, first=70, scale=1e-3)
    more = take_steps(optimizer, 3, first=70, scale=1e-3)
    assert frozen(optimizer) == frozen(twin)
    optimizer.rewind(reversed([*closures, *more]))
    assert frozen(optimizer) == start


def test_velocities_beyond_the_floats() -> None:
    """float32 arithmetic of 32-bit state ends at 2^120; 64-bit state holds what a float32 gradient can be."""
    parameters = random_parameters((9,), (20,))
    for state_bits in (64, 32):
        optimizer = rh.ReversibleSGD(
            [("small", parameters[0]), ("large", parameters[1])], lr=1e-38, momentum=1.0, state_bits=state_bits
        )
        closures = take_steps(optimizer, 2, scale=0.1)
        closure = setting_gradients(parameters, [torch.zeros(9), torch.full((20,), 3e38)])
        if state_bits == 64:
            closures += [closure] * 5
            for _ in range(5):
                optimizer.step(closure)
        else:
            with refused(optimizer, OverflowError, "'large'", "state of its optimizer", "range of floating-point", "clip"):
                optimizer.step(closure)
        optimizer.rewind(reversed(closures))


# A rate that takes weights beyond what the dtype holds.
RATES = {torch.float16: 1e6, torch.bfloat16: 1e39, torch.float32: 1e39, torch.float64: 1.7e308}


@by_width
@by_steps
@pytest.mark.parametrize("dtype", RATES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_weights_beyond_the_floats_of_their_dtype(dtype: torch.dtype, steps: int, state_bits: int) -> None:
    parameters = random_parameters((600,), (9,), dtype=dtype)
    optimizer = rh.ReversibleSGD([("first", parameters[0]), ("second", parameters[1])], lr=0.1, state_bits=state_bits)
    start = frozen(optimizer)
    closures = take_steps(optimizer, steps)
    optimizer.param_groups[0]["lr"] = RATES[dtype]
    gradients = random_gradients(parameters, 9, scale=10.0)
    gradients[0].zero_()
    with refused(
        optimizer, OverflowError, "'first'" if steps else "'second'", "a weight", "range of floating-point", "learning rate"
    ):
        optimizer.step(setting_gradients(parameters, gradients))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.rewind(reversed([*closures, *take_steps(optimizer, 2)]))
    assert frozen(optimizer) == start


@by_width
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_first_weights_that_are_not_finite(value: float, state_bits: int) -> None:
    optimizer, parameters = make(state_bits, names=True)
    with torch.no_grad():
        parameters[2][7] = value
    with refused(optimizer, OverflowError, "'layer2.weight'", "finite"):
        take_steps(optimizer, 1)
    with torch.no_grad():
        parameters[2][7] = 0.5
    take_steps(optimizer, 1)


@by_steps
@pytest.mark.parametrize("group", [0, 1])
def test_sparse_gradient(steps: int, group: int) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    (dense,) = random_parameters((4,))
    params = [[dense], [embedding.weight]]
    optimizer = rh.ReversibleSGD([{"params": p} for p in (params if group else params[::-1])], lr=0.1)
    closures = take_steps(optimizer, steps)
    dense.grad, embedding.weight.grad = torch.ones(4), None
    embedding(torch.tensor([1, 2])).sum().backward()
    with refused(optimizer, RuntimeError, f"parameter 0 of group {group}", "sparse", "to_dense"):
        optimizer.step()
    optimizer.rewind(reversed(closures))


@by_width
def test_closure_that_raises_in_step(state_bits: int) -> None:
    optimizer, _ = make(state_bits)
    start = frozen(optimizer)
    closures = take_steps(optimizer, 2, scale=0.1)

    def closure() -> Tensor:
        raise KeyError("batch")

    with refused(optimizer, KeyError, "batch"):
        optimizer.step(closure)
    then_goes_on(optimizer, start, closures)


def test_extreme_settings_without_gradient_do_no_harm() -> None:
    """0 * infinity must not appear: a huge but finite learning rate moves nothing that has no velocity."""
    optimizer, parameters = make(64, lr=1.7e308)
    before = weights_of(optimizer)
    with contextlib.suppress(OverflowError, ValueError):
        optimizer.step(setting_gradients(parameters, [torch.zeros_like(p) for p in parameters]))
    assert weights_of(optimizer) == before


@by_width
@pytest.mark.parametrize("setting", ["weight_decay", "dampening"])
def test_extreme_decay_and_dampening(setting: str, state_bits: int) -> None:
    optimizer, parameters = make(state_bits)
    closures = take_steps(optimizer, 2, scale=0.1)
    optimizer.param_groups[0][setting] = 1.7e308
    with refused(optimizer, (OverflowError, ValueError, FloatingPointError), "parameter"):  # type: ignore[arg-type]
        optimizer.step(setting_gradients(parameters, random_gradients(parameters, 1, 0.1)))
    optimizer.rewind(reversed(closures))
