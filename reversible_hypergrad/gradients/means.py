"""Means over micro-batches of what is not added up as integers."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Means", "mean_loss", "straight_through"]


class Means:
    """Of tensors that may be None for zero. Terms of 16 bits are added up in float32."""

    def __init__(self, count: int, parts: int) -> None:
        self._share = 1 / parts
        self._totals: list[tuple[Tensor, torch.dtype] | None] = [None] * count

    def add(self, terms: Sequence[Tensor | None]) -> None:
        for i, term in enumerate(terms):
            if term is None:
                continue
            total = self._totals[i]
            if total is None:
                self._totals[i] = term.detach().to(torch.promote_types(term.dtype, torch.float32)) * self._share, term.dtype
            else:
                total[0].add_(term.detach(), alpha=self._share)

    def tensors(self) -> list[Tensor | None]:
        return [None if total is None else total[0].to(total[1]) for total in self._totals]


def mean_loss(losses: Sequence[Tensor]) -> Tensor:
    """In the order of their sizes, so that theirs does not matter."""
    together = torch.stack([loss.reshape(()) for loss in losses])
    return together.to(torch.float64).sort().values.mean().to(together.dtype)


def straight_through(value: Tensor, terms: Sequence[Tensor], count: int) -> Tensor:
    """``value``, with the derivative of the mean of ``terms``, where those that are not there are zero."""
    mean = sum(terms[1:], terms[0]) / count
    return value + (mean - mean.detach())
