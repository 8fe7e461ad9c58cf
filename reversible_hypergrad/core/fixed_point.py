"""Fixed point: integers that count quanta of size sigma."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from reversible_hypergrad import _core
from reversible_hypergrad.checks import as_integer

__all__ = ["FORMATS", "FixedPointFormat", "Integers", "Reals", "as_integers", "dequantize", "quantize"]

Integers = NDArray[np.signedinteger[Any]]
Reals = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FixedPointFormat:
    """What one width of state can hold.

    Attributes:
        state_bits: 32 or 64, the bits of one integer.
        limit_bits: integers lie in [-2 ** limit_bits, 2 ** limit_bits).
        increment_bits: what one step adds to an integer lies in [-2 ** increment_bits, 2 ** increment_bits).
    """

    state_bits: int
    limit_bits: int
    increment_bits: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """int32 or int64, of the integers."""
        return np.dtype(np.int64 if self.state_bits == 64 else np.int32)

    @property
    def real(self) -> np.dtype[Any]:
        """float32 or float64, of the arithmetic on them."""
        return np.dtype(np.float64 if self.state_bits == 64 else np.float32)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the integers in tensors."""
        return torch.int64 if self.state_bits == 64 else torch.int32


FORMATS = {numbers["state_bits"]: FixedPointFormat(**numbers) for numbers in _core.FORMATS}
"""The formats by ``state_bits``."""

SQUARES = FixedPointFormat(**_core.SQUARES_FORMAT)
"""Of means of squares, whatever the other states have."""


def quantize(values: ArrayLike, sigma: float, state_bits: int = 64) -> Integers:
    """Floats to counts of quanta, rounded to nearest even.

    Args:
        values: finite floats, any shape, below ``2 ** limit_bits * sigma`` in magnitude.
        sigma: the quantum, above 0.
        state_bits: 32 or 64.

    Returns:
        int64 (int32) array of the same shape: ``rint(values * (1 / sigma))``, the product taken in float64 (float32).

    Raises:
        OverflowError: if a value is not finite or does not fit.
        ValueError: for another ``state_bits`` or ``sigma``.

    >>> from reversible_hypergrad import core
    >>> core.quantize([0.5, -0.3], sigma=2.0**-4)
    array([ 8, -5])
    """
    layout = format_of(state_bits)
    if not (sigma > 0 and np.isfinite(sigma)):
        raise ValueError(f"sigma: expected a finite number above 0, got {sigma}")
    return rounded("values", values, sigma, layout, layout.limit_bits)


def rounded(name: str, values: ArrayLike, sigma: float, layout: FixedPointFormat, limit_bits: int) -> Integers:
    """Counts of quanta in [-2 ** limit_bits, 2 ** limit_bits), or an error that calls the values ``name``."""
    limit, real = 2.0**limit_bits, layout.real.type
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        scaled = np.rint(np.asarray(values, layout.real) * real(1 / sigma))
    outside = ~((scaled >= -limit) & (scaled < limit))
    if outside.any():
        index = tuple(map(int, np.argwhere(outside)[0]))
        raise OverflowError(
            f"{name}: expected finite numbers below {limit * sigma:g} in magnitude, got {np.asarray(values)[index]} at {index}. "
            "Use a larger sigma"
        )
    integers: Integers = scaled.astype(layout.dtype)
    return integers


def dequantize(integers: ArrayLike, sigma: float) -> Reals:
    """Counts of quanta to floats: int64 to float64, int32 to float32, rounded to nearest even where the digits do not suffice.

    >>> from reversible_hypergrad import core
    >>> core.dequantize([8, -5], sigma=2.0**-4)
    array([ 0.5   , -0.3125])
    """
    quanta = as_integers(integers)
    layout = FORMATS[8 * quanta.dtype.itemsize]
    real = layout.real.type
    values: Reals = quanta.astype(layout.real) * real(sigma)
    return values


def as_integers(values: ArrayLike) -> Integers:
    """As a contiguous int32 or int64 array, not copied where it is one."""
    array: NDArray[Any] = np.asarray(values)
    if array.dtype not in (np.int32, np.int64):
        raise TypeError(f"values: expected an array of int32 or int64, got {array.dtype}. quantize() makes one of floats")
    integers: Integers = np.ascontiguousarray(array).reshape(array.shape)
    return integers


def format_of(state_bits: int) -> FixedPointFormat:
    if as_integer("state_bits", state_bits) not in FORMATS:
        raise ValueError(f"state_bits: expected 32 or 64, got {state_bits}")
    return FORMATS[state_bits]
