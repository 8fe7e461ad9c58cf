"""Sums of many tensors that come one after the other."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Sums"]

# Terms that are added up in float32 before they enter the sum. They are rounded to float32 themselves, so a few more such
# roundings hide in theirs; to widen each of them would take longer than to add it.
_TOGETHER = 8


class Sums:
    """Running sums in float64: T terms of float32 added in float32 would lose digits.

    Args:
        like: a tensor of the shape and on the device of each sum.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._totals = [torch.zeros(t.shape, dtype=torch.float64, device=t.device) for t in like]
        self._waiting: list[Tensor | None] = [None] * len(like)  # terms of float32, so far
        self._count = 0

    def add(self, terms: Sequence[Tensor | None]) -> None:
        """One to each sum; None stands for zero."""
        for i, (total, term) in enumerate(zip(self._totals, terms, strict=True)):
            waiting = self._waiting[i]
            if term is None:
                continue
            if term.dtype == torch.float64:
                total += term
            elif waiting is None:
                self._waiting[i] = term.to(torch.float32, copy=True)
            else:
                waiting += term
        self._count += 1
        if self._count == _TOGETHER:
            self._enter()

    @property
    def totals(self) -> list[Tensor]:
        """Of all that has been added. May be written to."""
        self._enter()
        return self._totals

    def _enter(self) -> None:
        for i, waiting in enumerate(self._waiting):
            if waiting is not None:
                self._totals[i] += waiting
                self._waiting[i] = None
        self._count = 0
