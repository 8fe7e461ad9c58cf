"""Planes of a GPU in page-locked memory of the host: they leave behind the computation, and come back ahead of need."""

from collections import deque

import torch
from torch import Tensor

from reversible_hypergrad.storage.planes import PlaneStore
from reversible_hypergrad.storage.side_stream import Arrival, SideStream

__all__ = ["HostPlanes"]

_IN_FLIGHT = 256 << 20  # bytes of the GPU's memory, for planes that leave and again for planes that come back ahead of need
_SMALLEST, _LARGEST = 1 << 20, 256 << 20  # bytes of a chunk, unless one plane takes more
_ALIGNMENT = 256  # so that a copy, or a view as integers, begins where it is fast


class Chunk:
    """Page-locked memory for several planes, filled from its beginning, emptied from its end."""

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.ends = [0]  # of each plane, and the beginning of the first

    def room_for(self, nbytes: int) -> bool:
        return self.ends[-1] + nbytes <= self.memory.numel()

    def take(self, nbytes: int) -> Tensor:
        begin = self.ends[-1]
        self.ends.append(begin + -(-nbytes // _ALIGNMENT) * _ALIGNMENT)
        return self.memory[begin : begin + nbytes]


class HostPlanes(PlaneStore):
    """A stack of planes of bytes.

    The host waits for a copy only when more than a quarter of a gigabyte of planes is on its way out, so that a host that
    runs ahead does not fill the GPU's memory; and it may wait when a new chunk of memory is page-locked, which doubles what
    there is. Memory of the host that is written again is read before: the side stream keeps the order of all copies.
    """

    def __init__(self, device: torch.device, side: SideStream | None = None) -> None:
        self._side = SideStream(device) if side is None else side
        self._chunks: list[Chunk] = []
        self._spare: Chunk | None = None  # the last one that became empty: a run may go to and fro at its border
        self._places: list[Tensor] = []
        self._leaving: deque[tuple[int, Arrival]] = deque()
        self._leaving_bytes = 0
        self._ahead: deque[tuple[Tensor, Arrival]] = deque()  # copies of the last planes, the very last first
        self._ahead_bytes = 0

    def push(self, plane: Tensor) -> None:
        self._drop_ahead()
        place = self._make_place(plane.nbytes)
        self._leaving.append((plane.nbytes, self._side.send(plane, place)))
        self._leaving_bytes += plane.nbytes
        self._places.append(place)
        self.nbytes += plane.nbytes
        self._hold_back()

    def pop(self) -> Tensor:
        self._fetch()
        plane, arrival = self._ahead.popleft()
        self._ahead_bytes -= plane.nbytes
        self._places.pop()
        self._free_place()
        self.nbytes -= plane.nbytes
        result = self._side.receive(plane, arrival)
        if self._places:
            self._fetch()
        return result

    def top(self) -> Tensor:
        self._fetch()
        return self._side.receive(*self._ahead[0])

    def close(self) -> None:
        self._drop_ahead()
        self._leaving.clear()
        self._places.clear()
        self._chunks.clear()
        self._spare = None
        self._leaving_bytes = self.nbytes = 0

    def _fetch(self) -> None:
        """Asks for the planes that are needed next: the very next one, and what fits beside it."""
        while len(self._ahead) < len(self._places):
            place = self._places[-1 - len(self._ahead)]
            if self._ahead and self._ahead_bytes + place.nbytes > _IN_FLIGHT:
                break
            self._ahead.append(self._side.fetch(place))
            self._ahead_bytes += place.nbytes

    def _drop_ahead(self) -> None:
        self._ahead.clear()
        self._ahead_bytes = 0

    def _hold_back(self) -> None:
        while self._leaving:
            nbytes, arrival = self._leaving[0]
            # The last one may be on its way, however large: else a state of a large model would stop every step.
            if not arrival.query() and (self._leaving_bytes <= _IN_FLIGHT or len(self._leaving) == 1):
                break
            self._leaving.popleft()
            arrival.synchronize()
            self._leaving_bytes -= nbytes

    def _make_place(self, nbytes: int) -> Tensor:
        if not self._chunks or not self._chunks[-1].room_for(nbytes):
            spare, self._spare = self._spare, None
            if spare is None or not spare.room_for(nbytes):
                size = max(nbytes, min(max(self.nbytes, _SMALLEST), _LARGEST))
                spare = Chunk(self._side.host_memory(1 << (size - 1).bit_length()))  # as torch would round it up unseen
            self._chunks.append(spare)
        return self._chunks[-1].take(nbytes)

    def _free_place(self) -> None:
        chunk = self._chunks[-1]
        chunk.ends.pop()
        if len(chunk.ends) == 1:
            self._spare = self._chunks.pop()
