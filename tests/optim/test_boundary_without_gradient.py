"""After mark_boundary() a parameter may get its first gradient in a later step than others; until then its own weights show, not
their rounded form, and they are back when its steps are undone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_problems import Closure, frozen, weights_of
from torch import nn

import reversible_hypergrad as rh

MAKERS: dict[str, Callable[..., rh.ReversibleOptimizer]] = {
    "SGD": rh.ReversibleSGD,
    "Adam": rh.ReversibleAdam,
    "AdamW": rh.ReversibleAdamW,
    "Lion": rh.ReversibleLion,
    "Muon": rh.ReversibleMuon,
    "RAdam": rh.ReversibleRAdam,
    "RMSprop": lambda params, **given: rh.ReversibleRMSprop(params, momentum=0.9, **given),
    "TracedSGD": rh.ReversibleTracedSGD,
}
by_kind = pytest.mark.parametrize("kind", MAKERS)
by_width = pytest.mark.parametrize("state_bits", [32, 64])


class Problem:
    """Each parameter's gradient depends on the other one, whose last bits are beneath its integers."""

    def __init__(self, kind: str, state_bits: int) -> None:
        torch.manual_seed(0)
        self.a, self.b = (nn.Parameter(torch.randn(5, 10) * torch.logspace(-9, 0, 50).view(5, 10)) for _ in range(2))
        self.x = torch.randn(10, 5, 10)
        self.optimizer = MAKERS[kind]([self.a, self.b], lr=0.01, state_bits=state_bits)
        for step in range(2):
            self.optimizer.step(self.closure(step))
        with torch.no_grad():
            for weight in (self.a, self.b):
                weight.copy_(torch.randn(5, 10) * torch.logspace(-9, 0, 50).view(5, 10))
        self.optimizer.mark_boundary()
        # Without a gradient of b in the first step after it, and of a in the third.
        self.closures = [self.closure(2, without=self.b), self.closure(3), self.closure(4, without=self.a), self.closure(5)]

    def closure(self, step: int, without: Any = None) -> Closure:
        def closure() -> Any:
            self.optimizer.zero_grad()
            loss = (self.x[step] * self.a).sum() * (self.x[step + 1] * self.b).sum() + torch.tanh(50 * self.a * self.b).sum()
            loss.backward()
            if without is not None:
                without.grad = None
            return loss

        return closure


@by_width
@by_kind
def test_undone_bit_for_bit(kind: str, state_bits: int) -> None:
    problem, marks = Problem(kind, state_bits), []
    for closure in problem.closures:
        marks.append(frozen(problem.optimizer))
        problem.optimizer.step(closure)
    for closure in reversed(problem.closures):
        problem.optimizer.step_back(closure)
        assert frozen(problem.optimizer) == marks.pop()


@by_width
@by_kind
def test_weights_that_were_written_and_are_the_same_are_no_edit(kind: str, state_bits: int) -> None:
    """As where an average was swapped in and out; and still an edit is one."""
    problem = Problem(kind, state_bits)
    problem.optimizer.step(problem.closures[0])
    with torch.no_grad():
        problem.b.mul_(1)
    problem.optimizer.step(problem.closures[1])
    problem.optimizer.step_back(problem.closures[1])
    with torch.no_grad():
        problem.b[0, 0] *= 2  # beneath its integers
    with pytest.raises(RuntimeError, match="parameter 1 of group 0: edited"):
        problem.optimizer.step(problem.closures[1])


@by_width
@pytest.mark.parametrize("kind", ["SGD", "Lion"])
@pytest.mark.parametrize("by", [copy.deepcopy, None], ids=["copied", "loaded"])
def test_copied_and_loaded(by: Any, kind: str, state_bits: int) -> None:
    """Between the first step and b's first."""
    problem = Problem(kind, state_bits)
    start = weights_of(problem.optimizer)
    problem.optimizer.step(problem.closures[0])
    if by is None:
        saved = copy.deepcopy(problem.optimizer.state_dict())
        problem.optimizer.step(problem.closures[1])
        problem.optimizer.step_back(problem.closures[1])
        problem.optimizer.load_state_dict(saved)
    else:
        problem = by(problem)
        problem.closures = [problem.closure(2, without=problem.b), problem.closure(3)]
    problem.optimizer.step(problem.closures[1])
    problem.optimizer.rewind([problem.closures[1], problem.closures[0]])
    assert weights_of(problem.optimizer) == start


def test_a_refused_first_step() -> None:
    """It leaves b as it was, to the last bit."""
    problem = Problem("SGD", 32)
    problem.optimizer.step(problem.closures[0])
    before = frozen(problem.optimizer)

    def closure() -> None:
        problem.closures[1]()
        problem.b.grad[0, 0] = float("inf")  # type: ignore[index]

    with pytest.raises(FloatingPointError, match="parameter 1 of group 0"):
        problem.optimizer.step(closure)
    assert frozen(problem.optimizer) == before
