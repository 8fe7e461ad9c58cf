"""Notices weights that changed behind the optimizer's back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Watch"]


class Watch:
    """Remembers how tensors lie in memory, where, and how often they were written in place; it reads none of them.

    ``parameter.data.add_(...)`` writes under another version counter and goes unnoticed; torch gives no way to see it
    short of reading the weights.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._forms = self._present_forms()
        self.accept()

    def accept(self) -> None:
        """The present elements are the expected ones."""
        self._places = self._present_places()

    def wrote(self) -> None:
        """An op has written all tensors: tell autograd, and expect it."""
        torch.autograd.graph.increment_version(self._tensors)
        self.accept()

    def reshaped(self) -> list[int]:
        """Indices of the tensors with another dtype, device, shape or order in memory."""
        return _different(self._present_forms(), self._forms)

    def touched(self) -> list[int]:
        """Indices of the tensors that somebody else wrote or moved, with the same elements afterwards or others."""
        return _different(self._present_places(), self._places)

    def _present_forms(self) -> list[Any]:
        return [(t.dtype, t.device, t.shape, t.stride()) for t in self._tensors]

    def _present_places(self) -> list[Any]:
        return [(t.data_ptr(), t._version) for t in self._tensors]


def _different(now: list[Any], before: list[Any]) -> list[int]:
    if now == before:  # nearly always, and quicker than a loop
        return []
    return [i for i, (new, old) in enumerate(zip(now, before, strict=True)) if new != old]
