"""Keep few states, and train again between them, recursively."""

from collections.abc import Sequence
from math import comb
from pathlib import Path

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.scheduled import Schedule, ScheduledRun, scheduled_cost
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.storage.places import check_place

__all__ = ["RecursiveCheckpoint"]


class RecursiveCheckpoint(Adjoint):
    """Keeps a logarithmic, or a fixed, number of states, and trains again between them, recursively. Exact.

    Without ``slots``, a tree: the run is cut into ``arity`` parts, the beginnings of all but the first are kept, and the last
    one is cut again, until it is one step. With ``slots``, never more than so many states are kept, placed such that the
    fewest steps are trained again (the binomial optimum). Momentum 0 and Nesterov are allowed.

    Args:
        arity: parts of a node of the tree, at least 2. Not to be given with ``slots``.
        slots: the most states kept at a time beside the initial weights, at least 1; None for the tree.
        store: where states wait: "device", "host", or a directory, as for :class:`Snapshots`.

    Cost: for float32, 8 bytes per weight and state: (arity - 1) log_arity(T) or ``slots`` states. The tree trains a step
    up to log_arity(T) times again, 4.4 times on average for arity 2 and T = 2000; with ``slots`` it is at most r times, the
    least r with binomial(slots + 1 + r, r) >= T, and 3.1 times on average for 10 slots, what that tree keeps.

    *Recommended* where memory decides, the momentum is 0 or the run is very long. *Not recommended* where
    :class:`Reversible` with segments fits, which trains once more only.

    Raises:
        TypeError: if ``arity`` or ``slots`` is no integer.
        ValueError: if one of them is too small, or both are given.
        NotADirectoryError: if ``store`` names no place and no directory.

    >>> import reversible_hypergrad as rh
    >>> rh.RecursiveCheckpoint(slots=10)
    RecursiveCheckpoint(slots=10, store='device')

    Source: the tree: Engstrom et al., *Optimizing ML Training with Metagradient Descent*, 2025 (REPLAY). The optimum: Griewank
    and Walther, *Algorithm 799: Revolve*, ACM Transactions on Mathematical Software 26(1), 2000.
    """

    def __init__(self, arity: int = 2, slots: int | None = None, store: str | Path = "device") -> None:
        check_integer("arity", arity, least=2)
        if slots is not None:
            check_integer("slots", slots, least=1, otherwise="None")
        if slots is not None and arity != 2:
            raise ValueError(f"arity: expected none beside slots={slots}, since that optimum has no arity; got {arity}")
        self.arity, self.slots = arity, slots
        self.store = check_place("store", store)

    def __repr__(self) -> str:
        shape = f"arity={self.arity}" if self.slots is None else f"slots={self.slots}"
        return f"RecursiveCheckpoint({shape}, store={str(self.store)!r})"

    def start(self, problem: Problem) -> Run:
        return ScheduledRun(problem, self.schedule(), self.store)

    def cost(self, size: RunSize) -> Cost:
        return scheduled_cost(self.schedule(), size)

    def schedule(self) -> Schedule:
        return Tree(self.arity) if self.slots is None else Binomial(self.slots)


class Tree(Schedule):
    uniform = True

    def __init__(self, arity: int) -> None:
        self.arity = arity

    def keep(self, start: int, stop: int, held: int) -> Sequence[int]:
        kept: list[int] = []
        while stop - start > 1:
            part = -(-(stop - start) // self.arity)
            kept += range(start + part, stop, part)
            start = kept[-1]
        return kept


class Binomial(Schedule):
    uniform = True

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def keep(self, start: int, stop: int, held: int) -> Sequence[int]:
        kept: list[int] = []
        for free in range(self.slots - held, 0, -1):
            if stop - start <= 1:
                break
            start += _split(stop - start, free)
            kept.append(start)
        return kept


def _split(steps: int, free: int) -> int:
    """Where to keep the next state. The most steps within r repetitions of each are C(free + 1 + r, r): Pascal's rule, since
    the part before the state may be repeated r - 1 times with all slots, and the part after it r times with one less."""
    r = 1
    while comb(free + 1 + r, r) < steps:
        r += 1
    # Both parts must keep to their bounds, and to the lower ones too, or a repetition is wasted. The largest such place:
    # what lies before the last state on the way is not repeated by the run forward.
    return min(comb(free + r, r - 1), steps - comb(free + r - 1, r - 1))
