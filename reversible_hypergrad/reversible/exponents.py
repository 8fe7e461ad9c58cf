"""How large the quanta of a tensor's integers are: chosen when its numbers are first seen, and made larger when they grow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad.core.fixed_point import SQUARES, FixedPointFormat
from reversible_hypergrad.rules.base import Rule
from reversible_hypergrad.rules.step import signs_of

__all__ = ["EXPONENTS", "exponent_of_increments", "exponent_unseen", "exponents_of_weights", "gain_bits", "growth", "magnitudes"]

# Bits left above the largest number that was seen, so that it may grow before the integers must be shifted, which costs bits, or,
# on a GPU where nobody looks for many steps, is an error. 64 bits have plenty: numbers may grow a thousandfold, and keep 41 bits.
# Of 32 bits each one counts: 25 are left for the largest weight, as many as float32 has.
_WEIGHT_ROOM = {64: 20, 32: 5}
_INCREMENT_ROOM = {64: 10, 32: 4}
# Weights are taken for no smaller than this part of the largest in the state: a bias that begins near zero soon grows as large,
# and is added to numbers in which finer quanta are lost.
_LEAST_PART = 1 / 8
# A tensor of zeros: its weights are taken for this large.
_UNSEEN_WEIGHT = 0.125
# The same of a state, where nobody looks when its first gradient comes.
_UNSEEN_INCREMENT = 1.0

# What an exponent may be, so that sigma and 1 / sigma, and what they are multiplied by, are normal numbers of the arithmetic.
EXPONENTS = {64: (-900, 900), 32: (-90, 90)}


def exponents_of_weights(largest: Sequence[float], layout: FixedPointFormat) -> list[int]:
    """Of the quanta of weights.

    Args:
        largest: magnitude of each tensor's.
        layout: of the integers.
    """
    bits = layout.state_bits
    room = layout.limit_bits - _WEIGHT_ROOM[bits]
    least = max(largest) * _LEAST_PART or _UNSEEN_WEIGHT
    return [_clamped(_log2(max(own, least)) - room, bits) for own in largest]


def exponent_of_increments(largest: float, factor: float, layout: FixedPointFormat, headroom: int | None = None) -> int:
    """Of the quantum of a state that is zero and decays by ``factor``, from the largest magnitude that is first added to it.

    Args:
        headroom: bits to leave above it; None: as many as suit the layout.
    """
    bits = layout.state_bits
    room = min(layout.increment_bits, layout.limit_bits - gain_bits(factor)) - (
        _INCREMENT_ROOM[bits] if headroom is None else headroom
    )
    return _clamped(_log2(largest) - room, bits)


def gain_bits(factor: float) -> int:
    """By how many bits a state that decays by ``factor`` outgrows equal increments. It is at most 1 / (1 - factor) of them; more
    than some hundred are seldom equal."""
    return min(9, math.floor(-math.log2(max(1.0 - factor, 2.0**-9))))


def exponent_unseen(layout: FixedPointFormat) -> int:
    """Of the quantum of a state to which nothing has been added."""
    # Squares of numbers that may grow as those of other states.
    headroom = 2 * _INCREMENT_ROOM[layout.state_bits] if layout is SQUARES else None
    return exponent_of_increments(_UNSEEN_INCREMENT, 0.9, layout, headroom)


def magnitudes(rule: Rule, settings: Any, step: int, gradient: Tensor, weight: Tensor, z: Mapping[str, Tensor]) -> list[float]:
    """The largest magnitude of what one step adds to each of a tensor's states, in the rule's order, and last of its update.

    Args:
        rule: whose step it is.
        settings: its ``h``.
        step: its ``t``.
        gradient: float64, in the form that the rule's functions take, as ``weight`` and ``z``.
        weight: before the step.
        z: decayed.
    """
    new, found, names = dict(z), [], []
    signs = signs_of(rule, settings, step, gradient, weight, new)
    if signs is not None and bool((signs.abs() != (signs != 0)).any()):
        raise ValueError(f"optimizer: expected {type(rule).__name__}.signs to return -1, 0 and 1 alone. Use torch.sign")
    for name, increment in rule.increments(settings, step, gradient, weight, new):
        new[name] = new[name] + increment
        found.append(_largest(increment))
        names.append(name)
    if names != list(rule.states):
        raise ValueError(
            f"optimizer: expected {type(rule).__name__}.increments to yield its states in their order, {list(rule.states)}, got "
            f"{names}. Yield zeros for a state that gets nothing"
        )
    logged = rule.logged(settings, step, weight, new) if signs is None else signs
    return [*found, _largest(rule.update(settings, step, new, logged))]


def growth(
    flags: int, used: Sequence[int], seen: Sequence[float], exponent: NDArray[np.int64], layouts: Sequence[FixedPointFormat]
) -> NDArray[np.int64]:
    """By how many bits a refused step's slots must be shifted so that it fits.

    Args:
        flags: of one tensor.
        used: bits per slot, the weight last.
        seen: the magnitudes of what the step added and subtracted, per slot.
        exponent: of the slots in that step.
        layouts: of each slot.
    """
    more = np.zeros(len(used), np.int64)
    kinds = [(_core.BAD_INCREMENT, _core.STATE_OVERFLOW)] * (len(used) - 1) + [(_core.BAD_CHANGE, _core.WEIGHT_OVERFLOW)]
    for slot, ((own, overflow), layout) in enumerate(zip(kinds, layouts, strict=True)):
        if flags & own and math.isfinite(seen[slot]):
            more[slot] = max(0, _log2(seen[slot]) + 1 - layout.increment_bits - int(exponent[slot])) if seen[slot] else 0
        elif flags & overflow:
            more[slot] = max(0, used[slot] - layout.limit_bits)
    # What is a little beyond by the kernels' rounding is not by the float64 numbers here.
    return more if more.any() else np.array([1 if flags & (own | overflow) else 0 for own, overflow in kinds], np.int64)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _log2(number: float) -> int:
    """The least k with 2^k >= number."""
    fraction, exponent = math.frexp(number)
    return exponent - (fraction == 0.5)


def _clamped(exponent: int, state_bits: int) -> int:
    low, high = EXPONENTS[state_bits]
    return min(max(exponent, low), high)
