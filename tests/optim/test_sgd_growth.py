"""Gradients, velocities and weights that outgrow their integers get larger quanta, and every step can still be undone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optim_problems import (
    Closure,
    bits,
    frozen,
    quanta,
    random_gradients,
    random_parameters,
    refused,
    setting_gradients,
    take_steps,
)
from torch import nn

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    set_num_threads(1)


def run(optimizer: rh.ReversibleSGD, gradients_of: Callable[[int], list[torch.Tensor]], steps: int) -> None:
    """There, and back with every 97th state compared."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    closures: list[Closure] = []
    marks = []
    for step in range(steps):
        marks.append(frozen(optimizer) if step % 97 == 0 else None)
        closures.append(setting_gradients(parameters, gradients_of(step)))
        optimizer.step(closures[-1])
    for closure in reversed(closures):
        optimizer.step_back(closure)
        mark = marks.pop()
        assert mark is None or frozen(optimizer) == mark
    assert optimizer.memory()["information_bytes"] == 0


def relative_to_torch(state_bits: int, gradients_of: Callable[[int], list[torch.Tensor]], steps: int, lr: float) -> float:
    """How far weights are from float64 SGD's, in units of how far these have moved."""
    ours = random_parameters((9,), (600,))
    theirs = [nn.Parameter(p.detach().double()) for p in ours]
    start = [p.detach().clone() for p in theirs]
    optimizers = rh.ReversibleSGD(ours, lr=lr, state_bits=state_bits), torch.optim.SGD(theirs, lr=lr, momentum=0.9)
    for step in range(steps):
        for p, q, gradient in zip(ours, theirs, gradients_of(step), strict=True):
            p.grad, q.grad = gradient, gradient.double()
        for optimizer in optimizers:
            optimizer.step()
    return max(((p.double() - q).abs().max() / (q - s).abs().max()).item() for p, q, s in zip(ours, theirs, start, strict=True))


def spike(step: int) -> list[torch.Tensor]:
    return random_gradients(random_parameters((9,), (600,)), step, 1e12 if step == 20 else 1.0)


def sweep(step: int) -> list[torch.Tensor]:
    """From 1e-12 to 1e4 in 600 steps."""
    return random_gradients(random_parameters((9,), (600,)), step, 10.0 ** (-12 + 16 * step / 600))


@by_width
@pytest.mark.parametrize("lr", [0.1, 1e-13])
def test_a_spike_is_undone(lr: float, state_bits: int) -> None:
    run(rh.ReversibleSGD(random_parameters((9,), (600,)), lr=lr, state_bits=state_bits), spike, 100)


@by_width
def test_a_sweep_is_undone(state_bits: int) -> None:
    run(rh.ReversibleSGD(random_parameters((9,), (600,)), lr=0.01, state_bits=state_bits), sweep, 600)


@by_width
@pytest.mark.parametrize("gradients_of", [spike, sweep])
def test_growing_velocities_stay_exact(gradients_of: Callable[[int], list[torch.Tensor]], state_bits: int) -> None:
    """The last steps are by far the largest, so errors count from the quanta that they had, which are 2^-25 of the velocity at
    most with 32 bits; 64-bit weights lie within the rounding of what is shown. A few dozen such errors add up."""
    steps = 21 if gradients_of is spike else 600
    assert relative_to_torch(state_bits, gradients_of, steps, 0.01) < (40 * 2**-25 if state_bits == 32 else 4 * 2**-24)


@by_width
def test_a_quantum_follows_the_first_gradients(state_bits: int) -> None:
    """Tiny and huge gradients are held as finely as others."""
    distances = [
        relative_to_torch(
            state_bits, lambda step, scale=scale: random_gradients(random_parameters((9,), (600,)), step, scale), 50, 1e-2 / scale
        )
        for scale in (1e-12, 1.0, 1e12)
    ]
    assert max(distances) < 1e-5
    assert max(distances) < 2 * min(distances)


@by_width
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_that_grow_past_their_room(dtype: torch.dtype, state_bits: int) -> None:
    parameters = random_parameters((9,), (600,), dtype=dtype)
    optimizer = rh.ReversibleSGD(parameters, lr=0.1, weight_decay=1e-3, state_bits=state_bits)

    def gradients_of(step: int) -> list[torch.Tensor]:
        size = 1.2 ** min(step, 99)
        return [-size * torch.linspace(-1, 1, p.numel()).to(dtype) for p in parameters]

    run(optimizer, gradients_of, 100)


@by_width
def test_float16_weights(state_bits: int) -> None:
    """Up to the last number before infinity."""
    weight = nn.Parameter(torch.tensor([1.0, -0.25, 0.0], dtype=torch.float16))
    optimizer = rh.ReversibleSGD([weight], lr=1000.0, momentum=0.5, state_bits=state_bits)
    start = frozen(optimizer)
    push = setting_gradients([weight], [torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float16)])
    # The velocity becomes 2, a step 2000: the weight after n steps is 1 + 2000 * n - 2000 * (1 - 0.5^n), and 65504 is the end.
    for _ in range(33):
        optimizer.step(push)
    assert weight[0].item() == pytest.approx(64000, abs=32)
    with refused(optimizer, OverflowError, "a weight (torch.float16) would leave the range"):
        optimizer.step(push)
    optimizer.rewind([push] * 33)
    assert frozen(optimizer) == start


@by_width
def test_what_growing_costs(state_bits: int) -> None:
    """As many bits per weight as the quantum has grown, once."""
    (weight,) = random_parameters((4096,))
    optimizer = rh.ReversibleSGD([weight], lr=1e-9, momentum=1.0, state_bits=state_bits)
    take_steps(optimizer, 1)
    before = optimizer.memory()["information_bytes"], quanta(optimizer)[0][0]
    take_steps(optimizer, 1, first=1, scale=1e7)
    after = optimizer.memory()["information_bytes"], quanta(optimizer)[0][0]
    grown = after[1] / before[1]
    assert grown >= 2**6
    assert (after[0] - before[0]) * 8 / 4096 == torch.tensor(grown).log2().item()
    take_steps(optimizer, 5, first=2, scale=1e6)
    assert optimizer.memory()["information_bytes"] == after[0]


def test_a_tensor_whose_first_gradients_are_zero() -> None:
    """Its quanta are chosen when the first other one comes, whatever its size; undone, they are open again."""
    first, second = random_parameters((9,), (5,))
    for state_bits in (64, 32):
        optimizer = rh.ReversibleSGD([first, second], lr=0.1, state_bits=state_bits)
        start = frozen(optimizer)
        closures = []
        for step, size in enumerate([0.0, 0.0, 1e-20, 1e-20]):
            gradients = random_gradients([first, second], step)
            closures.append(setting_gradients([first, second], [gradients[0], size * gradients[1]]))
            optimizer.step(closures[-1])
        assert quanta(optimizer)[1][0] < 1e-24
        before = bits(second)
        optimizer.rewind([closures.pop(), closures.pop()])
        take_steps(optimizer, 1, first=9)
        assert quanta(optimizer)[1][0] > 1e-16
        assert bits(second) != before
        optimizer.rewind([setting_gradients([first, second], random_gradients([first, second], 9)), *reversed(closures)])
        assert frozen(optimizer) == start
