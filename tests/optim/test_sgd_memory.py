"""memory(): what undoing costs, next to the information limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from optim_problems import digits_closure, mlp, random_parameters, take_steps
from torch import nn

import reversible_hypergrad as rh

by_width = pytest.mark.parametrize("state_bits", [64, 32])


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    """Small tensors: threads would mostly wait for each other."""
    set_num_threads(1)


STEPS, WEIGHTS = 1000, 20_000


@by_width
@pytest.mark.parametrize("momentum", [2.0**-16, 0.1, 0.5, 0.8731, 0.9, 0.99, 0.999, 1.0])
def test_the_limit_itself(momentum: float, state_bits: int) -> None:
    """Of gradients that never outgrow the first: a bit per weight whenever the scale has halved. So many times that is the limit,
    rounded down."""
    weight = nn.Parameter(torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0)))
    optimizer = rh.ReversibleSGD([weight], lr=0.01, momentum=momentum, state_bits=state_bits, verify_every=100)
    directions = 0.1 * torch.randn(7, WEIGHTS, generator=torch.Generator().manual_seed(1))
    for step in range(STEPS):
        weight.grad = directions[step % 7] * (-1) ** step
        optimizer.step()
    memory = optimizer.memory()
    assert memory["limit_bits_per_weight_step"] == pytest.approx(-math.log2(momentum), rel=1e-12)
    # 0.5 and 2^-16 lose no fraction of a bit; elsewhere the product of the factors is rounded, too.
    halvings = math.floor(-STEPS * math.log2(momentum) + 1e-9)
    assert memory["information_bytes"] == halvings * WEIGHTS / 8
    assert memory["information_bits_per_weight_step"] == pytest.approx(halvings / STEPS, rel=1e-12)


@by_width
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_at_most_one_percent_above_the_limit_in_training(momentum: float, state_bits: int) -> None:
    """Sizes that fill no byte, and weights that grow tenfold, included."""
    model = mlp(hidden=37)
    optimizer = rh.ReversibleSGD(model.parameters(), lr=(1 - momentum) * 1.0, momentum=momentum, state_bits=state_bits)
    before = max(p.abs().max().item() for p in model.parameters())
    for step in range(STEPS):
        optimizer.step(digits_closure(model, optimizer, step))
    assert max(p.abs().max().item() for p in model.parameters()) > 5 * before
    memory = optimizer.memory()
    assert memory["information_bits_per_weight_step"] <= 1.01 * memory["limit_bits_per_weight_step"]


KEYS = {
    "state_bytes",
    "initial_bytes",
    "information_bytes",
    "record_bytes",
    "hash_bytes",
    "trajectory_bytes",
    "information_bits_per_weight_step",
    "limit_bits_per_weight_step",
}


def test_every_key_is_there_and_documented() -> None:
    memory = rh.ReversibleSGD(random_parameters((3,))).memory()
    assert memory.keys() == KEYS
    assert all(value == 0 for value in memory.values())
    for key in memory:
        assert f"``{key}``" in (rh.ReversibleSGD.memory.__doc__ or ""), key


@pytest.mark.parametrize(("state_bits", "expected"), [(64, 16), (32, 8)])
def test_state_bytes_per_weight(state_bits: int, expected: float) -> None:
    (weight,) = random_parameters((100_000,))
    optimizer = rh.ReversibleSGD([weight], lr=0.1, momentum=0.9, state_bits=state_bits)
    take_steps(optimizer, 1, scale=0.1)
    assert optimizer.memory()["state_bytes"] == expected * weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_trajectory_bytes(dtype: torch.dtype) -> None:
    """What storing the weights that moved would have taken, in their own dtype."""
    first, second = random_parameters((100,), (30,), dtype=dtype)
    optimizer = rh.ReversibleSGD([first, second], lr=0.1)
    take_steps(optimizer, 5)
    first.grad, second.grad = torch.ones_like(first), None
    optimizer.step()
    assert optimizer.memory()["trajectory_bytes"] == (6 * 100 + 5 * 30) * first.element_size()


@pytest.mark.parametrize("verify_every", [1, 3])
def test_hash_bytes(verify_every: int) -> None:
    optimizer = rh.ReversibleSGD(random_parameters((100,)), lr=0.1, verify_every=verify_every)
    take_steps(optimizer, 9)
    assert optimizer.memory()["hash_bytes"] == 8 * 9 // verify_every


TENSORS = 20


@pytest.mark.parametrize("scheduled", [False, True])
def test_records_of_a_step_that_brings_nothing_new(scheduled: bool) -> None:
    """Twice 24 bytes per tensor at every 32nd step; a schedule costs a row of 5 settings and its count in every step."""
    optimizer = rh.ReversibleSGD(random_parameters(*[(30,)] * TENSORS), lr=0.1, momentum=1.0, state_bits=64)  # so no planes
    take_steps(optimizer, 32)
    before = optimizer.memory()["record_bytes"]
    for step in range(320):
        if scheduled:
            optimizer.param_groups[0]["lr"] = 0.1 / (2 + step)
        optimizer.step()
    grown = optimizer.memory()["record_bytes"] - before
    marks = 10 * (2 * 24 * TENSORS + 16)
    assert grown == marks + (320 * (5 + 1) * 8 if scheduled else 0)
    assert marks / 320 / TENSORS < 2


def test_undoing_gives_the_memory_back() -> None:
    optimizer = rh.ReversibleSGD(random_parameters((2000,)), lr=0.1, momentum=0.5)
    closures = take_steps(optimizer, 100)
    before = optimizer.memory()
    optimizer.rewind(reversed(take_steps(optimizer, 100)))
    assert optimizer.memory() == before
    optimizer.rewind(reversed(closures))
    assert all(value == 0 for value in optimizer.memory().values())
