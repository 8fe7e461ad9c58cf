"""Numbers with a bound on their error: tensors of values, and of how far another computation of them may be away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Bounded", "where"]


class Bounded:
    """Elementwise: the true number is within ``error`` of ``value``. Every operation adds its own rounding.

    Args:
        value: float64.
        error: float64, >= 0, of the same shape; inf where nothing is known.
        unit: relative rounding of one operation, by whoever computes it in another way.
        least: of the true number, where more is known than ``value - error``.
    """

    def __init__(self, value: Tensor, error: Tensor, unit: float, least: Tensor | None = None) -> None:
        self.value, self.error, self.unit, self.least = value, error, unit, least

    @classmethod
    def exact(cls, value: Tensor, unit: float) -> Bounded:
        return cls(value, torch.zeros_like(value), unit)

    def _made(self, value: Tensor, error: Tensor) -> Bounded:
        error = error.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return Bounded(value, error + self.unit * (value.abs() + error), self.unit)

    def __add__(self, other: Any) -> Bounded:
        value, error = _parts(other)
        found = self._made(self.value + value, self.error + error)
        if self.least is not None and not isinstance(other, Bounded):
            found.least = (self.least + other) * (1 - self.unit)
        return found

    def __sub__(self, other: Any) -> Bounded:
        value, error = _parts(other)
        return self._made(self.value - value, self.error + error)

    def __mul__(self, other: Any) -> Bounded:
        value, error = _parts(other)
        return self._made(self.value * value, self.error * abs(value) + abs(self.value) * error + self.error * error)

    def __truediv__(self, other: Any) -> Bounded:
        """By positive numbers: |a'/b' - a/b| <= (error of a + |a/b| error of b) / b'."""
        value, error = _parts(other)
        found = self.value / value
        given = other.least if isinstance(other, Bounded) else None
        least = torch.as_tensor(value - error, dtype=torch.float64) if given is None else given
        return self._made(found, torch.where(least > 0, (self.error + found.abs() * error) / least, torch.inf))

    __radd__, __rmul__ = __add__, __mul__

    def sqrt(self) -> Bounded:
        root, least = self.value.clamp(min=0).sqrt(), (self.value - self.error).clamp(min=0).sqrt()
        found = self._made(root, torch.maximum(root - least, (self.value.clamp(min=0) + self.error).sqrt() - root))
        found.least = least * (1 - self.unit)
        return found

    def sign(self) -> Bounded:
        """Known where the error cannot reach the other side of 0, whatever the size of the number."""
        unsure = (self.value.abs() <= self.error) & (self.error > 0)
        return Bounded(self.value.sign(), 2.0 * unsure, self.unit)

    def maximum(self, other: Bounded) -> Bounded:
        return Bounded(torch.maximum(self.value, other.value), torch.maximum(self.error, other.error), self.unit)

    def through(self, function: Callable[[Tensor], Tensor]) -> Bounded:
        """A smooth function of all numbers together: its Jacobian at the value, and as much again for what is not linear.
        Where an error is more than a thousandth of the largest number that says nothing."""
        value = function(self.value)
        jacobian = torch.func.jacrev(function)(self.value).reshape(value.numel(), -1)
        error = 2 * (jacobian.abs() @ (self.error + self.unit * self.value.abs()).reshape(-1)).reshape(value.shape)
        known = bool((self.error <= 1e-3 * self.value.abs().max()).all()) if value.numel() else True
        largest = value.abs().max() if value.numel() else 0.0
        return self._made(value, error + 100 * self.unit * largest if known else torch.full_like(error, torch.inf))

    def rounded_to(self, quantum: Tensor) -> Bounded:
        """Kept as an integer times ``quantum``, after a decay that may have halved it: half a quantum each, and half of one where
        quanta have grown. What is exactly 0 stays so."""
        moved = (self.value != 0) | (self.error != 0)
        return Bounded(self.value, self.error + 1.5 * quantum * moved, self.unit)


def _parts(other: Any) -> tuple[Any, Any]:
    return (other.value, other.error) if isinstance(other, Bounded) else (other, 0.0)


def where(mask: Tensor, yes: Any, no: Any) -> Any:
    """torch.where, of tensors or of bounded numbers."""
    if isinstance(yes, Bounded):
        return Bounded(torch.where(mask, yes.value, no.value), torch.where(mask, yes.error, no.error), yes.unit)
    return torch.where(mask, yes, no)
