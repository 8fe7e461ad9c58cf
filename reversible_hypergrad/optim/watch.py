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
        self._forms = [_form(t) for t in self._tensors]
        self.accept()

    def accept(self) -> None:
        """The present elements are the expected ones."""
        self._places = [(t.data_ptr(), t._version) for t in self._tensors]

    def wrote(self) -> None:
        """An op has written all tensors: tell autograd, and expect it."""
        torch.autograd.graph.increment_version(self._tensors)
        self.accept()

    def reshaped(self) -> list[int]:
        """Indices of the tensors with another dtype, shape or order in memory."""
        return [i for i, (t, form) in enumerate(zip(self._tensors, self._forms, strict=True)) if _form(t) != form]

    def touched(self) -> list[int]:
        """Indices of the tensors that somebody else wrote or moved, with the same elements afterwards or others."""
        places = [(t.data_ptr(), t._version) for t in self._tensors]
        return [i for i, (new, old) in enumerate(zip(places, self._places, strict=True)) if new != old]


def _form(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.shape, tensor.stride()
