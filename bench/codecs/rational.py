"""The rational codec of 2015: integers times n/d, the remainders as digits of one number, in plain NumPy.

    contract(V, n/d):  r = V mod d          push r in base d:   t = s*d + r
                       V = (V div d)*n + p  pop p in base n:    p = t mod n, s = t div n
    expand(V, n/d):    the exact inverse, contract(V, d/n)

div and mod are floor division. Eight values share one accumulator s. All accumulators see the same fractions, so a bound
on them is known without looking at data; when a push could pass the capacity, each spills its low 8 or 16 bits to a plane.

Source: Maclaurin, Duvenaud, Adams, Gradient-based Hyperparameter Optimization through Reversible Learning, ICML 2015,
algorithm 3, with a fixed spill schedule in place of one big integer per weight.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

VALUES = 8  # that share an accumulator
Array = NDArray[Any]


@dataclass(frozen=True)
class Format:
    capacity: int  # accumulators stay below
    max_denominator: int
    tolerance: Fraction  # of n/d, relative to the distance from 0 and 1
    dtype: type
    real: type


FORMATS = {
    64: Format(2**50, 2**16, Fraction(1, 2**24), np.int64, np.float64),
    32: Format(2**31 - 2**16, 2**13, Fraction(1, 2**10), np.int32, np.float32),
}


def simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """The fraction of the smallest denominator in [low, high], by continued fractions (the Stern-Brocot tree)."""
    whole = math.floor(low)
    if whole == low:
        return Fraction(whole)
    if whole + 1 <= high:
        return Fraction(whole + 1)
    return whole + 1 / simplest_between(1 / (high - whole), 1 / (low - whole))


def approximate(momentum: float, state_bits: int) -> Fraction:
    """The n/d that stands for a momentum in (0, 1): the low part of V is noise of d quanta, so the simplest is wanted."""
    layout, exact = FORMATS[state_bits], Fraction(momentum)
    distance, tolerance = min(exact, 1 - exact), layout.tolerance
    while tolerance <= Fraction(1, 100):
        fraction = simplest_between(exact - tolerance * distance, exact + tolerance * distance)
        if fraction.denominator <= layout.max_denominator:
            return fraction
        tolerance *= 2
    raise ValueError(f"momentum: expected one that has a fraction with d <= {layout.max_denominator}, got {momentum}")


def plan_push(bound: int, n: int, d: int, capacity: int) -> tuple[int, int]:
    """The bound on accumulators after a push, and the bits that all must spill before it."""
    spill = 0
    if bound > capacity // d:
        short, long = ((bound - 1) >> 8) + 1, ((bound - 1) >> 16) + 1
        spill, bound = (16, long) if long >= 64 * d or short > capacity // d else (8, short)
    return (bound * d - 1) // n + 1, spill


class RationalDecay:
    """As :class:`reversible_hypergrad.core.ReversibleDecay`, from zeros, with a constant quantum."""

    def __init__(self, size: int, fraction_bits: int, state_bits: int) -> None:
        self.format, self.state_bits, self.size = FORMATS[state_bits], state_bits, size
        self.sigma = 2.0**-fraction_bits
        lanes = math.ceil(size / VALUES)
        self.integers: Array = np.zeros((VALUES, lanes), np.int64)
        self.accumulators: Array = np.zeros(lanes, np.int64)
        self.bound, self.spilled, self.limit = 1, 0, 0.0
        self._history: list[tuple[Fraction, list[tuple[int, int, Array]]]] = []

    @property
    def values(self) -> Array:
        real = self.format.real
        return self.integers.ravel()[: self.size].astype(real) * real(self.sigma)

    @property
    def bits(self) -> float:
        """Kept per value: what was spilled, and what the accumulators hold."""
        return (self.spilled + math.log2(self.bound)) / VALUES

    def decay(self, momentum: float) -> None:
        fraction = approximate(momentum, self.state_bits)
        n, d = fraction.numerator, fraction.denominator
        pushes = []
        for row in self.integers:
            before = self.bound
            self.bound, spill = plan_push(before, n, d, self.format.capacity)
            pushes.append((before, spill, self.accumulators & ((1 << spill) - 1)))
            self.accumulators >>= spill
            self._contract(row, n, d)
            self.spilled += spill
        self.limit -= math.log2(momentum)
        self._history.append((fraction, pushes))

    def undo_decay(self) -> None:
        fraction, pushes = self._history.pop()
        for row, (bound, spill, plane) in zip(self.integers[::-1], reversed(pushes), strict=True):
            self._contract(row, fraction.denominator, fraction.numerator)
            self.accumulators = self.accumulators << spill | plane
            self.bound, self.spilled = bound, self.spilled - spill

    def add(self, x: Array) -> None:
        self.integers.ravel()[: self.size] += self._quanta(x)

    def undo_add(self, x: Array) -> None:
        self.integers.ravel()[: self.size] -= self._quanta(x)

    def is_at_the_start(self) -> bool:
        return not self._history and not self.integers.any() and not self.accumulators.any()

    def _contract(self, row: Array, n: int, d: int) -> None:
        quotient, remainder = np.divmod(row, d)
        self.accumulators, digit = np.divmod(self.accumulators * d + remainder, n)
        row[:] = quotient * n + digit

    def _quanta(self, x: Array) -> Array:
        real = self.format.real
        return np.rint(x.astype(real) * real(1 / self.sigma)).astype(np.int64)
