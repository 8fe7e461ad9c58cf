"""An optimizer whose steps are queued, or waited for, on any device. Used by tests/cuda and tests/gpu."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import reversible_hypergrad as rh
from reversible_hypergrad.optim import queue


@pytest.fixture
def queued_from_the_second(monkeypatch):
    """Only a step that chooses scales is looked at by itself, not the first sixteen."""
    monkeypatch.setattr(queue, "LOOK_AT_FIRST", 0)


class Side:
    """A model of two groups and three dtypes, its optimizer, and a gradient for every step."""

    def __init__(self, state_bits: int = 64, queued: bool = True, device: str = "cpu", **settings) -> None:
        self.state_bits = state_bits
        generator = torch.Generator().manual_seed(5)

        def tensor(*shape, dtype=torch.float32):
            return torch.randn(*shape, generator=generator).to(dtype).to(device)

        self.weights = [
            nn.Parameter(tensor(3, 700)),
            nn.Parameter(tensor(513, dtype=torch.bfloat16)),
            nn.Parameter(tensor(70, dtype=torch.float64)),
        ]
        self.start = [w.detach().clone() for w in self.weights]
        groups = [{"params": self.weights[:2]}, {"params": self.weights[2:], "momentum": 0.5, "weight_decay": 0.01}]
        self.optimizer = rh.ReversibleSGD(groups, lr=0.05, state_bits=state_bits, **settings)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.99)
        if not queued:
            self.optimizer._queue.takes = lambda parts: False

    def give(self, step: int, spoil: tuple[int, float] | None = None) -> None:
        generator = torch.Generator().manual_seed(1000 + step)
        for w in self.weights:
            w.grad = torch.randn(w.shape, generator=generator).to(w.dtype).to(w.device)
        if spoil is not None:
            which, value = spoil
            self.weights[which].grad.view(-1)[37] = value

    def step(self, step: int, spoil: tuple[int, float] | None = None) -> None:
        self.give(step, spoil)
        self.optimizer.step()

    def states(self) -> list[torch.Tensor]:
        parts = self.optimizer._history.parts
        integers = [t for part in parts for t in (part.state.x, *part.state.z)]
        return [t.detach().cpu().clone() for t in (*self.weights, *integers)]

    def numbers(self):
        self.optimizer.synchronize()
        parts = [(part.steps, part.hash) for part in self.optimizer._history.parts]
        scales = [
            array.tolist()
            for part in self.optimizer._history.parts
            for array in (*vars(part.state.scales.state).values(), part.state.unset)
        ]
        hashes = [part.log.hashes.numbers.tolist() for part in self.optimizer._history.parts]
        return (
            parts,
            scales,
            hashes,
            self.optimizer._history.steps_taken,
            [dict(g, params=None) for g in self.optimizer.param_groups],
        )

    def assert_same(self, other: Side) -> None:
        for mine, expected in zip(self.states(), other.states(), strict=True):
            assert torch.equal(mine, expected)
        assert self.numbers() == other.numbers()

    def rewind(self, steps: int) -> None:
        for step in reversed(range(steps)):
            self.optimizer.step_back(lambda step=step: self.give(step))

    def assert_at_start(self) -> None:
        for w, expected in zip(self.weights, self.start, strict=True):
            assert torch.equal(w, expected)


# One gradient of the parameter with this position, and its number.
BAD = {"nan": (0, math.nan), "infinite": (1, math.inf), "of the last group": (2, -math.inf), "too large": (2, 1e30)}


def assert_goes_on_from_before_a_refused_step(side: Side, expected: Side, bad: tuple[int, float], after: int) -> None:
    """Whatever was queued behind it; the scheduler went on, and its rate is taken back as well.

    Args:
        expected: takes the same steps but the bad ones, and waits for each.
        bad: the gradient that spoils step 13.
        after: steps that are queued behind it.
    """
    for step in range(12):
        for each in (side, expected):
            each.step(step)
            each.scheduler.step()
    side.step(12, bad)
    for step in range(13, 13 + after):
        side.scheduler.step()
        side.step(step, (0, math.inf) if step == 15 else None)
    later = f"{after} later steps were queued" if after else "clip the gradient$"
    with pytest.raises(FloatingPointError, match=f"step 13: .*{later}"):
        side.optimizer.synchronize()
    side.assert_same(expected)
    side.scheduler = copy.copy(expected.scheduler)
    side.scheduler.optimizer = side.optimizer
    for step in range(12, 30):
        for each in (side, expected):
            each.step(step)
    side.assert_same(expected)
    side.rewind(30)
    side.assert_at_start()


OUTGROWN = ["gradient", "velocity", "weight"]


def assert_refused_once(side: Side, outgrown: str) -> None:
    """What outgrew its integers between two looks is an error, but once only: the next steps take what room they need."""
    side.step(0)
    if outgrown == "weight":
        side.optimizer.param_groups[0]["lr"] = 1e9
    factor = {"gradient": 1e12, "velocity": 32.0 if side.state_bits == 32 else 2.0**11, "weight": 1.0}[outgrown]

    def give() -> None:
        side.give(1)
        for w in side.weights:
            w.grad.mul_(factor)

    def large(steps: int) -> None:
        for _ in range(steps):
            give()
            side.optimizer.step()
        side.optimizer.synchronize()

    with pytest.raises((OverflowError, FloatingPointError), match=r"between two looks|many times larger than at the last look"):
        large(50)
    taken = side.optimizer._history.steps_taken
    assert 1 <= taken < 50
    large(100)
    assert side.optimizer._history.steps_taken == taken + 100
    side.optimizer.rewind([give] * (taken + 99))
    side.optimizer.step_back(lambda: side.give(0))
    side.assert_at_start()


GROWING = 400


def give_growing(side: Side, step: int) -> None:
    """Gradients that grow 2,700-fold in 400 steps, 3.6-fold between two looks."""
    side.give(step)
    for w in side.weights:
        w.grad.mul_(1e-2 * 1.02**step)


def grow(side: Side) -> None:
    for step in range(GROWING):
        give_growing(side, step)
        side.optimizer.step()


def assert_grown_and_undone(side: Side) -> None:
    """Larger quanta of the velocities after :func:`grow`, and everything as before it in the end."""
    side.optimizer.synchronize()
    exponents = [part.state.scales.state.exponent.copy() for part in side.optimizer._history.parts]
    for step in reversed(range(GROWING)):
        side.optimizer.step_back(lambda step=step: give_growing(side, step))
        if step == 1:
            firsts = [part.state.scales.state.exponent for part in side.optimizer._history.parts]
    assert all((later[:, 0] > first[:, 0]).all() for later, first in zip(exponents, firsts, strict=True))
    side.assert_at_start()
