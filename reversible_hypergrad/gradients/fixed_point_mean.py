"""A mean of gradients whose bits depend on neither the order nor the grouping of its terms."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Exponents", "FixedPointMean", "exponent_of", "fitting"]

_LEAST = -960  # so that 2^(62 - exponent) is a float64
_HEADROOM = 4  # a gradient may grow sixteenfold before its step is begun again


def exponent_of(magnitude: float) -> int:
    """The least one, E, with ``magnitude`` < 2^E. Numbers that are not finite need none: no exponent would do.

    >>> exponent_of(0.75), exponent_of(1.0), exponent_of(0.0)
    (0, 1, -960)
    """
    return max(math.frexp(magnitude)[1], _LEAST) if math.isfinite(magnitude) and magnitude else _LEAST


def fitting(exponents: Sequence[int], largest: Sequence[float]) -> list[int]:
    """Those that ``largest`` fits in: the same if it does fit, with some headroom where it does not.

    >>> fitting([3, 3], [7.0, 8.0])
    [3, 8]
    """
    needed = [exponent_of(magnitude) for magnitude in largest]
    return [own if need <= own else need + _HEADROOM for own, need in zip(exponents, needed, strict=True)]


class FixedPointMean:
    """Of ``parts`` gradients, each a list of tensors. Elements are rounded to integer counts of quanta, and these are added.

    With exponent E a tensor's elements are below 2^E in magnitude, and its quantum is 2^(E - B), B = 62 - ceil(log2(parts)),
    so that no sum is above 2^62. An element is off by half a quantum at most. The sum of the integers is exact, and the mean is
    its quotient by ``parts`` in float64, rounded to the weight's dtype.

    Args:
        weights: of whose shapes, dtypes, devices and strides the gradients are.
        exponents: one per weight.
        parts: how many gradients will be added.
    """

    def __init__(self, weights: Sequence[Tensor], exponents: Sequence[int], parts: int) -> None:
        bits = 62 - (parts - 1).bit_length()
        self._parts, self._dtypes = parts, [w.dtype for w in weights]
        self._shifts = [bits - exponent for exponent in exponents]
        self._sums = [torch.zeros_like(w, dtype=torch.int64, requires_grad=False) for w in weights]
        self._largest: Tensor | None = None

    def add(self, gradients: Sequence[Tensor]) -> None:
        """One of the terms. What is too large for its exponent makes integers without meaning, and :meth:`largest` tells."""
        largest = [g.abs().amax() if g.numel() else g.new_zeros(()) for g in gradients]
        together = torch.stack([m.to(largest[0].device, torch.float64) for m in largest])
        self._largest = together if self._largest is None else torch.maximum(self._largest, together)
        for total, gradient, shift in zip(self._sums, gradients, self._shifts, strict=True):
            total += gradient.to(torch.float64, copy=True).mul_(2.0**shift).round_().to(torch.int64)

    def largest(self) -> list[float]:
        """The largest magnitude of each tensor in any term; NaN or infinity if one was there. Waits for the device."""
        assert self._largest is not None
        found: list[float] = self._largest.tolist()
        return found

    def mean(self) -> list[Tensor]:
        """In the weights' dtypes. NaN throughout a tensor of which a term had a number that was not finite."""
        return [
            (total.to(torch.float64) / self._parts).mul_(2.0**-shift).to(dtype)
            if math.isfinite(magnitude)
            else torch.full_like(total, math.nan, dtype=dtype)
            for total, shift, dtype, magnitude in zip(self._sums, self._shifts, self._dtypes, self.largest(), strict=True)
        ]


class Exponents:
    """Those of every step of a run, one per weight: chosen when the step is trained first, and the same ever after.

    They never fall, so few steps change them, and those alone are kept.

    Args:
        weights: how many.
    """

    def __init__(self, weights: int) -> None:
        self._steps, self._rows = [0], [[_LEAST] * weights]
        self._trained = 0  # steps

    def at(self, step: int) -> list[int]:
        return self._rows[bisect_right(self._steps, step) - 1]

    def plain(self) -> list[Any]:
        return [list(self._steps), [list(row) for row in self._rows], self._trained]

    def restore(self, plain: list[Any]) -> None:
        """Those that gave ``plain``."""
        steps, rows, self._trained = plain
        self._steps, self._rows = list(steps), [list(row) for row in rows]

    def keep(self, step: int, exponents: list[int]) -> None:
        """For ``step`` and later ones, if it had not been trained before: a strategy that looks at other weights on its way back
        may need others there, once."""
        if step < self._trained:
            return
        self._trained = step + 1
        if exponents != self.at(step):
            self._steps.append(step)
            self._rows.append(exponents)
