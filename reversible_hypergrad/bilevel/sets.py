"""Convex sets that hyperparameters are held in: each is where a box meets, at most, one bound on a sum."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Box", "L1Ball", "Set", "Simplex"]

_HALVINGS = 100  # a float64 interval is empty after 64, unless its end is 0


@dataclass(frozen=True, eq=False, repr=False)
class Set:
    """The tensors with ``low <= x <= high`` in each element, and a bound on their sum. ``one & other`` is where two meet.

    Attributes:
        low: a number, or a tensor that broadcasts to x.
        high: the same.
        limit: the most that the sum of ``|x|`` may be; None: any.
        total: what the sum of ``x`` is, all elements being at least 0; None: any.
        said: the parts, as text.
    """

    low: float | Tensor = -math.inf
    high: float | Tensor = math.inf
    limit: float | None = None
    total: float | None = None
    said: str = ""

    def __repr__(self) -> str:
        return self.said

    def __and__(self, other: "Set") -> "Set":
        """Raises ValueError if no element is in both."""
        if not isinstance(other, Set):
            return NotImplemented
        low, high = _most(self.low, other.low), -_most(-self.high, -other.high)
        limits = [s.limit for s in (self, other) if s.limit is not None]
        totals = [s.total for s in (self, other) if s.total is not None]
        limit, total = min(limits, default=None), max(totals, default=None)
        said = f"{self} & {other}"
        apart = len(set(totals)) > 1 or (total is not None and limit is not None and total > limit)
        if apart or not bool((torch.as_tensor(low) <= torch.as_tensor(high)).all()):
            raise ValueError(f"{said}: expected sets that meet, but nothing is in both")
        return Set(low, high, limit if total is None else None, total, said)

    def project(self, x: Tensor) -> Tensor:
        """The nearest tensor of the set, by Euclidean distance.

        Args:
            x: any shape, floating point. Sums are over all of its elements.

        Returns:
            The same shape and dtype, detached. Sums are as their bound says to within the rounding of its dtype.

        Raises:
            TypeError: for other dtypes.
            ValueError: if nothing of this shape is in the set, or x is not finite and sums are bounded.

        Cost: one pass over x for a box; else up to 100 in float64, and 32 bytes per element. With a bound on a sum, the nearest
        point is ``x`` shrunk by one number, the same for all elements, and clipped to the box. The number is found by halving an
        interval, and then from the linear equation that holds between two kinks.

        >>> import torch, reversible_hypergrad as rh
        >>> (rh.Box(0, 1) & rh.L1Ball(2)).project(torch.tensor([1.5, 0.8, 0.6, -1.0]))
        tensor([1.0000, 0.6000, 0.4000, 0.0000])
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{self}: expected a tensor of floating point, got {getattr(x, 'dtype', type(x).__name__)}")
        x = x.detach()
        if self.limit is None and self.total is None:
            return self._clip(x)
        if not bool(x.isfinite().all()):
            raise ValueError(f"{self}: expected finite numbers to project, got others")
        self._check_shape(x)
        return self._clip(self._shrink(x.double()).to(x.dtype))

    def distance(self, x: Tensor) -> float:
        """The largest difference of an element from the nearest tensor of the set; 0 for tensors in it."""
        return float((x.detach() - self.project(x)).abs().max()) if x.numel() else 0.0

    def _clip(self, x: Tensor) -> Tensor:
        low, high = (_like(bound, x) for bound in (self.low, self.high))
        return x.clamp(low, high)

    def _shrink(self, y: Tensor) -> Tensor:
        least, most = self._ends(y)
        if self._sum(self._moved(y, least)) <= self._bound:  # for a total: equal, where every point is at its end
            return self._moved(y, least)
        for _ in range(_HALVINGS):
            middle = 0.5 * (least + most)
            if not least < middle < most:
                break
            least, most = (middle, most) if self._sum(self._moved(y, middle)) > self._bound else (least, middle)
        moved = self._moved(y, most)
        low, high = (_like(bound, y) for bound in (self.low, self.high))
        free = (moved > low) & (moved < high)
        size = y
        if self.total is None:
            free &= moved != 0
            size = y.abs()
        count = int(free.sum())
        if count:  # between two kinks: sum of (size - shift) over the free ones + the others' = bound
            shift = (float(size[free].sum()) + self._sum(moved[~free]) - self._bound) / count
            moved = self._moved(y, min(max(shift, least), most))
        return moved

    def _moved(self, y: Tensor, shift: float) -> Tensor:
        if self.total is not None:
            return self._clip(y - shift)
        return self._clip(y.sign() * (y.abs() - shift).clamp(min=0))

    def _ends(self, y: Tensor) -> tuple[float, float]:
        """Shifts between which the right one is."""
        if self.total is None:
            return 0.0, float(y.abs().max()) if y.numel() else 0.0
        low, high = (_like(bound, y) for bound in (self.low, self.high))
        return float((y - high.clamp(max=self.total)).min()), float((y - low).max())

    def _sum(self, x: Tensor) -> float:
        return float((x if self.total is not None else x.abs()).sum())

    @property
    def _bound(self) -> float:
        bound = self.limit if self.total is None else self.total
        assert bound is not None
        return bound

    def _check_shape(self, x: Tensor) -> None:
        low, high = (_like(bound, x.double()).expand(x.shape) for bound in (self.low, self.high))
        if self.total is None:
            least, most = float(low.clamp(min=0).sum() - high.clamp(max=0).sum()), math.inf
        else:
            least, most = float(low.sum()), float(high.sum())
        # A bound that the box itself attains, such as ten times 0.1, may be missed by the rounding of the sum.
        slack = 1e-12 * max(1.0, abs(self._bound))
        meets = least <= self._bound + slack and (self.total is None or most >= self.total - slack)
        if not meets:
            raise ValueError(
                f"{self}: expected a set that meets itself for shape {tuple(x.shape)}, but sums of its {x.numel()} elements in "
                f"the box are from {least:g} to {most:g}. Change the bounds"
            )


