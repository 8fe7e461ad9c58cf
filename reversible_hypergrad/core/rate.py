"""Bits that a schedule of decays costs, known before any data is seen."""

import math
from collections.abc import Iterable

import numpy as np

from reversible_hypergrad import _core
from reversible_hypergrad.core.lazy_scale import SMALLEST_FACTOR

__all__ = ["information_limit", "planned_bits"]


def information_limit(factors: Iterable[float]) -> float:
    """Bits per weight that decays by ``factors`` destroy, log2(1 / product): what any exact reversal must keep.

    >>> from reversible_hypergrad import core
    >>> round(core.information_limit([0.9]), 4)
    0.152
    """
    return -math.fsum(map(math.log2, _checked(factors)))


def planned_bits(factors: Iterable[float]) -> int:
    """Bits per weight that are kept for decays by ``factors``: the halvings, which is the limit rounded down.

    Args:
        factors: one per step, in [2 ** -16, 1].

    Returns:
        The sum of the shifts that :meth:`LazyScale.decay` gives. At most :func:`information_limit`, up to the rounding of
        the products (below 2e-16 bits per step), and less than one bit below it. In bytes, for a tensor of n weights:
        ``planned_bits(factors) * ceil(n / 8)``.

    Cost: below 1 us per step.

    >>> from reversible_hypergrad import core
    >>> core.planned_bits([0.9] * 1000), round(core.information_limit([0.9] * 1000), 2)
    (152, 152.0)
    """
    numbers = _checked(factors)
    a, bits = 1.0, 0
    # Without the doublings the products have the same digits, as long as none is subnormal: 60 factors stay above 2 ** -961.
    for first in range(0, len(numbers), 60):
        product = np.multiply.accumulate([a, *numbers[first : first + 60]])[-1]
        halvings = _core.halvings_of(product)
        a, bits = math.ldexp(product, halvings), bits + halvings
    return bits


def _checked(factors: Iterable[float]) -> list[float]:
    numbers = list(map(float, factors))
    for factor in numbers:
        if not SMALLEST_FACTOR <= factor <= 1:
            raise ValueError(f"factors: expected numbers in [2 ** -16, 1], got {factor}. A smaller factor forgets the state")
    return numbers
