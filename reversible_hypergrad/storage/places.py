"""Where planes can wait, by name."""

from pathlib import Path

import torch

from reversible_hypergrad.storage.file import PlaneFile
from reversible_hypergrad.storage.host import HostPlanes
from reversible_hypergrad.storage.memory import MemoryPlanes
from reversible_hypergrad.storage.planes import PlaneStore

__all__ = ["check_place", "open_store"]


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
        return HostPlanes(device)
    return PlaneFile(Path(place), device)
