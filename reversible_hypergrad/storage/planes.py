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
    """In memory, on ``device`` if one is given, else where they are made."""

    def __init__(self, kept_on: torch.device | None = None, used_on: torch.device | None = None) -> None:
        self._planes: list[Tensor] = []
        self._kept_on = kept_on
        self._used_on = used_on

    def push(self, plane: Tensor) -> None:
        self._planes.append(plane if self._kept_on is None else plane.to(self._kept_on))
        self.nbytes += plane.nbytes

    def pop(self) -> Tensor:
        plane = self._planes.pop()
        self.nbytes -= plane.nbytes
        return plane if self._used_on is None else plane.to(self._used_on)

    def top(self) -> Tensor:
        plane = self._planes[-1]
        return plane if self._used_on is None else plane.to(self._used_on)

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
    if place == "device":
        return MemoryPlanes()
    if place == "host":
        return MemoryPlanes(torch.device("cpu"), device)
    from reversible_hypergrad.storage.plane_file import PlaneFile

    return PlaneFile(Path(place), device)
