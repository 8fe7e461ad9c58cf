"""Planes in a file: written by a thread while training goes on, read ahead by one while it is undone."""

import os
import tempfile
import weakref
import zlib
from array import array
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.storage.planes import PlaneStore

__all__ = ["PlaneFile"]

_IN_FLIGHT = 32 << 20  # bytes of planes waiting to be written, or read ahead: enough to hide a disk, small beside a model


class PlaneFile(PlaneStore):
    """A stack of planes at the end of one temporary file in ``directory``, each with a CRC-32.

    A failed write or read raises where the next plane is pushed, popped or flushed, and names the directory. The file has no
    name there: the system frees its space when it is closed, by :meth:`close`, when the store is garbage, or when the process
    ends, however it does. (Windows has no files without names: there it has one, but goes as early.)
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        self._device = device
        self._directory = directory
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0, prefix="trajectory-", dir=directory)  # noqa: SIM115
        self._sizes, self._sums = array("q"), array("L")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="planes")
        self._writes: deque[tuple[int, Future[int]]] = deque()
        self._reads: deque[tuple[int, Future[bytearray]]] = deque()
        self._ahead = 0  # planes that are being read, counted from the end
        self._finalizer = weakref.finalize(self, _remove, self._file, self._worker)

    def push(self, plane: Tensor) -> None:
        self._drop_reads()
        held = plane.cpu()
        offset = self.nbytes
        self._sizes.append(plane.nbytes)
        self.nbytes += plane.nbytes
        self._writes.append((plane.nbytes, self._worker.submit(self._write, held, offset)))
        while sum(size for size, _ in self._writes) > _IN_FLIGHT and len(self._writes) > 1:
            self._finish_write()

    def pop(self) -> Tensor:
        plane = self._read_last()
        self._reads.popleft()
        self._ahead -= 1
        self._sums.pop()
        self.nbytes -= self._sizes.pop()
        return plane

    def top(self) -> Tensor:
        return self._read_last()

    def _read_last(self) -> Tensor:
        self.flush()
        self._read_ahead()
        offset, future = self._reads[0]
        try:
            content = future.result()
        except OSError as error:
            raise ReversalError(f"the trajectory's file in {self._directory} cannot be read: {error}") from error
        size, expected = self._sizes[-1], self._sums[-1]
        if len(content) != size:
            raise ReversalError(
                f"the trajectory's file in {self._directory} was truncated: expected {size} bytes at offset {offset}, got "
                f"{len(content)}. No gradient has been changed; leave the file alone while a run may be differentiated"
            )
        if zlib.crc32(content) != expected:
            raise ReversalError(
                f"the trajectory's file in {self._directory} was damaged: the {size} bytes at offset {offset} are not those that "
                "were written. No gradient has been changed; check the disk, and that nothing else writes there"
            )
        return torch.frombuffer(content, dtype=torch.uint8).to(self._device) if size else torch.empty(0, dtype=torch.uint8)

    def flush(self) -> None:
        while self._writes:
            self._finish_write()

    def close(self) -> None:
        self._finalizer()
        self._writes.clear()
        self._reads.clear()
        self._sizes, self._sums, self.nbytes = array("q"), array("L"), 0

    def _write(self, plane: Tensor, offset: int) -> int:
        view = memoryview(plane.numpy()).cast("B")  # type: ignore[arg-type]
        written = 0
        while written < len(view):
            written += os.pwrite(self._file.fileno(), view[written:], offset + written)
        return zlib.crc32(view)

    def _finish_write(self) -> None:
        _, future = self._writes.popleft()
        try:
            self._sums.append(future.result())
        except OSError as error:
            raise OSError(
                error.errno,
                f"the trajectory's file cannot be written ({error.strerror}; {self.nbytes} bytes so far). Free space, or choose "
                "another directory for the strategy's buffer= or store=",
                str(self._directory),
            ) from error

    def _read_ahead(self) -> None:
        """Keeps the next planes coming. The offset of a plane is the sum of the sizes below it."""
        waiting = sum(self._sizes[len(self._sizes) - self._ahead :]) if self._ahead else 0
        while self._ahead < len(self._sizes) and (self._ahead == 0 or waiting < _IN_FLIGHT):
            self._ahead += 1
            size = self._sizes[-self._ahead]
            waiting += size
            offset = self.nbytes - waiting
            self._reads.append((offset, self._worker.submit(self._read, size, offset)))

    def _read(self, size: int, offset: int) -> bytearray:
        content = bytearray()
        while len(content) < size:
            piece = os.pread(self._file.fileno(), size - len(content), offset + len(content))
            if not piece:
                break
            content += piece
        return content

    def _drop_reads(self) -> None:
        self._reads.clear()
        self._ahead = 0


def _remove(file: IO[bytes], worker: ThreadPoolExecutor) -> None:
    worker.shutdown(wait=True, cancel_futures=True)
    file.close()
