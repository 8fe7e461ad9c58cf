"""The exact arithmetic of lazily scaled integers once more, in Python, one weight at a time, from the specification alone.

Nothing here shares a line or a trick with the kernels: no vectors, no masks, no tables. What the two agree on bit for bit is then
either right or wrong twice in the same way. Integers are Python's, wrapped where the specification wraps; floating-point
numbers are Python's doubles or NumPy's float32 scalars, one operation after the other.

Symbols: Z the integer of a slot (a state of the rule, or, last, the weight X), sigma its scale: value = Z * sigma. k, c: by how
many bits Z is shifted in a step, and the centre that is added before, so that neither half is rounded to more often. Real: the
floating-point numbers of the rule's arithmetic, as wide as the weights' integers. Power of a state: 1 if it scales like the
gradient, 2 if like its square; one of power 2 is wide, in integers of 64 bits whatever the others have, and never below 0.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np

BLOCK = 512
LANES = 64
SUM_LANES = 512
STATE_ALIGNMENT = 16

BAD_INCREMENT, STATE_OVERFLOW, BAD_CHANGE, WEIGHT_OVERFLOW, FOREIGN_GRADIENT = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Layout:
    """Integers of `bits` bits, kept in [-2^limit_bits, 2^limit_bits); what is added to one in [-2^change_bits, 2^change_bits)."""

    bits: int
    limit_bits: int
    change_bits: int
    real: type

    @property
    def limit(self) -> int:
        return 2**self.limit_bits

    @property
    def change_limit(self) -> int:
        return 2**self.change_bits

    def wrap(self, z: int) -> int:
        half = 1 << (self.bits - 1)
        return (z + half) % (2 * half) - half

    def rint(self, x) -> int:
        """The integer nearest to x, ties to even; outside the limits for changes wherever x is, or x is NaN."""
        if self is SQUARES:
            return 2**62 if not x < 2.0**62 else max(-(2**62), round(float(x)) if math.isfinite(x) else -(2**62))
        if self.bits == 64:
            return self.wrap(_bits_of_double(float(x) + _MAGIC) - _bits_of_double(_MAGIC))
        nearest = None if np.isnan(x) or np.isinf(x) else round(float(x))
        return -(2**31) if nearest is None or not -(2**31) <= nearest < 2**31 else nearest


LAYOUTS = {64: Layout(64, 62, 51, float), 32: Layout(32, 30, 30, np.float32)}
SQUARES = Layout(64, 62, 61, float)  # of wide states

_MAGIC = 1.5 * 2.0**52
QUIET = np.errstate(all="ignore")  # values that leave their range are what some tests are about


def layouts_of(rule, state_bits: int) -> list[Layout]:
    """Of each slot."""
    return [SQUARES if power == 2 else LAYOUTS[state_bits] for power in (*rule.powers, 1)]


def _bits_of_double(x: float) -> int:
    return int.from_bytes(struct.pack("<d", x), "little", signed=True)


# Host -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """sigma = a * 2^exponent of one slot of one tensor; count: how often the slot has been shifted."""

    exponent: int = 0
    a: float = 1.0
    count: int = 0

    @property
    def sigma(self) -> float:
        return math.ldexp(self.a, self.exponent)

    def after(self, factor: float, rescale: int = 0) -> tuple[Scale, tuple[int, int]]:
        """The scale in a step that decays the slot by `factor`, and how the step shifts the integers: (k, centre)."""
        a, k = self.a * factor, 0
        while a <= 0.5:
            a, k = 2.0 * a, k + 1
        k += rescale
        if k == 0:
            return Scale(self.exponent + rescale, a, self.count), (0, 0)
        return Scale(self.exponent + rescale, a, self.count + 1), (k, 2 ** (k - 1) - self.count % 2)


# Rules ----------------------------------------------------------------------------------------------------------------


# A rule has a name, the powers of its states, how many numbers it takes, and which of them multiplies the weight: where that is
# 0 in a whole tensor, its increments do not look at the weights, w is None.


class SGD:
    """v = mu*v + share*(g + decay*w), w = w - lr*v. Numbers: share, decay, lr; mu is v's decay."""

    name = "sgd"
    powers = (1,)
    numbers = 3
    decay = 1

    @staticmethod
    def increment(state: int, g, w, z, numbers):
        share, decay, _ = numbers
        return share * (g if w is None else g + decay * w)

    @staticmethod
    def update(z, numbers):
        return numbers[2] * z[0]


