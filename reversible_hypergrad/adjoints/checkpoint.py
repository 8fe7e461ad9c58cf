"""Keep the state every so many steps, and train again between two of them."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path

from reversible_hypergrad.adjoints.base import Adjoint, Run
from reversible_hypergrad.adjoints.cost import Cost, RunSize
from reversible_hypergrad.adjoints.floats import needs_states
from reversible_hypergrad.adjoints.per_step import PerStep
from reversible_hypergrad.adjoints.scheduled import Schedule, ScheduledRun, scheduled_cost
from reversible_hypergrad.adjoints.segments import level
from reversible_hypergrad.checks import check_integer
from reversible_hypergrad.problem.problem import Problem
from reversible_hypergrad.storage.places import check_place

__all__ = ["Checkpoint"]


class Checkpoint(Adjoint):
    """Keeps weights and states at about sqrt(T) of T steps, and trains again between two of them. Exact.

    Momentum 0 and Nesterov are allowed. While a segment is walked back, the weights of its steps are kept; the last one's are
    kept when they are first seen.

    Args:
        every: steps between two kept states, at least 1. None takes the least memory: segments that get shorter towards the
            end, since fewer states are left when the first ones are walked back.
        store: where states wait: "device", "host", or a directory, as for :class:`Snapshots`.

    Cost: for float32, about 8 sqrt(T) bytes per weight (11 with velocities); almost one more forward run.

    *Recommended* for models that are small beside the activations, or with momentum 0. *Not recommended* for large models: at
    momentum 0.9 :class:`Reversible` takes less memory up to some 100,000 steps, and no time again.

    Raises:
        TypeError: if ``every`` is neither an integer nor None.
        ValueError: if ``every`` is below 1.
        NotADirectoryError: if ``store`` names no place and no directory.

    >>> import reversible_hypergrad as rh
    >>> rh.Checkpoint(every=100)
    Checkpoint(every=100, store='device')

    Source: Chen, Xu, Zhang, Guestrin, *Training Deep Nets with Sublinear Memory Cost*, 2016, applied to the steps of training.
    """

    def __init__(self, every: int | None = None, store: str | Path = "device") -> None:
        if every is not None:
            check_integer("every", every, least=1, otherwise="None")
        self.every = every
        self.store = check_place("store", store)

    def __repr__(self) -> str:
        return f"Checkpoint(every={self.every}, store={str(self.store)!r})"

    def start(self, problem: Problem) -> Run:
        states = problem.per_weight(lambda rule: len(rule.states))
        starts = self.starts(len(problem.steps), needs_states(problem), states)
        return ScheduledRun(problem, Segments(starts), self.store)

    def cost(self, size: RunSize) -> Cost:
        return scheduled_cost(Segments(self.starts(size.steps, size.with_states, size.states)), size)

    def starts(self, steps: int, with_states: bool, states: float = 1) -> list[int]:
        """The first steps of the segments, 0 first. A snapshot is the weights, or ``with_states`` as much as what is between."""
        if self.every is not None:
            return list(range(0, max(steps, 1), self.every))
        return level(PerStep([1.0], steps), 1.0 if with_states else 1.0 + states, lambda j: j)[0]


class Segments(Schedule):
    """The states between segments, and every state of the segment that comes last before ``stop``."""

    def __init__(self, starts: Sequence[int]) -> None:
        self.starts = list(starts)

    def keep(self, start: int, stop: int, held: int) -> Sequence[int]:
        between = self.starts[bisect_right(self.starts, start) : bisect_left(self.starts, stop)]
        return [*between, *range(between[-1] + 1, stop)] if between else range(start + 1, stop)
