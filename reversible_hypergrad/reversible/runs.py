"""Rows of numbers, one per step, of which most are like the one before: kept once for as many steps as they hold."""

from array import array
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Runs"]

_UNKNOWN = object()


class Runs:
    """Last in, first out, run-length coded: a row costs its bytes and 8 more where it differs from the last one, else nothing.

    Args:
        width: numbers in a row.
        dtype: of them.

    >>> from reversible_hypergrad.reversible.runs import Runs
    >>> runs = Runs(2, "f8")
    >>> for lr in (0.1, 0.1, 0.2):
    ...     runs.push([lr, 0.9])
    >>> len(runs), runs.nbytes
    (3, 48)
    >>> runs.last(2)
    array([[0.1, 0.9],
           [0.2, 0.9]])
    """

    def __init__(self, width: int, dtype: DTypeLike) -> None:
        self._width, self._dtype = width, np.dtype(dtype)
        self._rows = bytearray()
        self._counts = array("q")
        self._length = 0
        self._latest: object = _UNKNOWN  # what the last row was read from

    def __len__(self) -> int:
        return self._length

    def push(self, row: object) -> None:
        """``row``: numbers, of any shape, that are never written to, so that the same object is the same row; None: zeros."""
        self._length += 1
        if row is self._latest:
            self._counts[-1] += 1
            return
        self._latest = row
        given = np.zeros(self._width, self._dtype) if row is None else np.asarray(row, self._dtype)
        new = given.tobytes()
        if self._counts and self._rows[len(self._rows) - len(new) :] == new:
            self._counts[-1] += 1
        else:
            self._rows += new
            self._counts.append(1)

    def pop(self) -> None:
        self._length -= 1
        self._counts[-1] -= 1
        if not self._counts[-1]:
            self._counts.pop()
            del self._rows[len(self._rows) - self._row_bytes :]
            self._latest = _UNKNOWN

    def last(self, count: int) -> NDArray[Any]:
        """The last ``count`` rows, oldest first; of shape (count, width)."""
        counts: list[int] = []
        missing = count
        while missing:
            counts.append(min(self._counts[-1 - len(counts)], missing))
            missing -= counts[-1]
        return np.repeat(self._latest_rows(len(counts)), counts[::-1], axis=0)

    @property
    def rows(self) -> NDArray[Any]:
        """The rows that differ from the one before, oldest first; a copy."""
        # In memory of their own: all empty buffers of Python's lie at one place, which torch.save refuses for several dtypes.
        return np.array(self._latest_rows(len(self._counts)))

    def _latest_rows(self, count: int) -> NDArray[Any]:
        begin = len(self._rows) - count * self._row_bytes
        return np.frombuffer(self._rows[begin:], self._dtype).reshape(count, self._width)

    @property
    def counts(self) -> NDArray[np.int64]:
        """For how many steps each of ``rows`` holds; a copy."""
        return np.array(self._counts, np.int64)

    def load(self, rows: NDArray[Any], counts: NDArray[np.int64]) -> None:
        """Becomes what had these ``rows`` and ``counts``."""
        self._rows, self._counts = bytearray(np.ascontiguousarray(rows, self._dtype).tobytes()), array("q", counts.tolist())
        self._length, self._latest = int(counts.sum()), _UNKNOWN

    @property
    def nbytes(self) -> int:
        return len(self._rows) + self._counts.itemsize * len(self._counts)

    @property
    def _row_bytes(self) -> int:
        return self._width * self._dtype.itemsize
