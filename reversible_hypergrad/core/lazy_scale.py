"""A decay moves the scale of a state, not its integers: value = Z * sigma."""

import math

from reversible_hypergrad import _core
from reversible_hypergrad.checks import as_integer

__all__ = ["MOST_SHIFT", "SMALLEST_FACTOR", "LazyScale"]

SMALLEST_FACTOR = 2.0**-16
"""Decays lie in [SMALLEST_FACTOR, 1]."""
MOST_SHIFT = 61
"""What 64-bit integers can be shifted by in one step."""


class LazyScale:
    """What one unit of an integer state is worth, and how the integers move as it decays.

    The integers Z stand for ``Z * sigma`` with ``sigma = a * 2 ** exponent``. A decay multiplies ``a``. Where that leaves
    (1/2, 1], ``a`` is doubled and the integers are halved, by :func:`contract`, as often as it takes: at 0.9 every 6.6th
    time. The sequence of moves depends on the factors alone.

    Args:
        exponent: the first sigma is ``2.0 ** exponent``.

    Attributes:
        a: float in (1/2, 1], at first 1.
        exponent: int.
        count: how many moves there have been. Odd ones round halves down, the others up.

    Raises:
        TypeError: for an exponent that is no integer.

    Cost: about 1 us per decay. Each decay is remembered (some 100 bytes) until it is undone.

    >>> from reversible_hypergrad import core
    >>> scale = core.LazyScale()
    >>> scale.decay(0.6), scale.a, scale.sigma
    ((0, 0), 0.6, 0.6)
    >>> scale.decay(0.6), scale.a, scale.sigma  # one halving
    ((1, 1), 0.72, 0.72)
    >>> scale.undo(), scale.sigma
    ((1, 1), 0.6)
    """

    def __init__(self, exponent: int = 0) -> None:
        self.a, self.exponent, self.count = 1.0, as_integer("exponent", exponent), 0
        self._log: list[tuple[float, int, int, int, int]] = []

    @property
    def sigma(self) -> float:
        return math.ldexp(self.a, self.exponent)

    def decay(self, factor: float, rescale: int = 0) -> tuple[int, int]:
        """Multiplies sigma by ``factor``, up to the rounding of one product.

        Args:
            factor: in [2 ** -16, 1].
            rescale: further halvings of the integers, each of which doubles sigma: their value stays. The integers are
                shifted by 61 at most, which leaves none of them.

        Returns:
            ``shift`` and ``centre`` of the :func:`contract` that the integers owe; both 0 if they do not move.

        Raises:
            ValueError: for a factor outside its range or a negative ``rescale``. Nothing is changed then.
            TypeError: for a ``rescale`` that is no integer.
        """
        rescale = as_integer("rescale", rescale)
        if not SMALLEST_FACTOR <= factor <= 1:
            raise ValueError(f"factor: expected a number in [2 ** -16, 1], got {factor}. A smaller factor forgets the state")
        if rescale < 0:
            raise ValueError(f"rescale: expected at least 0 halvings, got {rescale}")
        a, count, shift, centre = _core.decay_scale(self.a, self.count, factor, rescale, MOST_SHIFT)
        self._log.append((self.a, self.exponent, self.count, shift, centre))
        self.a, self.exponent, self.count = a, self.exponent + rescale, count
        return shift, centre

    def rescale(self, halvings: int) -> tuple[int, int]:
        """Makes room for larger integers: they are halved, their value stays. Returns what a decay does."""
        return self.decay(1.0, halvings)

    def undo(self) -> tuple[int, int]:
        """Takes the last :meth:`decay` or :meth:`rescale` back. Returns its ``shift`` and ``centre``, for :func:`expand`.

        Raises:
            ValueError: if there is nothing to undo.
        """
        if not self._log:
            raise ValueError("the scale is as it was made, no decay() is left to undo")
        self.a, self.exponent, self.count, *move = self._log.pop()
        return move[0], move[1]
