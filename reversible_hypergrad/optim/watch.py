"""Notices weights that changed behind the optimizer's back, without reading them."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Watch"]


class Watch:
    """Remembers where tensors lie and how often they were written in place.

    ``parameter.data.add_(...)`` writes under another version counter and goes unnoticed; torch gives no way to see it
    short of reading the weights.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self.accept()

    def accept(self) -> None:
        """The present state is the expected one."""
        self._versions = [t._version for t in self._tensors]
        self._places = self._present_places()

    def wrote(self) -> None:
        """An op has written all tensors: tell autograd, and expect it."""
        torch.autograd.graph.increment_version(self._tensors)
        self._versions = [t._version for t in self._tensors]

    def edited(self) -> list[int]:
        """Indices of the tensors that somebody else wrote, resized, reshaped or replaced."""
        versions, places = [t._version for t in self._tensors], self._present_places()
        if versions == self._versions and places == self._places:
            return []
        now = zip(versions, places, strict=True)
        before = zip(self._versions, self._places, strict=True)
        return [i for i, (new, old) in enumerate(zip(now, before, strict=True)) if new != old]

    def _present_places(self) -> list[tuple[int, int, tuple[int, ...]]]:
        return [(t.data_ptr(), t.numel(), t.stride()) for t in self._tensors]
