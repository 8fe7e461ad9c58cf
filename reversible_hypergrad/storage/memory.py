"""Planes in memory, where they are made."""

from array import array

import torch
from torch import Tensor

from reversible_hypergrad.storage.planes import PlaneStore

__all__ = ["MemoryPlanes"]

_LARGE = 256 << 10  # bytes from which a plane stays as it is
_LEAST, _SLACK = 16 << 10, 8  # a chunk's bytes at least; else this part of all that is held, which may stay unused


class MemoryPlanes(PlaneStore):
    """In memory, where they are made. Small planes are packed into chunks: a tensor of its own for each would cost a small model
    more than its content, and their holes would stay in the allocator between what each step allocates and frees."""

    def __init__(self) -> None:
        self._chunks: list[Tensor] = []
        self._used: list[int] = []  # bytes, per chunk
        self._sizes = array("q")

    def push(self, plane: Tensor) -> None:
        size = plane.nbytes
        self._sizes.append(size)
        if size >= _LARGE:
            self._chunks.append(plane)
            self._used.append(_aligned(size))
        elif size:
            if not self._chunks or self._used[-1] + size > self._chunks[-1].numel():
                self._chunks.append(plane.new_empty(max(size, _LEAST, self.nbytes // _SLACK)))
                self._used.append(0)
            begin = self._used[-1]
            self._chunks[-1][begin : begin + size] = plane
            self._used[-1] = begin + _aligned(size)
        self.nbytes += size

    def pop(self) -> Tensor:
        plane = self.top()
        size = self._sizes.pop()
        if size:
            self._used[-1] -= _aligned(size)
            if not self._used[-1]:
                self._chunks.pop()
                self._used.pop()
        self.nbytes -= size
        return plane

    def top(self) -> Tensor:
        size = self._sizes[-1]
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        begin = self._used[-1] - _aligned(size)
        return self._chunks[-1][begin : begin + size]

    def close(self) -> None:
        self._chunks.clear()
        self._used.clear()
        self._sizes = array("q")
        self.nbytes = 0


def _aligned(size: int) -> int:
    """So that a plane may be viewed as numbers of any width."""
    return -(-size // 16) * 16
