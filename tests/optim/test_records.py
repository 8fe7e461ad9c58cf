"""What optimizers keep of their steps: no more than memory() says, and all of it, however the steps went."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import frozen, random_gradients, random_parameters, setting_gradients
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.reversible.step_log import MARK_EVERY

# A weight and a bias, ten numbers in all, a learning rate of its own in every step, and every third step without a bias gradient.
GROWTH = """
import sys, torch
import reversible_hypergrad as rh
torch.set_num_threads(1)
weight, bias = torch.nn.Parameter(torch.ones(2, 4)), torch.nn.Parameter(torch.ones(2))
optimizer = getattr(rh, sys.argv[1])([weight, bias], lr=1e-4)
weight.grad, gradient = torch.full((2, 4), 0.1), torch.full((2,), -0.2)

def steps(count):
    for step in range(count):
        optimizer.param_groups[0]["lr"] = 1e-4 / (1 + step)
        bias.grad = gradient if step % 3 else None
        optimizer.step()

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

def kept():
    return sum(value for name, value in optimizer.memory().items() if name.endswith("bytes") and name != "trajectory_bytes")

steps(300)
before, known = resident(), kept()
steps(int(sys.argv[2]))
print(resident() - before, kept() - known)
"""
# Lion's steps are made of torch's operations, and take longer.
STEPS = {"ReversibleSGD": 4000, "ReversibleAdamW": 4000, "ReversibleLion": 1000}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
@pytest.mark.parametrize("name", STEPS)
def test_memory_tells_of_all_that_grows(name: str) -> None:
    """Within a factor of two, since an array that has grown leaves its former place, up to as large, to the allocator. Records of
    Python objects would take above 1,000 bytes per step, and tensor."""
    done = subprocess.run([sys.executable, "-c", GROWTH, name, str(STEPS[name])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, said = map(int, done.stdout.split())
    assert 0 < said <= 200 * STEPS[name]
    assert grown <= 2 * said + (1 << 20)  # Python's memory comes in arenas of 1 MiB


KINDS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda weights: rh.ReversibleSGD(weights, lr=0.1, momentum=0.9),
    "adamw": lambda weights: rh.ReversibleAdamW(weights, lr=0.1),
    "lion": lambda weights: rh.ReversibleLion(weights, lr=0.1),
    "unhashed": lambda weights: rh.ReversibleSGD(weights, lr=0.1, momentum=0.9, verify_every=7),
}


def closures_of(weights: list[nn.Parameter], steps: range) -> list[Callable[[], Any]]:
    """Gradients that come and go, begin at zero, and grow thousandfold: rooms must be made, and scales are chosen late."""
    closures = []
    for step in steps:
        gradients: list[Any] = random_gradients(weights, step, scale=1e3 if step in (40, 90) else 1.0)
        gradients[0] = gradients[0] if step % 5 else None
        if step < 37:
            gradients[1] = torch.zeros_like(weights[1])
        closures.append(setting_gradients(weights, gradients))
    return closures


def set_rate(optimizer: Any, step: int) -> None:
    """A schedule of stairs, whose first is longer than a stretch between two marks."""
    optimizer.param_groups[0]["lr"] = 0.1 / (1 + step // 50)


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_comes_back_from_any_step(kind: str) -> None:
    """Back from the end, from a mark, and over and over across one; and on again as if nothing had been undone."""
    weights = random_parameters((9,), (3, 5), (2,))
    optimizer = KINDS[kind](weights)
    steps = 2 * MARK_EVERY + 29
    closures = closures_of(weights, range(steps))
    marks = {}
    for step, closure in enumerate(closures):
        set_rate(optimizer, step)
        marks[step] = frozen(optimizer)
        optimizer.step(closure)
        if step % MARK_EVERY in (0, 1, MARK_EVERY - 1):
            after = frozen(optimizer)
            optimizer.step_back(closure)
            assert frozen(optimizer) == marks[step]
            optimizer.step(closure)
            assert frozen(optimizer) == after
    memory = optimizer.memory()
    for step in reversed(range(steps)):
        optimizer.step_back(closures[step])
        if step % 5 == 0 or step % MARK_EVERY < 2:
            assert frozen(optimizer) == marks[step], step
    for step, closure in enumerate(closures):
        set_rate(optimizer, step)
        optimizer.step(closure)
    assert optimizer.memory() == memory


@pytest.mark.parametrize(("kind", "saved_at"), [*itertools.product(KINDS, (1, MARK_EVERY, MARK_EVERY + 9))])
def test_a_loaded_state_goes_on_as_the_one_that_was_saved(kind: str, saved_at: int) -> None:
    weights, others = random_parameters((9,), (3, 5), (2,)), random_parameters((9,), (3, 5), (2,))
    optimizer, other = KINDS[kind](weights), KINDS[kind](others)
    start, end = frozen(optimizer), 2 * MARK_EVERY + 5
    closures = closures_of(weights, range(end))
    for step in range(end):
        if step == saved_at:
            with torch.no_grad():
                for mine, theirs in zip(others, weights, strict=True):
                    mine.copy_(theirs)
            other.load_state_dict(optimizer.state_dict())
        set_rate(optimizer, step)
        optimizer.step(closures[step])
    for step in range(saved_at, end):
        set_rate(other, step)
        other.step(closures_of(others, range(end))[step])
    assert frozen(other) == frozen(optimizer)
    assert other.memory()["limit_bits_per_weight_step"] == optimizer.memory()["limit_bits_per_weight_step"]
    other.rewind(reversed(closures_of(others, range(end))))
    optimizer.rewind(reversed(closures))
    assert frozen(other) == frozen(optimizer) == start
