"""Copies between a GPU and page-locked memory of the host, behind the computation."""

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Arrival", "SideStream"]


class Arrival(Protocol):
    """A ``torch.cuda.Event``: the copy is made."""

    def query(self) -> bool: ...

    def synchronize(self) -> None: ...


class SideStream:
    """A stream of its own for copies; they run in the order in which they are asked for, whoever waits for them.

    Memory of the GPU is told which streams use it, so the allocator does not give it away before they are done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_memory(self, nbytes: int) -> Tensor:
        """Page-locked. Making it may wait for the GPU, so make it rarely."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def send(self, plane: Tensor, place: Tensor) -> Arrival:
        """``plane``, as it will be when the work queued so far is done, to ``place`` on the host."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            place.copy_(plane, non_blocking=True)
            arrival: Arrival = self._stream.record_event()
        plane.record_stream(self._stream)
        return arrival

    def fetch(self, place: Tensor) -> tuple[Tensor, Arrival]:
        """A copy of ``place`` in memory of the GPU; :meth:`receive` it before use. Waits for no work but earlier copies."""
        with torch.cuda.stream(self._stream):
            plane = torch.empty_like(place, device=self._device)
            plane.copy_(place, non_blocking=True)
            return plane, self._stream.record_event()

    def receive(self, plane: Tensor, arrival: Arrival) -> Tensor:
        """What is queued from now on sees the copy."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(arrival)  # type: ignore[arg-type]
        plane.record_stream(stream)
        return plane
