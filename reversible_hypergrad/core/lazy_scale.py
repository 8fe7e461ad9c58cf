"""A decay moves the scale of a state, not its integers: value = Z * sigma."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SMALLEST_FACTOR", "decay_scales"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SMALLEST_FACTOR = 2.0**-16
"""Decays lie in [SMALLEST_FACTOR, 1]."""


def decay_scales(
    a: Floats,
    count: Integers,
    factor: Floats,
    rescale: NDArray[np.integer[Any]] | int = 0,
) -> tuple[Floats, Integers, Integers, Integers]:
    """Multiplies scales by factors, elementwise, and says how the integers must move for it.

    Args:
        a: float64 in (1/2, 1], the fractions of the scales.
        count: int64, how often the integers of each have moved.
        factor: float64 in [SMALLEST_FACTOR, 1], broadcast against ``a``.
        rescale: further halvings of the integers, at least 0; the caller adds them to the scales' exponents.

    Returns:
        New arrays: the next ``a`` and ``count``, and ``shift`` and ``centre`` (int64) for :func:`contract`. No argument is
        changed.
    """
    product = a * factor
    # In (2 ** -(k + 1), 2 ** -k] for k halvings; the float below it is in [2 ** -(k + 1), 2 ** -k), whose exponent is -k.
    halvings = -np.frexp(np.nextafter(product, 0.0))[1]
    shift: Integers = (halvings + rescale).astype(np.int64)
    moves = shift > 0
    # Half of 2 ** shift, and every second time one less, so that halves go up and down in turn; 0 where nothing moves.
    centre = (np.left_shift(1, shift) >> 1) - (count & moves)
    return np.ldexp(product, halvings), count + moves, shift, centre