class Adam:
    """m = b1*m + share_m*d, s = b2*s + share_s*d^2, d = g + decay*w; w = w - step*m / (sqrt(s + root_eps)*scale + eps).

    Numbers: share_m, share_s, decay, step, scale, eps, root_eps; b1 and b2 are the states' decays.
    """

    name = "adam"
    powers = (1, 2)
    numbers = 7
    decay = 2

    @staticmethod
    def increment(state: int, g, w, z, numbers):
        d = g if w is None else g + numbers[2] * w
        return numbers[0] * d if state == 0 else numbers[1] * (d * d)

    @staticmethod
    def update(z, numbers):
        _, _, _, step, scale, eps, root_eps = numbers
        m, s = z
        return np.divide(step * m, np.sqrt(s + root_eps) * scale + eps)  # NumPy's, as Python raises where IEEE has inf or NaN


# One weight -----------------------------------------------------------------------------------------------------------


def contract(z: int, k: int, centre: int, layout: Layout) -> tuple[int, int]:
    """Z shifted down by k bits, and the bits that fell out."""
    t = layout.wrap(z + centre)
    return t >> k, t & ((1 << k) - 1)


def expand(z: int, k: int, centre: int, low: int, layout: Layout) -> int:
    return layout.wrap((z << k) + low - centre)


