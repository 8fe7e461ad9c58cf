"""Gradients, velocities and weights that cannot be taken: refused at the step, by name, with nothing changed."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, refused, setting_gradients, take_steps, weights_of
from torch import Tensor, nn

import reversible_hypergrad as rh
from reversible_hypergrad.core import FORMATS

by_width = pytest.mark.parametrize("state_bits", [64, 32])
by_steps = pytest.mark.parametrize("steps", [0, 3], ids=["at-the-first-step", "later"])
LIMITS = {bits: (layout.weight_range, layout.velocity_range) for bits, layout in FORMATS.items()}


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
@pytest.mark.parametrize("factor", [1.0, -1.0, 1e6, -1e30], ids=lambda f: f"{f:g}-times-the-limit")
def test_gradient_out_of_range(factor: float, steps: int, state_bits: int) -> None:
    optimizer, parameters = make(state_bits, names=True)
    start = frozen(optimizer)
    closures = take_steps(optimizer, steps, scale=0.1)
    gradients = random_gradients(parameters, 50, 0.1)
    limit = LIMITS[state_bits][1]
    gradients[3][5] = 1.001 * factor * limit
    with refused(optimizer, OverflowError, "'layer3.weight'", f"+-{limit:g}", f"state_bits={state_bits}", "clip"):
        optimizer.step(setting_gradients(parameters, gradients))
    then_goes_on(optimizer, start, closures)


@by_width
@pytest.mark.parametrize("sign", [1, -1], ids=["up", "down"])
def test_velocity_out_of_range(sign: int, state_bits: int) -> None:
    """Gradients inside the range that add up: v = 0.9 * v + g passes the limit when g is 0.3 of it."""
    optimizer, parameters = make(state_bits, names=True, lr=1e-5)
    start = frozen(optimizer)
    limit = LIMITS[state_bits][1]
    gradients = random_gradients(parameters, 50, 0.1)
    gradients[0][4] = sign * 0.3 * limit
    closure = setting_gradients(parameters, gradients)
    taken = []
    for _ in range(4):
        if 0.3 * (1 - 0.9 ** (len(taken) + 1)) / 0.1 >= 1:
            break
        optimizer.step(closure)
        taken.append(closure)
    with refused(optimizer, OverflowError, "'layer0.weight'", "velocity", f"+-{limit:g}", f"state_bits={state_bits}"):
        optimizer.step(closure)
    then_goes_on(optimizer, start, taken)


@by_width
@by_steps
@pytest.mark.parametrize("lr", [1.0, 1e10, 1e300, 1.7e308], ids=lambda lr: f"lr-{lr:g}")
def test_weight_out_of_range(lr: float, steps: int, state_bits: int) -> None:
    optimizer, parameters = make(state_bits, names=True)
    closures = take_steps(optimizer, steps, scale=0.1)
    gradients = [torch.zeros_like(p) for p in parameters]
    limit = LIMITS[state_bits][0]
    gradients[1][2, 4] = 20.0 if state_bits == 32 else 4000.0
    for p in parameters:
        assert p.abs().max() < 16
    optimizer.param_groups[0]["lr"] = lr if state_bits == 32 or lr > 1 else 50.0
    if lr > 1:
        # Such a rate moves every weight of the group out of range, or is itself beyond the kernels' numbers.
        words: tuple[str, ...] = (f"+-{limit:g}", f"state_bits={state_bits}")
    else:
        words = ("'layer1.weight'", "weight", f"+-{limit:g}", f"state_bits={state_bits}")
    with refused(optimizer, OverflowError, *words):
        optimizer.step(setting_gradients(parameters, gradients))
    optimizer.rewind(reversed(closures))


@by_width
@pytest.mark.parametrize("value", [math.nan, math.inf, -1e6], ids=str)
def test_first_weights_out_of_range(value: float, state_bits: int) -> None:
    optimizer, parameters = make(state_bits, names=True)
    with torch.no_grad():
        parameters[2][7] = value
    with refused(optimizer, OverflowError, "'layer2.weight'", f"{LIMITS[state_bits][0]:g}", f"state_bits={state_bits}"):
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