class Box(Set):
    """``low <= x <= high`` in each element. Projecting is clipping.

    Args:
        low: a number, or a tensor that broadcasts to the hyperparameter.
        high: the same.

    Raises:
        TypeError: for something else.
        ValueError: for NaN, or where ``low > high``.

    >>> import reversible_hypergrad as rh
    >>> rh.Box(0, 1) & rh.L1Ball(2000)
    Box(0, 1) & L1Ball(2000)
    """

    def __init__(self, low: float | Tensor = -math.inf, high: float | Tensor = math.inf) -> None:
        for name, bound in (("low", low), ("high", high)):
            if isinstance(bound, bool) or not isinstance(bound, int | float | Tensor):
                raise TypeError(f"Box: {name}: expected a number or a tensor, got {bound!r}")
        if not bool((torch.as_tensor(low) <= torch.as_tensor(high)).all()):
            raise ValueError(f"Box: expected low <= high, got low={_text(low)}, high={_text(high)}")
        low, high = (b.detach().clone() if isinstance(b, Tensor) else b for b in (low, high))
        super().__init__(low, high, said=f"Box({_text(low)}, {_text(high)})")


class L1Ball(Set):
    """A sum of ``|x|`` over all elements of at most ``radius``. Projecting shrinks all elements by the same number, at most to 0.

    Args:
        radius: above 0.

    Raises:
        TypeError: for no number.
        ValueError: if it is not above 0 and finite.
    """

    def __init__(self, radius: float) -> None:
        super().__init__(limit=_positive("L1Ball: radius", radius), said=f"L1Ball({radius:g})")


class Simplex(Set):
    """Elements of at least 0 that sum to ``total``, such as weights of a mixture. Projecting subtracts the same number from all
    elements, and clips at 0.

    Args:
        total: above 0.

    Raises:
        TypeError: for no number.
        ValueError: if it is not above 0 and finite.
    """

    def __init__(self, total: float = 1.0) -> None:
        super().__init__(low=0.0, total=_positive("Simplex: total", total), said=f"Simplex({total:g})")


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return float(value)


def _most(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    if isinstance(one, Tensor):
        return torch.maximum(one, _like(other, one))
    if isinstance(other, Tensor):
        return _most(other, one)
    return max(one, other)


def _like(bound: float | Tensor, x: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=x.dtype, device=x.device)


def _text(bound: float | Tensor) -> str:
    return f"tensor of shape {tuple(bound.shape)}" if isinstance(bound, Tensor) else f"{bound:g}"