@dataclass
class TensorStep:
    """One tensor's step: what it takes to go through it in both directions. Slots: the states, then the weight."""

    before: list[Scale]
    after: list[Scale]
    shifts: list[tuple[int, int]]
    numbers: tuple[float, ...]
    elements: list[list[float] | None]
    low: list[list[int]] = field(default_factory=list)  # per slot and weight: the bits that fell out

    def planes(self) -> bytes:
        """Slot by slot, bit by bit, weight i in bit i%8 of byte i/8."""
        out = bytearray()
        for (k, _), low in zip(self.shifts, self.low, strict=True):
            for bit in range(k):
                plane = bytearray(-(-len(low) // 8))
                for i, bits in enumerate(low):
                    plane[i // 8] |= (bits >> bit & 1) << i % 8
                out += plane
        return bytes(out)


def plan(rule, scales: list[list[Scale]], factors, numbers, elements=None, rescale=None) -> list[TensorStep | None]:
    """The host's part of a step. Per tensor: factors and rescale of each slot (no factors: the tensor takes no part), the
    rule's numbers, and lists of them per weight."""
    steps: list[TensorStep | None] = []
    for i, (own, factor) in enumerate(zip(scales, factors, strict=True)):
        if factor is None:
            steps.append(None)
            continue
        by = (0,) * len(own) if rescale is None else rescale[i]
        moved = [scale.after(*both) for scale, *both in zip(own, factor, by, strict=True)]
        per_weight = [None] * rule.numbers if elements is None else elements[i]
        after, shifts = [scale for scale, _ in moved], [shift for _, shift in moved]
        steps.append(TensorStep(list(own), after, shifts, numbers[i], per_weight))
    return steps


class Kernel:
    """A tensor's step with its numbers rounded to the real type, for one weight at a time."""

    def __init__(self, rule, state_bits: int, step: TensorStep):
        self.rule, self.step = rule, step
        self.layouts, self.real = layouts_of(rule, state_bits), LAYOUTS[state_bits].real
        # A wide state is scaled in double.
        self.wide = [power == 2 for power in (*rule.powers, 1)]
        of_slot = [float if wide else self.real for wide in self.wide]
        self.sigma = [real(scale.sigma) for real, scale in zip(of_slot, step.after, strict=True)]
        self.inverse = [real(1.0 / scale.sigma) for real, scale in zip(of_slot, step.after, strict=True)]
        self.sigma_before = self.real(step.before[-1].sigma)
        self.numbers = tuple(map(self.real, step.numbers))
        self.sees_weight = step.numbers[rule.decay] != 0 or step.elements[rule.decay] is not None

    def numbers_of(self, i: int):
        """The rule's numbers of weight i."""
        given = [None if own is None else self.real(own[i]) for own in self.step.elements]
        return tuple(number if own is None else own for number, own in zip(self.numbers, given, strict=True))

    def value(self, slot: int, z: int):
        if self.wide[slot]:
            return self.real(float(max(z, 1)) * self.sigma[slot])
        return self.real(z) * self.sigma[slot]

    def quanta(self, slot: int, increment) -> int:
        """What is added to a state; to a wide one never nothing, unless the increment is 0."""
        if not self.wide[slot]:
            return self.layouts[slot].rint(increment * self.inverse[slot])
        nearest = self.layouts[slot].rint(float(increment) * self.inverse[slot])
        return 1 if nearest == 0 and increment != 0 else nearest

    def increment_of(self, state: int, gradient, x: int, values, numbers) -> int:
        w = self.real(x) * self.sigma_before if self.sees_weight else None
        return self.quanta(state, self.rule.increment(state, self.real(gradient), w, values, numbers))

    def bad_increment(self, slot: int, quanta: int) -> int:
        return BAD_INCREMENT * outside(quanta, self.layouts[slot].change_limit)

    def foreign(self, slot: int, z: int) -> bool:
        """Whether no contraction can have led to this z."""
        k, limit = self.step.shifts[slot][0], self.layouts[slot].limit
        if self.wide[slot] and z < 0:
            return True
        return abs(z) > limit >> k if k else outside(z, limit)

    def forth(self, z: list[int], gradient, numbers, keep_states: bool) -> tuple[list[int], list[int], int]:
        """Integers, bits and flags of one weight after the step. `keep_states`: the weight alone moves."""
        *states, before = z
        low, flags = [0] * len(z), 0
        if not keep_states:
            for s, (k, centre) in enumerate(self.step.shifts[:-1]):
                states[s], low[s] = contract(states[s], k, centre, self.layouts[s])
        values = [self.value(s, one) for s, one in enumerate(states)]
        for s in range(0 if keep_states else len(states)):
            quanta = self.increment_of(s, gradient, before, values, numbers)
            states[s] = self.layouts[s].wrap(states[s] + quanta)
            values[s] = self.value(s, states[s])
            flags |= self.bad_increment(s, quanta) | STATE_OVERFLOW * outside(states[s], self.layouts[s].limit)
        layout = self.layouts[-1]
        x, low[-1] = contract(before, *self.step.shifts[-1], layout)
        change = self.change(states, numbers)
        x = layout.wrap(x - change)
        flags |= BAD_CHANGE * outside(change, layout.change_limit) | WEIGHT_OVERFLOW * outside(x, layout.limit)
        return [*states, x], low, flags

    def change(self, states: list[int], numbers) -> int:
        values = [self.value(s, one) for s, one in enumerate(states)]
        return self.layouts[-1].rint(self.rule.update(values, numbers) * self.inverse[-1])

    def weight_back(self, z: list[int], low: int, numbers) -> int:
        (*states, x), layout = z, self.layouts[-1]
        return expand(layout.wrap(x + self.change(states, numbers)), *self.step.shifts[-1], low, layout)

    def weight_forth(self, z: list[int], numbers) -> tuple[int, int]:
        (*states, x), layout = z, self.layouts[-1]
        x, low = contract(x, *self.step.shifts[-1], layout)
        return layout.wrap(x - self.change(states, numbers)), low

    def without_increments(self, z: list[int], gradient, numbers) -> tuple[list[int], int]:
        """The states as they were contracted, and flags, among them whether they can have come from there; X is the old one."""
        (*states, x), flags = z, 0
        values = [self.value(s, one) for s, one in enumerate(states)]
        for s in reversed(range(len(states))):
            quanta = self.increment_of(s, gradient, x, values, numbers)
            states[s] = self.layouts[s].wrap(states[s] - quanta)
            values[s] = self.value(s, states[s])
            flags |= self.bad_increment(s, quanta) | FOREIGN_GRADIENT * self.foreign(s, states[s])
        return states, flags


def outside(z: int, limit: int) -> bool:
    return not -limit <= z < limit


@QUIET
def visible_bits(x: int, sigma: float, dtype: str, real: type) -> int:
    """The bit pattern of the weight that the model sees for the integer x."""
    if dtype == "float64":
        return int.from_bytes(struct.pack("<d", float(x) * sigma), "little")
    single = np.float32(real(x) * real(sigma))
    pattern = int.from_bytes(single.tobytes(), "little")
    if dtype == "float32":
        return pattern
    if dtype == "float16":
        return int.from_bytes(np.float16(single).tobytes(), "little")
    assert dtype == "bfloat16"
    kept, rest = pattern >> 16, pattern & 0xFFFF
    return kept + (rest > 0x8000 or (rest == 0x8000 and kept & 1))


# Memory and hash ------------------------------------------------------------------------------------------------------


def block_count(size: int) -> int:
    return -(-size // BLOCK)


def state_size(size: int) -> int:
    return -(-size // STATE_ALIGNMENT) * STATE_ALIGNMENT


def _mix(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def hash_of_slot(z: list[int], position: int, stream: int, layout: Layout) -> int:
    """Of one tensor's slot that begins at `position`. Streams: 0 the weight, s + 1 state s."""
    total, per_word = 0, 64 // layout.bits
    for first in range(0, len(z), BLOCK):
        block = [one % 2**layout.bits for one in z[first : first + BLOCK]]
        inside = 0
        for i in range(0, len(block), per_word):
            word = sum(one << layout.bits * j for j, one in enumerate(block[i : i + per_word]))
            keyed = (word + 0x9E3779B97F4A7C15 * (2 * (i // per_word) + 1)) % 2**64
            inside += keyed % 2**32 * (keyed >> 32)
        total += _mix((inside + _mix((2 * (position + first) + stream + 1) % 2**64)) % 2**64)
    return total


def used_bits(z: list[int], layout: Layout) -> int:
    """One word whose length in bits is that of the longest integer, without its sign."""
    word = 0
    for one in z:
        word |= (one ^ one << 1) % 2**layout.bits
    return word


# Bucket ---------------------------------------------------------------------------------------------------------------


class Bucket:
    """Several tensors under one rule: slots[tensor][slot], a list of integers without padding, and scales[tensor][slot]."""

    def __init__(self, rule, state_bits: int, slots: list[list[list[int]]], scales: list[list[Scale]]):
        self.rule, self.state_bits, self.layouts = rule, state_bits, layouts_of(rule, state_bits)
        self.slots = [[list(slot) for slot in tensor] for tensor in slots]
        self.scales = [list(own) for own in scales]
        self.flags = [0] * len(slots)
        sizes = [len(tensor[-1]) for tensor in slots]
        self.skipped = [[False] * block_count(size) for size in sizes]
        self._positions = [sum(map(state_size, sizes[:i])) for i in range(len(sizes))]

    @QUIET
    def step(self, steps: list[TensorStep | None], gradients, redo: bool = False) -> None:
        """All tensors that take part. `redo`: the states of skipped blocks stay, and so do their bits."""
        for i, step in enumerate(steps):
            self.flags[i] = 0
            if step is None:
                continue
            kernel, size = Kernel(self.rule, self.state_bits, step), len(self.slots[i][-1])
            self.scales[i] = list(step.after)
            if not redo:
                step.low = [[0] * size for _ in step.shifts]
            for n in range(size):
                keep = redo and self.skipped[i][n // BLOCK]
                z, low, flags = kernel.forth(self._weight(i, n), gradients[i][n], kernel.numbers_of(n), keep)
                self._put(i, n, z)
                for slot, bits in enumerate(low):
                    if not keep or slot == len(low) - 1:
                        step.low[slot][n] = bits
                self.flags[i] |= flags

    @QUIET
    def move_weights(self, steps: list[TensorStep | None], back: bool) -> None:
        for i, step in enumerate(steps):
            self.flags[i] = 0
            if step is None:
                continue
            kernel, weights = Kernel(self.rule, self.state_bits, step), self.slots[i][-1]
            self.scales[i][-1] = (step.before if back else step.after)[-1]
            for n in range(len(weights)):
                if back:
                    weights[n] = kernel.weight_back(self._weight(i, n), step.low[-1][n], kernel.numbers_of(n))
                else:
                    weights[n], step.low[-1][n] = kernel.weight_forth(self._weight(i, n), kernel.numbers_of(n))

    @QUIET
    def undo_states(self, steps: list[TensorStep | None], gradients) -> None:
        """Blocks whose bits would be lost are skipped."""
        for i, step in enumerate(steps):
            self.flags[i] = 0
            self.skipped[i] = [False] * len(self.skipped[i])
            if step is None:
                continue
            kernel, size = Kernel(self.rule, self.state_bits, step), len(self.slots[i][-1])
            self.scales[i][:-1] = step.before[:-1]
            loses = any(k for k, _ in step.shifts[:-1])
            for block, first in enumerate(range(0, size, BLOCK)):
                here = range(first, min(first + BLOCK, size))
                undone = [kernel.without_increments(self._weight(i, n), gradients[i][n], kernel.numbers_of(n)) for n in here]
                for _, flags in undone:
                    self.flags[i] |= flags
                self.skipped[i][block] = loses and any(flags & FOREIGN_GRADIENT for _, flags in undone)
                for n, (states, _) in zip(here, undone, strict=True):
                    for s, z in enumerate([] if self.skipped[i][block] else states):
                        self.slots[i][s][n] = expand(z, *step.shifts[s], step.low[s][n], self.layouts[s])

    def undo(self, steps: list[TensorStep | None], gradients) -> None:
        self.move_weights(steps, back=True)
        self.undo_states(steps, gradients)

    def visible(self, i: int, dtype: str) -> list[int]:
        """Bit patterns of tensor i's weights."""
        sigma, real = self.scales[i][-1].sigma, LAYOUTS[self.state_bits].real
        return [visible_bits(x, sigma, dtype, real) for x in self.slots[i][-1]]

    def hash(self, weights: bool, states: bool) -> int:
        """Of the slots that a phase moves, all tensors', as a signed number of 64 bits."""
        total = 0
        for slots, position in zip(self.slots, self._positions, strict=True):
            for slot, z in enumerate(slots):
                is_weight = slot == len(slots) - 1
                if weights if is_weight else states:
                    total += hash_of_slot(z, position, 0 if is_weight else slot + 1, self.layouts[slot])
        return LAYOUTS[64].wrap(total)

    def used(self, steps: list[TensorStep | None]) -> list[list[int]]:
        """Per tensor and slot, as signed numbers of 64 bits; 0 of tensors that take no part."""
        return [
            [0 if step is None else LAYOUTS[64].wrap(used_bits(z, own)) for z, own in zip(slots, self.layouts, strict=True)]
            for slots, step in zip(self.slots, steps, strict=True)
        ]

    def _weight(self, tensor: int, n: int) -> list[int]:
        return [slot[n] for slot in self.slots[tensor]]

    def _put(self, tensor: int, n: int, z: list[int]) -> None:
        for slot, one in zip(self.slots[tensor], z, strict=True):
            slot[n] = one
