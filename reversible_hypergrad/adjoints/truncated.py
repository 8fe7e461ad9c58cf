"""Only the last steps."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from reversible_hypergrad.adjoints.base import Adjoint, End, Run
from reversible_hypergrad.adjoints.snapshots import Snapshots
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Cotangents, Downstream, Problem

__all__ = ["Truncated"]


class Truncated(Adjoint):
    """Walks back through the last steps only. APPROXIMATE: the steps before them count as if nothing depended on them.

    Also known as truncated backpropagation. The run is that of ``adjoint``, bit for bit, and so are the last steps' gradients;
    those by the initial weights, and by settings of earlier steps, are zero. Nothing is kept of the steps before, and nothing
    undone.

    Args:
        steps: how many of the last steps to walk back through, at least 1; the whole run if it is no longer.
        adjoint: an exact strategy, for the last steps; :class:`Snapshots` () if None.

    Cost: as ``adjoint`` for a run of ``steps``.

    *Recommended* for hyperparameters that act in every step (penalties, example weights) near convergence: each step back
    shrinks what an earlier one contributes; and where training is chaotic. *Not recommended* for learning-rate schedules, initial
    weights, or runs that stop early, where what it leaves out decides ("short-horizon bias": Wu, Ren, Liao, Grosse, ICLR 2018).

    Raises:
        TypeError: if ``steps`` is no integer, or ``adjoint`` no strategy.
        ValueError: if ``steps`` is below 1, or ``adjoint`` not exact.

    >>> import reversible_hypergrad as rh
    >>> rh.Truncated(steps=20).approximation
    'only the last 20 steps count'
    >>> rh.Truncated(500, rh.Reversible()).adjoint.verify_every
    1

    Source: Shaban, Cheng, Hatch, Boots, *Truncated Back-propagation for Bilevel Optimization*, AISTATS 2019.
    """

    exact = False

    def __init__(self, steps: int, adjoint: Adjoint | None = None) -> None:
        check_integer("steps", steps, least=1)
        if adjoint is not None and not isinstance(adjoint, Adjoint):
            raise TypeError(f"adjoint: expected an exact strategy such as rh.Reversible(), or None, got {adjoint!r}")
        if adjoint is not None and not adjoint.exact:
            raise ValueError(f"adjoint: expected an exact strategy, such as rh.Reversible(), got {adjoint!r}")
        self.steps = steps
        self.adjoint: Adjoint = Snapshots() if adjoint is None else adjoint

    @property
    def approximation(self) -> str:  # type: ignore[override]
        return f"only the last {self.steps} steps count"

    @property
    def graphable(self) -> bool:  # type: ignore[override]
        return self.adjoint.graphable

    def __repr__(self) -> str:
        return f"Truncated(steps={self.steps}, adjoint={self.adjoint!r})"

    def start(self, problem: Problem) -> Run:
        if len(problem.steps) <= self.steps:
            return self.adjoint.start(problem)
        return TruncatedRun(self.adjoint, problem, problem.steps.stop - self.steps)


class TruncatedRun(Run):
    """Two runs, of which only the second is recorded."""

    def __init__(self, adjoint: Adjoint, problem: Problem, border: int) -> None:
        self.adjoint, self.problem = adjoint, problem
        steps = problem.steps
        self._before = adjoint.start(replace(problem, steps=range(steps.start, border)))
        self._steps = range(border, steps.stop)
        self._last: Run | None = None

    def forward(self, record: bool) -> None:
        self._before.forward(record=False)
        end = self._before.end()
        assert end is not None
        after = replace(self.problem, steps=self._steps, states=end.states, exact=end.exact, sees_start=False)
        del self._before, end
        self._last = self.adjoint.start(after)
        self._last.forward(record)

    def end(self) -> End | None:
        return None if self._last is None else self._last.end()

    def pull_back(self, downstream: Sequence[Downstream]) -> list[Cotangents]:
        assert self._last is not None
        found = self._last.pull_back(downstream)
        for one in found:
            one.initial = [torch.zeros_like(weight, requires_grad=False) for weight in self.problem.weights]
            one.states = [{} for _ in self.problem.weights]
        return found
