"""Where to cut a run into segments, so that no part of the walk back needs more memory than another."""

from collections.abc import Callable

from reversible_hypergrad.adjoints.per_step import PerStep

__all__ = ["level"]


def level(costs: PerStep, state: float, held: Callable[[int], int]) -> tuple[list[int], float]:
    """First steps of the segments that need the least memory at their worst, and that memory.

    Walking back through segment ``j`` takes the memory of its steps and of ``held(j)`` states. Later segments come while more
    states are held, so they are shorter: with equal segments the worst moment would need up to 1.4 times as much.

    Args:
        costs: memory per step.
        state: memory of a state, in the same unit.
        held: how many states are held during segment j = 0, 1, ...; not decreasing.

    >>> level(PerStep([1.0], 10), 2.0, lambda j: j)
    ([0, 6], 6.0)
    """
    steps, total = costs.steps, costs.until(costs.steps)

    def cut(most: float) -> list[int] | None:
        """Greedily, with ``most`` of memory; None if that does not reach the end."""
        starts, at = [0], 0
        while True:
            room = most - state * held(len(starts) - 1)
            # A rounding error must not cost a step.
            at_next = costs.reach(at, room * (1 + 1e-12))
            if at_next >= steps:
                return starts
            if at_next <= at:
                return None
            starts.append(at_next)
            at = at_next

    low, high = 0.0, state * held(0) + total
    best = [0]
    while high - low > 1e-6 * total:
        middle = (low + high) / 2
        found = cut(middle)
        if found is None:
            low = middle
        else:
            high, best = middle, found
    ends = [*best[1:], steps]
    sums = [costs.until(end) - costs.until(start) for start, end in zip(best, ends, strict=True)]
    peak = max(state * held(j) + own for j, own in enumerate(sums))
    return best, peak
