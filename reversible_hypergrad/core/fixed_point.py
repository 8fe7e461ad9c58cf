"""Two's-complement fixed point: an integer count of quanta, the quantum a power of two."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reversible_hypergrad import _core

__all__ = ["FORMATS", "FixedPointFormat", "dequantize", "quantize"]


@dataclass(frozen=True)
class FixedPointFormat:
    """What one width of state can hold.

    Attributes:
        state_bits: 32 or 64, the bits of one integer.
        weight_fraction_bits: a weight is an integer times ``2 ** -weight_fraction_bits``.
        velocity_fraction_bits: the same for a velocity (and a gradient).
        weight_limit_bits: weights stay below ``2 ** weight_limit_bits`` quanta.
        velocity_limit_bits: the same for velocities.
        capacity: accumulators of the information buffer stay below this.
        max_denominator: the largest denominator of a momentum.
    """

    state_bits: int
    weight_fraction_bits: int
    velocity_fraction_bits: int
    weight_limit_bits: int
    velocity_limit_bits: int
    capacity: int
    max_denominator: int

    @property
    def weight_range(self) -> float:
        """Weights lie strictly between minus and plus this."""
        return 2.0 ** (self.weight_limit_bits - self.weight_fraction_bits)

    @property
    def velocity_range(self) -> float:
        """Velocities, and gradients, lie strictly between minus and plus this."""
        return 2.0 ** (self.velocity_limit_bits - self.velocity_fraction_bits)

    @property
    def dtype(self) -> torch.dtype:
        """Of the integers, and of the accumulators' bits."""
        return torch.int64 if self.state_bits == 64 else torch.int32


FORMATS = {bits: FixedPointFormat(**_core.format_of(bits)) for bits in (32, 64)}
"""The formats by ``state_bits``."""


def quantize(values: ArrayLike, fraction_bits: int = FORMATS[64].weight_fraction_bits) -> NDArray[np.int64]:
    """Floats to fixed point, rounded to nearest even.

    Args:
        values: finite floats, any shape, below ``2 ** (63 - fraction_bits)`` in magnitude.
        fraction_bits: the quantum is ``2 ** -fraction_bits``.

    Returns:
        int64 counts of quanta, of the same shape.

    Raises:
        OverflowError: if a value is not finite or does not fit.

    >>> from reversible_hypergrad import core
    >>> core.quantize([0.5, -0.3], fraction_bits=4)
    array([ 8, -5])
    """
    scaled = np.rint(np.asarray(values, np.float64) * 2.0**fraction_bits)
    outside = ~(np.abs(scaled) < 2.0**63)
    if outside.any():
        worst = np.asarray(values, np.float64)[outside].flat[0]
        raise OverflowError(
            f"values: expected finite numbers below {2.0 ** (63 - fraction_bits):g} in magnitude, got {worst}. "
            "Use fewer fraction_bits"
        )
    return scaled.astype(np.int64)


def dequantize(quanta: ArrayLike, fraction_bits: int = FORMATS[64].weight_fraction_bits) -> NDArray[np.float64]:
    """Fixed point to float64, rounded to nearest even where 53 bits do not suffice.

    >>> from reversible_hypergrad import core
    >>> core.dequantize([8, -5], fraction_bits=4)
    array([ 0.5   , -0.3125])
    """
    return np.asarray(quanta, np.int64).astype(np.float64) * 2.0**-fraction_bits
