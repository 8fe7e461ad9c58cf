"""The scales of many tensors' states: what a step's decays do to them, and to the integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reversible_hypergrad.core.lazy_scale import SMALLEST_FACTOR, centres, decay_scales, halvings_of

__all__ = ["ScaleState", "Scales"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ScaleState:
    """All scales at one moment, arrays of one shape. They are never written to, so keeping one copies nothing."""

    a: Floats
    count: Integers
    exponent: Integers


class Scales:
    """The scales of n tensors with S slots each (a slot: a state of the optimizer, or the weight).

    The integers Z of a slot stand for ``Z * sigma`` with ``sigma = a * 2 ** exponent`` and ``a`` in (1/2, 1]. A decay
    multiplies ``a``; where ``a`` leaves its range it is doubled, and the integers are halved as often.

    Args:
        exponents: integers of shape (n, S), the first sigmas are ``2.0 ** exponents``.
        most_shift: by which integers can be shifted in one step. A rescale beyond it leaves at most 2 units of the new sigma,
            where nothing should be left.

    Attributes:
        state: the arrays of shape (n, S) of this moment. Assign a state that was read before to go back to it.

    Cost: about 10 us per decay of 200 tensors.

    >>> from reversible_hypergrad.reversible.scales import Scales
    >>> scales = Scales([[-47, -47]])
    >>> before = scales.state
    >>> scales.decay([0.3, 1.0])
    (array([[1, 0]]), array([[1, 0]]))
    >>> scales.sigma() * 2.0**47
    array([[0.6, 1. ]])
    >>> scales.state = before
    >>> scales.sigma() * 2.0**47
    array([[1., 1.]])
    """

    def __init__(self, exponents: ArrayLike, most_shift: int = 61) -> None:
        self.most_shift = most_shift
        exponent: Integers = np.array(exponents, np.int64)
        if exponent.ndim != 2:
            raise ValueError(f"exponents: expected shape (tensors, slots), got {exponent.shape}")
        self.state = ScaleState(np.ones(exponent.shape), np.zeros(exponent.shape, np.int64), exponent)
        self._sigma: tuple[ScaleState | None, Floats] = None, np.empty(0)
        self._checked: ArrayLike | None = None  # factors that are known to be in their range
        self._still: Integers = np.zeros(exponent.shape, np.int64)

    def sigma(self) -> Floats:
        """float64 of shape (n, S): what one unit of each slot's integers is worth. Not to be written to."""
        of, sigma = self._sigma
        if of is not self.state:  # what a step ends with, the next one begins with
            sigma = np.ldexp(self.state.a, self.state.exponent)
            self._sigma = self.state, sigma
        return sigma

    def decay(
        self,
        factors: ArrayLike,
        active: NDArray[np.bool_] | None = None,
        rescale: NDArray[np.integer[Any]] | None = None,
    ) -> tuple[Integers, Integers]:
        """Multiplies the scales by ``factors``.

        Args:
            factors: floats in [2 ** -16, 1], of shape (S,) or (n, S).
            active: (n,), the tensors that take part in the step; the others stay as they are. All by default.
            rescale: non-negative integers of shape (n, S), further halvings of the integers at an unchanged value:
                sigma doubles as often.

        Returns:
            ``shift`` and ``centre``, int64 of shape (n, S), for the kernels' contraction: Z becomes
            ``(Z + centre) >> shift``. Both are 0 where the integers do not move.

        Raises:
            ValueError: for a factor outside its range or a negative ``rescale``. Nothing is changed then.
        """
        factor = np.asarray(factors, np.float64)
        if factors is not self._checked:  # in most runs every step's are the same array
            inside = (factor >= SMALLEST_FACTOR) & (factor <= 1)
            if not inside.all():
                worst = factor[~inside].flat[0]
                raise ValueError(
                    f"factors: expected numbers in [2 ** -16, 1], got {worst}. Set the value to 0 instead of decaying it"
                )
            self._checked = factors
        if rescale is not None and rescale.min(initial=0) < 0:
            raise ValueError(f"rescale: expected non-negative integers, got {rescale.min()}")
        if active is not None:
            factor = np.where(active[:, None], factor, 1.0)
            rescale = None if rescale is None else np.where(active[:, None], rescale, 0)
        now = self.state
        if rescale is None and (a := now.a * factor).min(initial=1.0) > 0.5:
            self.state = ScaleState(a, now.count, now.exponent)
            return self._still, self._still
        shifted = 0 if rescale is None else self._shifted(halvings_of(now.a * factor), rescale)
        a, count, shift, centre = decay_scales(now.a, now.count, factor, shifted)
        self.state = ScaleState(a, count, now.exponent if rescale is None else now.exponent + rescale)
        return shift, centre

    def _shifted(self, halvings: NDArray[np.integer[Any]], rescale: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
        """As much of ``rescale`` as the integers follow."""
        followed: NDArray[np.integer[Any]] = np.minimum(rescale, self.most_shift - halvings)
        return followed

    def go_back(
        self, before: ScaleState, factors: ArrayLike, rescale: NDArray[np.integer[Any]] | None
    ) -> tuple[Integers, Integers]:
        """Undoes a :meth:`decay` of all tensors from what is left of the scales before it.

        Args:
            before: its ``count`` is not looked at.
            factors: as :meth:`decay` had them.
            rescale: as :meth:`decay` had it.

        Returns:
            ``shift`` and ``centre`` as :meth:`decay` gave them.
        """
        product = before.a * np.asarray(factors, np.float64)
        if rescale is None and product.min(initial=1.0) > 0.5:
            self.state = ScaleState(before.a, self.state.count, before.exponent)
            return self._still, self._still
        shift = halvings_of(product).astype(np.int64)
        if rescale is not None:
            shift += self._shifted(shift, rescale)
        count = self.state.count - (shift > 0)
        self.state = ScaleState(before.a, count, before.exponent)
        return shift, centres(shift, count)
