"""Hashes of a run's states, in the order of its steps."""

from array import array

import numpy as np
from numpy.typing import NDArray

from reversible_hypergrad.reversible.lateness import LOOK_EVERY
from reversible_hypergrad.reversible.outcome import Outcome, read

__all__ = ["HashLog"]


class HashLog:
    """Last in, first out, 8 bytes each. One that is still on a GPU keeps its place and is filled in later, with many others."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._waiting: list[tuple[int, Outcome]] = []  # places to fill in

    def push(self, hash_: int | Outcome) -> None:
        """``hash_``: itself, or the outcome that brings it."""
        if isinstance(hash_, int):
            self._hashes.append(hash_)
        elif hash_.is_read:
            self._hashes.append(hash_.hash)
        else:
            self._waiting.append((len(self._hashes), hash_))
            self._hashes.append(0)
            if len(self._waiting) >= LOOK_EVERY:
                self.fill_in()

    def pop(self) -> int:
        self.fill_in()
        return self._hashes.pop()

    def top(self) -> int:
        """The one to pop next, which stays."""
        self.fill_in()
        return self._hashes[-1]

    def fill_in(self) -> None:
        """Waits for those that are still on a GPU."""
        if not self._waiting:
            return
        read(outcome for _, outcome in self._waiting)
        for place, outcome in self._waiting:
            self._hashes[place] = outcome.hash
        self._waiting.clear()

    @property
    def numbers(self) -> NDArray[np.int64]:
        """All of them, oldest first; a copy."""
        self.fill_in()
        return np.array(self._hashes, np.int64)

    def load(self, numbers: NDArray[np.int64]) -> None:
        """Becomes what had these ``numbers``."""
        self._hashes, self._waiting = array("q", numbers.tolist()), []

    @property
    def nbytes(self) -> int:
        return self._hashes.itemsize * len(self._hashes)
