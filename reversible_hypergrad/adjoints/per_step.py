"""A number for each step of a run, which may have many steps and few different numbers."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["PerStep"]


class PerStep:
    """Numbers >= 0 and their sums.

    Args:
        numbers: one for each step, or one for all.
        steps: how many.

    >>> from reversible_hypergrad.adjoints.per_step import PerStep
    >>> costs = PerStep([0.5], 10_000_000)
    >>> costs.until(4), costs.reach(4, 1.7)
    (2.0, 7)
    """

    def __init__(self, numbers: Sequence[float] | NDArray[np.float64], steps: int) -> None:
        self.numbers, self.steps = np.asarray(numbers, np.float64), steps
        self._one_for_all = len(self.numbers) == 1

    @cached_property
    def _totals(self) -> NDArray[np.float64]:
        totals = np.zeros(1 + len(self.numbers))
        np.cumsum(self.numbers, out=totals[1:])
        return totals

    def until(self, step: int) -> float:
        """The sum over the steps before ``step``."""
        return step * float(self.numbers[0]) if self._one_for_all else float(self._totals[step])

    def reach(self, begin: int, room: float) -> int:
        """The last step, at most, before which the sum over those from ``begin`` on is within ``room``."""
        if not self._one_for_all:
            return int(np.searchsorted(self._totals, self._totals[begin] + room, side="right")) - 1
        each = float(self.numbers[0])
        return min(begin + int(room // each), self.steps) if each else self.steps
