"""How large the quanta of a tensor's integers are: chosen when its numbers are first seen, and made larger when they grow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.core.fixed_point import FixedPointFormat
from reversible_hypergrad.rules.base import Rule

__all__ = ["EXPONENTS", "exponent_of_states", "exponent_of_weights", "growth"]

# Bits left above the largest number that was seen, so that it may grow before the integers must be shifted. Increments of 64 bits
# have 51 bits, states 62: the difference holds what a decay of 0.9995 lets a state grow to. In 32 bits that comes on top.
_WEIGHT_ROOM = {64: 6, 32: 3}
_INCREMENT_ROOM = {64: 5, 32: 2}
# A tensor of zeros: its weights are taken for this large.
_UNSEEN_WEIGHT = 0.125

# What an exponent may be, so that sigma and 1 / sigma, and what they are multiplied by, are normal numbers of the arithmetic.
EXPONENTS = {64: (-900, 900), 32: (-90, 90)}


def exponent_of_weights(largest: float, layout: FixedPointFormat) -> int:
    """Of the quantum of weights whose largest magnitude is ``largest``."""
    bits = layout.state_bits
    return _clamped(_log2(largest or _UNSEEN_WEIGHT) - (layout.limit_bits - _WEIGHT_ROOM[bits]), bits)


def exponent_of_states(
    rule: Rule, settings: Any, step: int, gradient: Tensor, weight: Tensor, factors: Sequence[float], layout: FixedPointFormat
) -> list[int | None]:
    """Of the quantum of each of a tensor's states, which are zero, from the first increments; None where these are zero, too.

    Args:
        settings: the rule's ``h``.
        gradient: finite.
        factors: what the states decay by, in the rule's order.
    """
    zeros: Mapping[str, Tensor] = {name: torch.zeros_like(gradient, dtype=torch.float64) for name in rule.states}
    z = dict(zeros)
    found: list[int | None] = []
    for (name, increment), factor in zip(
        rule.increments(settings, step, gradient.double(), weight.double(), z), factors, strict=True
    ):
        z[name] = z[name] + increment
        largest = float(increment.abs().max()) if increment.numel() else 0.0
        found.append(_exponent_of_increments(largest, factor, layout) if 0 < largest < math.inf else None)
    return found


def _exponent_of_increments(largest: float, factor: float, layout: FixedPointFormat) -> int:
    # A state is at most 1 / (1 - factor) equal increments.
    gain = min(12, math.floor(-math.log2(max(1.0 - factor, 2.0**-12))))
    bits = layout.state_bits
    room = min(layout.increment_bits - _INCREMENT_ROOM[bits], layout.limit_bits - _INCREMENT_ROOM[bits] - gain)
    return _clamped(_log2(largest) - room, bits)


def growth(flags: int, used: Sequence[int], kinds: tuple[int, int, int, int], layout: FixedPointFormat) -> NDArray[np.int64]:
    """By how many bits a refused step's slots must be shifted, so that it fits, one bit to spare.

    Args:
        flags: of one tensor.
        used: bits per slot, the weight last.
        kinds: the flags for a bad increment, a state's overflow, a bad change, a weight's overflow.
    """
    increment, state, change, weight = (flags & kind for kind in kinds)
    more = np.zeros(len(used), np.int64)
    for slot, bits in enumerate(used):
        own, overflow = (change, weight) if slot == len(used) - 1 else (increment, state)
        # Where what is added did not fit, nobody knows how far beyond it was.
        if own:
            more[slot] = 8
        elif overflow and bits > layout.limit_bits:
            more[slot] = bits - layout.limit_bits + 1
    return more


def _log2(number: float) -> int:
    """The least k with 2^k >= number."""
    fraction, exponent = math.frexp(number)
    return exponent - (fraction == 0.5)


def _clamped(exponent: int, state_bits: int) -> int:
    low, high = EXPONENTS[state_bits]
    return min(max(exponent, low), high)
