"""Planes in memory, where they are made."""

from array import array
from collections.abc import Sequence

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

    def __len__(self) -> int:
        return len(self._sizes)

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

    @property
    def held_bytes(self) -> int:
        """Of memory, with what is unused of it, and with what tells where each plane is."""
        return sum(chunk.nbytes for chunk in self._chunks) + self._sizes.itemsize * (len(self._sizes) + len(self._used))

    def pack(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """All planes, laid end to end, and the size of each; oldest first. A copy."""
        pieces = [torch.empty(0, dtype=torch.uint8, device=device)]
        places = ((chunk, used) for chunk, used in zip(self._chunks, self._used, strict=True))
        begin = end = 0
        for size in self._sizes:
            if size:
                if begin == end:
                    (chunk, end), begin = next(places), 0
                pieces.append(chunk[begin : begin + size])
                begin += _aligned(size)
        return torch.cat(pieces), torch.tensor(self._sizes, dtype=torch.int64)

    def load(self, planes: Tensor, sizes: Sequence[int]) -> None:
        """Holds what was packed; copies it."""
        self.close()
        for plane in torch.split(planes, list(sizes)) if sizes else ():
            self.push(plane.clone() if plane.nbytes >= _LARGE else plane)

    def close(self) -> None:
        self._chunks.clear()
        self._used.clear()
        self._sizes = array("q")
        self.nbytes = 0


def _aligned(size: int) -> int:
    """So that a plane may be viewed as numbers of any width."""
    return -(-size // 16) * 16
