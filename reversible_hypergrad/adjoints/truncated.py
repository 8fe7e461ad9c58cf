"""Only the last steps."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.scheduled import Schedule, ScheduledRun
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Cotangents, Problem
from reversible_hypergrad.storage.places import check_place

__all__ = ["Truncated"]


class Truncated(Adjoint):
    """Walks back through the last steps only. APPROXIMATE: the steps before them count as if nothing depended on them.

    Also known as truncated backpropagation. Gradients by the initial weights, and by settings of earlier steps, are zero.
    Momentum 0 and Nesterov are allowed.

    Args:
        steps: how many of the last steps to walk back through, at least 1; the whole run if it is no longer.
        store: where their weights wait: "device", "host", or a directory, as for :class:`Snapshots`.

    Cost: as :class:`Snapshots` for a run of ``steps``.

    *Recommended* for hyperparameters that act in every step (penalties, example weights) near convergence: each step back
    shrinks what an earlier one contributes. *Not recommended* for learning-rate schedules, initial weights, or runs that stop
    early, where what it leaves out decides ("short-horizon bias": Wu, Ren, Liao, Grosse, ICLR 2018).

    Raises:
        TypeError: if ``steps`` is no integer.
        ValueError: if ``steps`` is below 1.
        NotADirectoryError: if ``store`` names no place and no directory.

    >>> import reversible_hypergrad as rh
    >>> rh.Truncated(steps=20).approximation
    'only the last 20 steps count'

    Source: Shaban, Cheng, Hatch, Boots, *Truncated Back-propagation for Bilevel Optimization*, AISTATS 2019.
    """

    exact = False

    def __init__(self, steps: int, store: str | Path = "device") -> None:
        check_integer("steps", steps, least=1)
        self.steps = steps
        self.store = check_place("store", store)

    @property
    def approximation(self) -> str:  # type: ignore[override]
        return f"only the last {self.steps} steps count"

    def __repr__(self) -> str:
        return f"Truncated(steps={self.steps}, store={str(self.store)!r})"

    def start(self, problem: Problem) -> Run:
        return TruncatedRun(problem, _Last(max(0, len(problem.steps) - self.steps)), self.store)


class TruncatedRun(ScheduledRun):
    def __init__(self, problem: Problem, schedule: "_Last", place: str | Path) -> None:
        super().__init__(problem, schedule, place)
        self.first = problem.steps.start + schedule.first

    def finish(self, totals: Cotangents, aws: Sequence[Tensor]) -> None:
        if self.first > self.problem.steps.start:
            totals.initial = [torch.zeros_like(weight, requires_grad=False) for weight in self.problem.weights]
        else:
            super().finish(totals, aws)


class _Last(Schedule):
    def __init__(self, first: int) -> None:
        self.first = first

    def keep(self, start: int, stop: int, held: int) -> Sequence[int]:
        return range(max(start + 1, self.first), stop)
