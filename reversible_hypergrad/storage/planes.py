"""Where the spilled planes of an information buffer wait until they are read once, in reverse order."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["MemoryPlanes", "PlaneStore", "check_place", "open_store"]


class PlaneStore(ABC):
    """Last in, first out."""

    nbytes: int = 0  # of all planes now held

    @abstractmethod
    def push(self, plane: Tensor) -> None: ...

    @abstractmethod
    def pop(self) -> Tensor: ...

    @abstractmethod
    def top(self) -> Tensor:
        """The next plane to pop, which stays. Not to be written to."""

    def flush(self) -> None:  # noqa: B027
        """Returns when every plane is where it belongs. Raises what went wrong on the way."""

    @abstractmethod
    def close(self) -> None:
        """Lets everything go."""


class MemoryPlanes(PlaneStore):
    """In memory, where they are made."""

    def __init__(self) -> None:
        self._planes: list[Tensor] = []

    def push(self, plane: Tensor) -> None:
        self._planes.append(plane)
        self.nbytes += plane.nbytes

    def pop(self) -> Tensor:
        plane = self._planes.pop()
        self.nbytes -= plane.nbytes
        return plane

    def top(self) -> Tensor:
        return self._planes[-1]

    def close(self) -> None:
        self._planes.clear()
        self.nbytes = 0


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
