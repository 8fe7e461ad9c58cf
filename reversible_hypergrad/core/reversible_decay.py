"""A state that decays and grows, on NumPy arrays, and every step of it undone exactly."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reversible_hypergrad.checks import as_integer
from reversible_hypergrad.core.fixed_point import Integers, Reals, dequantize, format_of, quantize, rounded
from reversible_hypergrad.core.lazy_scale import LazyScale
from reversible_hypergrad.core.planes import contract, expand
from reversible_hypergrad.core.rate import information_limit

__all__ = ["ReversibleDecay"]


@dataclass
class _Decay:
    factor: float
    shift: int
    centre: int
    planes: NDArray[np.uint8] | None


class ReversibleDecay:
    """``values = factor * values`` and ``values = values + x``, any number of times, then backwards to the very start.

    What a velocity, a moving average or any leaky sum does, in fixed point. The bits that the decays drop are kept in
    planes, the additions are taken back by subtracting the same ``x``, which the caller provides again.

    Args:
        values: floats of any shape, what to start from.
        fraction_bits: the first quantum is ``2.0 ** -fraction_bits``. It decays with the values.
        state_bits: 32 or 64, the width of the integers; arithmetic on them is in float32 or float64.

    Attributes:
        integers: int32 or int64 array, the state.
        scale: the :class:`LazyScale` by which the integers count.

    Raises:
        OverflowError: if a value is not finite or beyond the format's limits.
        TypeError: for bits that are no integers.

    >>> import numpy as np
    >>> from reversible_hypergrad import core
    >>> velocity = core.ReversibleDecay(np.zeros(3))
    >>> gradients = np.random.default_rng(0).normal(size=(100, 3))
    >>> for gradient in gradients:
    ...     velocity.decay(0.9)
    ...     velocity.add(gradient)
    >>> velocity.bits, round(velocity.limit, 2)
    (15, 15.2)
    >>> for gradient in gradients[::-1]:
    ...     velocity.undo_add(gradient)
    ...     velocity.undo_decay()
    >>> velocity.values, velocity.bits
    (array([0., 0., 0.]), 0)

    Source: Maclaurin, Duvenaud, Adams 2015, for the idea; the arithmetic is this library's own (see The arithmetic).
    """

    def __init__(self, values: ArrayLike, fraction_bits: int = 40, state_bits: int = 64) -> None:
        self.format = format_of(state_bits)
        self.scale = LazyScale(-as_integer("fraction_bits", fraction_bits))
        self.integers: Integers = quantize(values, self.scale.sigma, state_bits)
        self._history: list[_Decay | None] = []  # None: an addition

    @property
    def values(self) -> Reals:
        """Integers times sigma, in a float64 (float32) array."""
        return dequantize(self.integers, self.scale.sigma)

    @property
    def bits(self) -> int:
        """Bits kept per value."""
        return sum(each.shift for each in self._history if each)

    @property
    def limit(self) -> float:
        """Bits per value that the decays not yet undone destroy, which any exact scheme must keep."""
        return information_limit(each.factor for each in self._history if each)

    @property
    def nbytes(self) -> int:
        """Bytes of the planes."""
        return sum(each.planes.nbytes for each in self._history if each and each.planes is not None)

    def decay(self, factor: float) -> None:
        """Multiplies the values by ``factor``, in [2 ** -16, 1]."""
        self._contract(factor, 0)

    def rescale(self, halvings: int) -> None:
        """Makes room below the limits: quanta ``2 ** halvings`` times as large, at ``halvings`` bits per value."""
        self._contract(1.0, halvings)

    def add(self, x: ArrayLike) -> None:
        """Adds ``x``, rounded to whole quanta.

        Args:
            x: floats of the values' shape, or what broadcasts to it.

        Raises:
            OverflowError: if ``x`` is not finite or too large, or a sum leaves the limits. Nothing is changed then;
                :meth:`rescale` makes room.
        """
        self.integers = self._sum(self._quanta(x))
        self._history.append(None)

    def undo_add(self, x: ArrayLike) -> None:
        """Takes the last :meth:`add` back, which must be the last operation. ``x`` must have the same bits.

        Raises:
            ValueError: if the last operation was another.
            OverflowError: if another ``x`` is noticed. Nothing is changed then.
        """
        if not self._history or self._history[-1] is not None:
            raise ValueError("the last operation was no add(). Undo in reverse order")
        self.integers = self._sum(-self._quanta(x))
        self._history.pop()

    def undo_decay(self) -> None:
        """Takes the last :meth:`decay` or :meth:`rescale` back, which must be the last operation.

        Raises:
            ValueError: if the last operation was another.
            OverflowError: if an addition before was undone by another ``x``, which is noticed only by values that are too large.
                Nothing is changed then.
        """
        last = self._history[-1] if self._history else None
        if last is None:
            raise ValueError("the last operation was no decay(). Undo in reverse order")
        if last.planes is not None:
            self.integers = expand(self.integers, last.planes, last.shift, last.centre)
        self.scale.undo()
        self._history.pop()

    def _contract(self, factor: float, rescale: int) -> None:
        shift, centre = self.scale.decay(factor, rescale)
        planes = None
        if shift:
            self.integers, planes = contract(self.integers, shift, centre)
        self._history.append(_Decay(factor, shift, centre, planes))

    def _quanta(self, x: ArrayLike) -> Integers:
        return rounded("x", x, self.scale.sigma, self.format, self.format.increment_bits)

    def _sum(self, quanta: Integers) -> Integers:
        total = self.integers + quanta  # cannot wrap: an increment has fewer bits than are left above the limits
        if total.shape != self.integers.shape:
            raise ValueError(f"x: expected what broadcasts to shape {self.integers.shape}, got {quanta.shape}")
        limit = 1 << self.format.limit_bits
        if total.size and not (total.min() >= -limit and total.max() < limit):
            raise OverflowError(f"x: a sum leaves [-2 ** {self.format.limit_bits}, 2 ** {self.format.limit_bits}). Use rescale()")
        return total
