"""memory(): what undoing costs, next to the information limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from optim_problems import random_parameters, take_steps
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad import core


@pytest.fixture(autouse=True)
def one_thread(set_num_threads: Callable[[int], None]) -> None:
    """Small tensors: threads would mostly wait for each other."""
    set_num_threads(1)


STEPS, WEIGHTS = 1000, 20_000


def run(momentum: float, state_bits: int) -> dict[str, float]:
    weight = nn.Parameter(torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0)))
    optimizer = rh.ReversibleSGD([weight], lr=0.01, momentum=momentum, state_bits=state_bits, verify_every=100)
    directions = 0.1 * torch.randn(7, WEIGHTS, generator=torch.Generator().manual_seed(1))
    for step in range(STEPS):
        weight.grad = directions[step % 7] * (-1) ** step  # comes back every 14 steps: no weight drifts out of range
        optimizer.step()
    return optimizer.memory()


@pytest.mark.parametrize("state_bits", [64, 32])
@pytest.mark.parametrize("momentum", [0.1, 0.5, 0.8731, 0.9, 0.99, 0.999])
def test_payload_is_near_the_limit(momentum: float, state_bits: int) -> None:
    """Within 0.5 %. Near 1 a start-up cost is larger than that at 1,000 steps: the first push of each lane of 8 weights
    takes log2(d) bits and d is at least 1/(1 - momentum), whatever follows."""
    memory = run(momentum, state_bits)
    limit = memory["limit_bits_per_weight_step"]
    fraction = core.approximate_momentum(momentum, state_bits)
    assert limit == pytest.approx(math.log2(1 / fraction))
    assert limit == pytest.approx(math.log2(1 / momentum), rel=1e-6 if state_bits == 64 else 0.01)
    startup = (math.log2(1 / (1 - momentum)) + 1) / 8 / STEPS if momentum >= 0.99 else 0.0
    assert limit * 0.9999 <= memory["payload_bits_per_weight_step"] <= 1.005 * limit + startup


@pytest.mark.parametrize("state_bits", [64, 32])
def test_information_bytes_accumulators_included(state_bits: int) -> None:
    memory = run(0.9, state_bits)
    needed = WEIGHTS * STEPS * math.log2(1 / 0.9) / 8
    assert needed <= memory["information_bytes"] <= 1.1 * needed
    assert memory["information_bits_per_weight_step"] == pytest.approx(8 * memory["information_bytes"] / WEIGHTS / STEPS)


KEYS = {
    "state_bytes",
    "initial_bytes",
    "information_bytes",
    "hash_bytes",
    "trajectory_bytes",
    "information_bits_per_weight_step",
    "payload_bits_per_weight_step",
    "limit_bits_per_weight_step",
}


def test_every_key_is_there_and_documented() -> None:
    memory = rh.ReversibleSGD(random_parameters((3,))).memory()
    assert memory.keys() >= KEYS
    assert all(value == 0 for value in memory.values())
    for key in memory:
        assert f"``{key}``" in (rh.ReversibleSGD.memory.__doc__ or ""), key


@pytest.mark.parametrize(("state_bits", "expected"), [(64, 17.0), (32, 8.5)])
def test_state_bytes_per_weight(state_bits: int, expected: float) -> None:
    (weight,) = random_parameters((100_000,))
    optimizer = rh.ReversibleSGD([weight], lr=0.1, momentum=0.9, state_bits=state_bits)
    take_steps(optimizer, 1, scale=0.1)
    memory = optimizer.memory()
    assert (memory["state_bytes"] + memory["information_bytes"]) / weight.numel() == pytest.approx(expected, rel=0.01)


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


def test_undoing_gives_the_memory_back() -> None:
    optimizer = rh.ReversibleSGD(random_parameters((2000,)), lr=0.1, momentum=0.5)
    closures = take_steps(optimizer, 100)
    before = optimizer.memory()
    optimizer.rewind(reversed(take_steps(optimizer, 100)))
    assert optimizer.memory() == before
    optimizer.rewind(reversed(closures))
    assert optimizer.memory()["information_bytes"] == optimizer.memory()["state_bytes"] == 0
