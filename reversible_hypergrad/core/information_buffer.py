"""The information buffer on NumPy arrays, one element per lane."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reversible_hypergrad import _core
from reversible_hypergrad.core.fixed_point import FORMATS

__all__ = ["InformationBuffer"]

Integers = NDArray[np.integer[Any]]


@dataclass
class _Spill:
    """Undone by walking back: the bound before a contraction, and the low bits that had to leave before it."""

    momentum: Fraction
    bound: int
    plane: Integers | None


class InformationBuffer:
    """Keeps the digits that decays destroy, for many lanes in lockstep; last in, first out.

    Every lane has one accumulator s, which starts at 0. All lanes see the same decays, so a bound on every s is known
    without looking at it; when the next push could pass the capacity, every lane moves its low 8 or 16 bits to a plane.

    Args:
        lanes: number of lanes.
        state_bits: 32 or 64, the width of values and accumulators.

    Attributes:
        bound: all accumulators are below this Python integer.
        accumulators: uint32 or uint64 array of shape (lanes,).
        planes: the spilled uint8 or uint16 arrays of shape (lanes,), oldest first.

    >>> import numpy as np
    >>> from fractions import Fraction
    >>> from reversible_hypergrad import core
    >>> buffer = core.InformationBuffer(lanes=2)
    >>> v = start = np.array([1000, -1000])
    >>> for _ in range(500):
    ...     v = buffer.contract(v, Fraction(1, 2)) + 17
    >>> for _ in range(500):
    ...     v = buffer.expand(v - 17, Fraction(1, 2))
    >>> bool((v == start).all()), buffer.is_empty()
    (True, True)

    Source: Maclaurin, Duvenaud, Adams 2015, algorithm 3, with a fixed spill schedule instead of one bignum per weight.
    """

    def __init__(self, lanes: int, state_bits: int = 64) -> None:
        if lanes < 1:
            raise ValueError(f"lanes: expected at least 1, got {lanes}")
        if state_bits not in FORMATS:
            raise ValueError(f"state_bits: expected 32 or 64, got {state_bits}")
        self.state_bits = state_bits
        self.bound = 1
        self.accumulators: Integers = np.zeros(lanes, np.uint64 if state_bits == 64 else np.uint32)
        self._history: list[_Spill] = []

    @property
    def planes(self) -> list[Integers]:
        return [spill.plane for spill in self._history if spill.plane is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of accumulators and planes."""
        return self.accumulators.nbytes + sum(plane.nbytes for plane in self.planes)

    def is_empty(self) -> bool:
        """Whether every contraction has been undone and left nothing behind."""
        return not self._history and not self.accumulators.any()

    def contract(self, values: ArrayLike, momentum: Fraction) -> Integers:
        """``values`` times ``momentum``, the remainders kept.

        Args:
            values: integers of shape (lanes,), below ``2 ** FORMATS[state_bits].velocity_limit_bits`` in magnitude.
            momentum: a fraction in (0, 1].

        Returns:
            A new int64 (int32) array near ``values * momentum``; its low part, up to the fraction's denominator, is
            digits popped from the buffer.

        Raises:
            OverflowError: if a value is out of range. ValueError: for another shape or fraction.
        """
        quanta = self._values(values)
        n, d = momentum.numerator, momentum.denominator
        bound, (spill_bits,) = _core.plan_pushes(self.bound, n, d, 1, self.state_bits)
        accumulators: Integers = self.accumulators.copy()
        plane: Integers | None = None
        if spill_bits:
            plane = accumulators.astype(np.uint16 if spill_bits == 16 else np.uint8)
            accumulators >>= spill_bits
        _core.contract(quanta, accumulators, n, d)
        self._history.append(_Spill(momentum, self.bound, plane))
        self.accumulators, self.bound = accumulators, bound
        return quanta

    def expand(self, values: ArrayLike, momentum: Fraction) -> Integers:
        """Undoes the last :meth:`contract`, which must have been by the same ``momentum``. Returns a new array.

        Raises:
            ValueError: if there is no contraction to undo, or it was by another fraction. Nothing is changed then.
        """
        if not self._history:
            raise ValueError("expand: the buffer is empty, no contract() is left to undo")
        last = self._history[-1]
        if last.momentum != momentum:
            raise ValueError(f"momentum: the last contract() was by {last.momentum}, got {momentum}. Undo in reverse order")
        quanta: Integers = self._values(values)
        accumulators: Integers = self.accumulators.copy()
        _core.contract(quanta, accumulators, momentum.denominator, momentum.numerator)
        if last.plane is not None:
            accumulators = np.bitwise_or(accumulators << 8 * last.plane.itemsize, last.plane, dtype=accumulators.dtype)
        self.accumulators, self.bound = accumulators, last.bound
        self._history.pop()
        return quanta

    def _values(self, values: ArrayLike) -> Integers:
        array: Integers = np.array(values, np.int64 if self.state_bits == 64 else np.int32)
        if array.shape != self.accumulators.shape:
            raise ValueError(f"values: expected shape {self.accumulators.shape}, one per lane, got {array.shape}")
        return array
