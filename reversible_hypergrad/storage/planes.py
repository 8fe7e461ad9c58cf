"""Where the spilled planes of an information buffer wait until they are read once, in reverse order."""

from abc import ABC, abstractmethod
from array import array
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["MemoryPlanes", "PlaneStore", "check_place", "open_store"]

_LARGE = 256 << 10  # bytes from which a plane stays as it is
_LEAST, _SLACK = 16 << 10, 8  # a chunk's bytes at least; else this part of all that is held, which may stay unused


class PlaneStore(ABC):
    """Last in, first out."""

    nbytes: int = 0  # of all planes now held

    @abstractmethod
    def push(self, plane: Tensor) -> None: ...

    @abstractmethod
    def pop(self) -> Tensor:
        """Valid until the next push."""

    @abstractmethod
    def top(self) -> Tensor:
        """The next plane to pop, which stays. Not to be written to."""

    def flush(self) -> None:  # noqa: B027
        """Returns when every plane is where it belongs. Raises what went wrong on the way."""

    @abstractmethod
    def close(self) -> None:
        """Lets everything go."""


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


def check_place(argument: str, place: str | Path) -> str | Path:
    """Raises NotADirectoryError unless ``place`` is one that :func:`open_store` knows."""
    if place not in ("device", "host") and not Path(place).is_dir():
        raise NotADirectoryError(f"{argument}: expected 'device', 'host' or an existing directory, got {str(place)!r}")
    return place


def open_store(place: str | Path, device: torch.device) -> PlaneStore:
    """The store for ``buffer=place`` or ``store=place`` of a strategy, with planes that are used on ``device``."""
    if place == "device" or (place == "host" and device.type == "cpu"):
        return MemoryPlanes()
    if place == "host":
        from reversible_hypergrad.storage.host_planes import HostPlanes

        return HostPlanes(device)
    from reversible_hypergrad.storage.plane_file import PlaneFile

    return PlaneFile(Path(place), device)
