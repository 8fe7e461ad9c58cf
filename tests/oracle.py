"""The exact SGD arithmetic once more, in Python integers, one weight at a time, from the specification alone.

Nothing here shares a line or a trick with the C++ core: no reciprocals, no vectors, no blocks of pointers. What the two
agree on bit for bit is then either right or wrong twice in the same way. Every range that the formats promise is
asserted, so that a test which leaves the specified domain fails here and not by comparing two undefined results.

Symbols: X weights and V velocities in quanta, s accumulator of a lane, n/d momentum, r the digit that a contraction
loses, p the digit that it takes back, B exclusive bound on every s.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

ROWS = 8
LANES_PER_BLOCK = 64
BLOCK = ROWS * LANES_PER_BLOCK
STATE_ALIGNMENT = 16

BAD_GRADIENT, VELOCITY_OVERFLOW, WEIGHT_OVERFLOW, FOREIGN_GRADIENT = 1, 2, 4, 8


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


def increment(gradient, x: int, a: float, b: float, state_bits: int) -> int:
    """q, what a step adds to V: round_half_even(gradient * a [+ x * b]), one rounded operation at a time."""
    if state_bits == 64:
        g = float(gradient) * float(a)
        return round(g + float(x) * float(b) if b != 0 else g)
    a, b = np.float32(a), np.float32(b)
    g = np.float32(gradient) * a
    return round(float(g + np.float32(x) * b if b != 0 else g))


def movement(v: int, lr: float, state_bits: int) -> int:
    """What a step subtracts from X: round_half_even(v * lr)."""
    if state_bits == 64:
        return round(float(v) * float(lr))
    return round(float(np.float32(v) * np.float32(lr)))  # |v| < 2^53: int -> double is exact, -> float32 rounds once


def visible_bits(x: int, dtype: str, state_bits: int) -> int:
    """The bit pattern of the weight that the model sees for x quanta."""
    value = math.ldexp(float(x), -FORMATS[state_bits].weight_bits)
    if dtype == "float64":
        return int.from_bytes(struct.pack("<d", value), "little")
    single = np.float32(value)
    pattern = int.from_bytes(single.tobytes(), "little")
    if dtype == "float32":
        return pattern
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return int.from_bytes(np.float16(single).tobytes(), "little")
    assert dtype == "bfloat16"
    kept, rest = pattern >> 16, pattern & 0xFFFF
    return kept + (rest > 0x8000 or (rest == 0x8000 and kept & 1))


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


# Bucket --------------------------------------------------------------------------------------------------------------


class Bucket:
    """Several tensors with one accumulator tensor; X and V as one list per tensor, without padding."""

    def __init__(self, x: list[list[int]], v: list[list[int]], state_bits: int):
        self.format = FORMATS[state_bits]
        self.x = [list(part) for part in x]
        self.v = [list(part) for part in v]
        self.bound = 1
        first_lane = 0
        self._rows: list[list[list[tuple[int, int]]]] = []  # [tensor][row] -> (lane in the bucket, weight)
        for part in self.x:
            rows: list[list[tuple[int, int]]] = [[] for _ in range(ROWS)]
            for weight, (lane, row) in enumerate(lane_of_weights(len(part))):
                rows[row].append((first_lane + lane, weight))
            self._rows.append(rows)
            first_lane += lane_count(len(part))
        self.s = [0] * first_lane

    def step(self, gradients, coefficients, n: int, d: int) -> tuple[list[int], list[bytes]]:
        """One step; a tensor whose gradient is None is inactive. Returns the spill schedule and the planes."""
        bits = self.format.state_bits
        self.bound, spill_bits = plan(self.bound, n, d, ROWS, bits)
        planes = []
        for row, spill in enumerate(spill_bits):
            if spill:
                planes.append(b"".join((s & ((1 << spill) - 1)).to_bytes(spill // 8, "little") for s in self.s))
                self.s = [s >> spill for s in self.s]
            for x, v, rows, gradient, (a, b, lr) in zip(self.x, self.v, self._rows, gradients, coefficients, strict=True):
                if gradient is None:
                    continue
                for lane, i in rows[row]:
                    assert self.s[lane] * d + d - 1 < self.format.capacity
                    new, self.s[lane] = contract(v[i], self.s[lane], n, d)
                    v[i] = new + increment(gradient[i], x[i], a, b, bits)
                    x[i] -= movement(v[i], lr, bits)
                    assert abs(v[i]) < self.format.velocity_limit, "velocity outside the specified range"
                    assert abs(x[i]) < self.format.weight_limit, "weight outside the specified range"
        assert max(self.s, default=0) < self.bound
        return spill_bits, planes

    def undo(self, gradients, coefficients, n: int, d: int, spill_bits: list[int], planes: list[bytes]) -> None:
        """The inverse of `step` (`bound` is the host's and stays)."""
        bits = self.format.state_bits
        planes = list(planes)
        for row in reversed(range(ROWS)):
            for x, v, rows, gradient, (a, b, lr) in zip(self.x, self.v, self._rows, gradients, coefficients, strict=True):
                if gradient is None:
                    continue
                for lane, i in reversed(rows[row]):
                    x[i] += movement(v[i], lr, bits)
                    v[i], self.s[lane] = contract(v[i] - increment(gradient[i], x[i], a, b, bits), self.s[lane], d, n)
            if spill := spill_bits[row]:
                plane, size = planes.pop(), spill // 8
                low = [int.from_bytes(plane[k * size : (k + 1) * size], "little") for k in range(len(self.s))]
                self.s = [s << spill | rest for s, rest in zip(self.s, low, strict=True)]
        assert not planes
