"""The scales of many tensors' states: what a step's decays do to them, and to the integers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reversible_hypergrad import _core
from reversible_hypergrad.core.lazy_scale import MOST_SHIFT, SMALLEST_FACTOR

__all__ = ["Move", "ScaleState", "Scales"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ScaleState:
    """All scales at one moment, arrays of one shape. They are never written to, so keeping one copies nothing."""

    a: Floats
    count: Integers
    exponent: Integers


class Move(NamedTuple):
    """What one step does, as the kernels take it. Not to be written to.

    Attributes:
        numbers: a row per tensor: sigma of its states after the step, of its weights before and after it, the rule's numbers.
        shifts: a row per tensor: whether it takes part, then, per slot, shift and centre of ``Z = (Z + centre) >> shift``.
        plane_bytes: what the bits shifted out take.
    """

    numbers: Floats
    shifts: Integers
    plane_bytes: int

    def tables(self) -> tuple[Tensor, Tensor, int]:
        """The same, the arrays as tensors."""
        return torch.from_numpy(self.numbers), torch.from_numpy(self.shifts), self.plane_bytes


class Scales:
    """The scales of n tensors with S slots each (a slot: a state of the optimizer, or the weight, which is the last one).

    The integers Z of a slot stand for ``Z * sigma`` with ``sigma = a * 2 ** exponent`` and ``a`` in (1/2, 1]. A decay
    multiplies ``a``; where ``a`` leaves its range it is doubled, and the integers are halved as often.

    Args:
        exponents: integers of shape (n, S), the first sigmas are ``2.0 ** exponents``.
        most_shift: by which the integers of each slot can be shifted in one step. A rescale beyond it leaves at most 2 units of
            the new sigma, where nothing should be left. None: those of 64 bits.
        plane_bytes: what one bit of each of a tensor's weights takes.

    Attributes:
        state: the arrays of shape (n, S) of this moment. Assign a state that was read before to go back to it.

    Cost: about 5 us per decay.

    >>> from reversible_hypergrad.reversible.scales import Scales
    >>> scales = Scales([[-47, -47]])
    >>> before = scales.state
    >>> scales.decay([0.3, 1.0]).shifts  # the first slot by one bit, after adding 1
    array([[1, 1, 1, 0, 0]])
    >>> scales.sigma() * 2.0**47
    array([[0.6, 1. ]])
    >>> scales.state = before
    >>> scales.sigma() * 2.0**47
    array([[1., 1.]])
    """

    def __init__(
        self, exponents: ArrayLike, most_shift: Sequence[int] | None = None, plane_bytes: Sequence[int] | None = None
    ) -> None:
        exponent: Integers = np.array(exponents, np.int64)
        if exponent.ndim != 2:
            raise ValueError(f"exponents: expected shape (tensors, slots), got {exponent.shape}")
        self.state = ScaleState(np.ones(exponent.shape), np.zeros(exponent.shape, np.int64), exponent)
        count, slots = exponent.shape
        most = [MOST_SHIFT] * slots if most_shift is None else list(most_shift)
        self._tables = _core.ScaleTables([1] * count if plane_bytes is None else list(plane_bytes), most)
        self._checked: ArrayLike | None = None  # factors that are known to be in their range

    def sigma(self) -> Floats:
        """float64 of shape (n, S): what one unit of each slot's integers is worth."""
        sigma: Floats = np.ldexp(self.state.a, self.state.exponent)
        return sigma

    def decay(
        self,
        factors: ArrayLike,
        of_rule: ArrayLike = (),
        active: NDArray[np.bool_] | None = None,
        rescale: Integers | None = None,
    ) -> Move:
        """Multiplies the scales by ``factors``.

        Args:
            factors: floats in [2 ** -16, 1], of shape (S,), (1, S) or (n, S).
            of_rule: floats of shape (R,), (1, R) or (n, R), for the tables.
            active: (n,), the tensors that take part in the step; the others stay as they are. All by default.
            rescale: non-negative integers of shape (n, S), further halvings of the integers at an unchanged value:
                sigma doubles as often.

        Raises:
            ValueError: for a factor outside its range or a negative ``rescale``. Nothing is changed then.
        """
        factor = np.asarray(factors, np.float64)
        if factors is not self._checked:  # in most runs every step's are the same array
            _check(factor)
            self._checked = factors
        now = self.state
        numbers = np.asarray(of_rule, np.float64)
        result = self._tables.decay(now.a, now.count, now.exponent, factor, numbers, active, rescale)
        self.state = ScaleState(*result[:3])
        return Move(*result[3:])

    def go_back(self, before: ScaleState, factors: ArrayLike, of_rule: ArrayLike = (), rescale: Integers | None = None) -> Move:
        """Undoes a :meth:`decay` of all tensors from what is left of the scales before it, and returns what that returned.

        Args:
            before: its ``count`` is not looked at.
            factors: as :meth:`decay` had them.
            of_rule: as :meth:`decay` had them.
            rescale: as :meth:`decay` had it.
        """
        now, factor, numbers = self.state, np.asarray(factors, np.float64), np.asarray(of_rule, np.float64)
        result = self._tables.go_back(before.a, before.exponent, now.a, now.count, now.exponent, factor, numbers, rescale)
        self.state = ScaleState(before.a, result[0], before.exponent)
        return Move(*result[1:])


def _check(factors: Floats) -> None:
    inside = (factors >= SMALLEST_FACTOR) & (factors <= 1)
    if not inside.all():
        worst = factors[~inside].flat[0]
        raise ValueError(f"factors: expected numbers in [2 ** -16, 1], got {worst}. Set the value to 0 instead of decaying it")
