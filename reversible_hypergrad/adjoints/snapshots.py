"""Keep the weights of every step."""

from collections.abc import Sequence
from pathlib import Path

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.scheduled import Schedule, ScheduledRun, scheduled_cost
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.storage.places import check_place

__all__ = ["Snapshots"]


class Snapshots(Adjoint):
    """Keeps the weights of every step, in plain floats. Exact; also known as storing the trajectory.

    Momentum 0 and Nesterov are allowed. The velocities are kept too where learning rates or momenta get gradients.

    Args:
        store: where the weights wait: "device", "host", or a directory (a file there, written and read behind the computation,
            checked when read, removed at the end).

    Cost: one weight's bytes (4 for float32; 8 with velocities) per weight and step; nothing is computed again.

    *Recommended* for short runs and small models: nothing is faster. *Not recommended* for long runs of large models: at
    momentum 0.9 :class:`Reversible` keeps 211 times less.

    Raises:
        NotADirectoryError: if ``store`` names no place and no directory.

    >>> import reversible_hypergrad as rh
    >>> rh.Snapshots(store="host")
    Snapshots(store='host')

    Source: Reverse-HG in Franceschi, Donini, Frasconi, Pontil, *Forward and Reverse Gradient-Based Hyperparameter
    Optimization*, ICML 2017, algorithm 1.
    """

    def __init__(self, store: str | Path = "device") -> None:
        self.store = check_place("store", store)

    def __repr__(self) -> str:
        return f"Snapshots(store={str(self.store)!r})"

    def start(self, problem: Problem) -> Run:
        return ScheduledRun(problem, _All(), self.store)

    def cost(self, size: RunSize) -> Cost:
        return scheduled_cost(_All(), size)


class _All(Schedule):
    def keep(self, start: int, stop: int, held: int) -> Sequence[int]:
        return range(start + 1, stop)
