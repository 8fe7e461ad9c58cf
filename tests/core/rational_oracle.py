"""The n/d arithmetic of the NumPy core once more, in Python integers: momentum as a fraction, the host schedule, the
contraction, lanes.

Symbols: V velocities in quanta, s accumulator of a lane, n/d momentum, r the digit that a contraction loses, p the digit that
it takes back, B exclusive bound on every s.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

ROWS = 8
LANES_PER_BLOCK = 64
BLOCK = ROWS * LANES_PER_BLOCK
STATE_ALIGNMENT = 16


@dataclass(frozen=True)
class Format:
    """Number formats of a state: weight = X / 2^weight_bits, velocity = V / 2^velocity_bits."""

    state_bits: int
    weight_bits: int
    velocity_bits: int
    velocity_limit: int
    weight_limit: int
    capacity: int
    max_denominator: int
    tolerance: Fraction
    signed: type
    unsigned: type


FORMATS = {
    64: Format(64, 47, 47, 2**62, 2**62, 2**50, 2**16, Fraction(1, 2**24), np.int64, np.uint64),
    32: Format(32, 26, 23, 2**30, 2**30, 2**31 - 2**16, 2**13, Fraction(1, 2**10), np.int32, np.uint32),
}


# Momentum and host schedule ------------------------------------------------------------------------------------------


def simplest_fraction(momentum: float, state_bits: int, hair: Fraction = Fraction(0)) -> tuple[int, int] | None:
    """n/d of the smallest d within the tolerance (+ hair) of momentum, by trying every d; None where none is allowed.

    The tolerance doubles, up to one percent, while it would take a larger d than the format has.
    """
    fmt = FORMATS[state_bits]
    mu = Fraction(momentum)
    distance = min(mu, 1 - mu) if mu < 1 else Fraction(1)
    if distance * Fraction(101, 100) * fmt.max_denominator < 1:
        return None
    tolerance = fmt.tolerance
    while tolerance <= Fraction(1, 100):
        slack = max(tolerance * distance + hair, Fraction(0)) if mu < 1 else Fraction(0)
        (low, low_den), (high, high_den) = (mu - slack).as_integer_ratio(), (mu + slack).as_integer_ratio()
        for d in range(1, fmt.max_denominator + 1):
            n = -(-low * d // low_den)  # smallest n with n/d >= mu - slack
            if n * high_den <= high * d:
                return n, d
        tolerance *= 2
    return None


def plan(bound: int, n: int, d: int, count: int, state_bits: int) -> tuple[int, list[int]]:
    """Bound after `count` pushes with momentum n/d, and the bits that spill before each of them."""
    capacity = FORMATS[state_bits].capacity
    spill_bits = []
    for _ in range(count):
        bits = 0
        if bound > capacity // d:
            short, long = ((bound - 1) >> 8) + 1, ((bound - 1) >> 16) + 1
            bits = 16 if long >= 64 * d or short > capacity // d else 8
            bound = long if bits == 16 else short
        assert bound <= capacity // d, "no spill makes room for this denominator"
        spill_bits.append(bits)
        bound = (bound * d - 1) // n + 1
        assert bound <= capacity
    return bound, spill_bits


# One weight ----------------------------------------------------------------------------------------------------------


def contract(v: int, s: int, n: int, d: int) -> tuple[int, int]:
    """Scale v by n/d; the digit that division loses goes into s. With n and d exchanged: the inverse."""
    quotient, r = divmod(v, d)
    s, p = divmod(s * d + r, n)
    return quotient * n + p, s


# Layout --------------------------------------------------------------------------------------------------------------


def lane_of_weights(size: int) -> list[tuple[int, int]]:
    """(lane, row) of every weight of a tensor in flat order."""
    full = size // BLOCK
    places = []
    for i in range(size):
        block, w = divmod(i, BLOCK)
        lanes = LANES_PER_BLOCK if block < full else -(-(size - full * BLOCK) // ROWS)
        row, lane = divmod(w, lanes)
        places.append((block * LANES_PER_BLOCK + lane, row))
    return places


def lane_count(size: int) -> int:
    return size // BLOCK * LANES_PER_BLOCK + -(-(size % BLOCK) // ROWS)


def block_count(size: int) -> int:
    return -(-size // BLOCK)


def state_size(size: int) -> int:
    return -(-size // STATE_ALIGNMENT) * STATE_ALIGNMENT
