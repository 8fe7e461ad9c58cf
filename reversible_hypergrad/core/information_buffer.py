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
class _Operation:
    """Undone by walking back: the bound before a push or contraction, and the low bits that had to leave before it."""

    by: Fraction | int  # a contraction's momentum, or a push's base
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
        self._history: list[_Operation] = []

    @property
    def planes(self) -> list[Integers]:
        return [operation.plane for operation in self._history if operation.plane is not None]

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
        accumulators, plane, bound = self._room_for(n, d)
        _core.contract(quanta, accumulators, n, d)
        self._done(momentum, accumulators, plane, bound)
        return quanta

    def expand(self, values: ArrayLike, momentum: Fraction) -> Integers:
        """Undoes the last operation, which must have been a :meth:`contract` by the same ``momentum``. Returns a new array.

        Raises:
            ValueError: if there is nothing to undo, or it was something else. Nothing is changed then.
        """
        quanta, accumulators = self._values(values), self.accumulators.copy()
        last = self._last(momentum, "momentum", "contract")
        _core.contract(quanta, accumulators, momentum.denominator, momentum.numerator)
        self._undone(last, accumulators)
        return quanta

    def push(self, digits: ArrayLike, base: int) -> None:
        """Stores one digit per lane, log2(base) bits each.

        Args:
            digits: integers of shape (lanes,) in [0, base).
            base: 1 to ``FORMATS[state_bits].max_denominator``.

        Raises:
            ValueError: for digits or a base that do not fit. Nothing is changed then.

        >>> from reversible_hypergrad import core
        >>> buffer = core.InformationBuffer(lanes=3)
        >>> buffer.push([7, 0, 9], base=10)
        >>> buffer.push([1, 2, 0], base=3)
        >>> buffer.pop(base=3), buffer.pop(base=10)
        (array([1, 2, 0]), array([7, 0, 9]))
        """
        accumulators, plane, bound = self._room_for(1, base)
        _core.push(self._values(digits), accumulators, base)
        self._done(base, accumulators, plane, bound)

    def pop(self, base: int) -> Integers:
        """Undoes the last operation, which must have been a :meth:`push` in the same ``base``. Returns its digits.

        Raises:
            ValueError: if there is nothing to undo, or it was something else. Nothing is changed then.
        """
        last, accumulators = self._last(base, "base", "push"), self.accumulators.copy()
        digits = _core.pop(accumulators, base)
        self._undone(last, accumulators)
        return digits

    def _room_for(self, n: int, d: int) -> tuple[Integers, Integers | None, int]:
        """Copies of the accumulators after the spill that pushing in base d needs, the spilled plane, and the next bound."""
        bound, (spill_bits,) = _core.plan_pushes(self.bound, n, d, 1, self.state_bits)
        accumulators: Integers = self.accumulators.copy()
        plane: Integers | None = None
        if spill_bits:
            plane = accumulators.astype(np.uint16 if spill_bits == 16 else np.uint8)
            accumulators >>= spill_bits
        return accumulators, plane, bound

    def _done(self, by: Fraction | int, accumulators: Integers, plane: Integers | None, bound: int) -> None:
        self._history.append(_Operation(by, self.bound, plane))
        self.accumulators, self.bound = accumulators, bound

    def _last(self, by: Fraction | int, name: str, method: str) -> _Operation:
        if not self._history:
            raise ValueError(f"the buffer is empty, no {method}() is left to undo")
        last = self._history[-1]
        if type(last.by) is not type(by) or last.by != by:
            what = f"contract() by {last.by}" if isinstance(last.by, Fraction) else f"push() in base {last.by}"
            raise ValueError(f"{name}: the last operation was a {what}, got {by}. Undo in reverse order")
        return last

    def _undone(self, last: _Operation, accumulators: Integers) -> None:
        if last.plane is not None:
            shifted = accumulators << 8 * last.plane.itemsize
            accumulators = np.bitwise_or(shifted, last.plane, dtype=accumulators.dtype)
        self.accumulators, self.bound = accumulators, last.bound
        self._history.pop()

    def _values(self, values: ArrayLike) -> Integers:
        array: Integers = np.array(values, np.int64 if self.state_bits == 64 else np.int32)
        if array.shape != self.accumulators.shape:
            raise ValueError(f"values: expected shape {self.accumulators.shape}, one per lane, got {array.shape}")
        return array
