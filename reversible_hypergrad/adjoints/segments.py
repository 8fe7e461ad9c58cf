"""Where to cut a run into segments, so that no part of the walk back needs more memory than another."""

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["level"]


def level(costs: Sequence[float] | np.ndarray, state: float, held: Callable[[int], int]) -> tuple[list[int], float]:
    """First steps of the segments that need the least memory at their worst, and that memory.

    Walking back through segment ``j`` takes the memory of its steps and of ``held(j)`` states. Later segments come while more
    states are held, so they are shorter: with equal segments the worst moment would need up to 1.4 times as much.

    Args:
        costs: memory per step.
        state: memory of a state, in the same unit.
        held: how many states are held during segment j = 0, 1, ...; not decreasing.

    >>> level([1.0] * 10, 2.0, lambda j: j)
    ([0, 6], 6.0)
    """
    total = np.concatenate([[0.0], np.cumsum(costs)])
    steps = len(costs)

    def cut(most: float) -> list[int] | None:
        """Greedily, with ``most`` of memory; None if that does not reach the end."""
        starts, at = [0], 0
        while True:
            room = most - state * held(len(starts) - 1)
            # A rounding error must not cost a step.
            at_next = int(np.searchsorted(total, total[at] + room * (1 + 1e-12), side="right")) - 1
            if at_next >= steps:
                return starts
            if at_next <= at:
                return None
            starts.append(at_next)
            at = at_next

    low, high = 0.0, state * held(0) + float(total[-1])
    best = [0]
    while high - low > 1e-6 * float(total[-1]):
        middle = (low + high) / 2
        found = cut(middle)
        if found is None:
            low = middle
        else:
            high, best = middle, found
    ends = [*best[1:], steps]
    peak = max(state * held(j) + float(total[end] - total[start]) for j, (start, end) in enumerate(zip(best, ends, strict=True)))
    return best, peak
