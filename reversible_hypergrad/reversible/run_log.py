"""What a run keeps of its steps beside the planes: hashes, and the fractions of the scales."""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reversible_hypergrad.reversible.hash_log import HashLog
from reversible_hypergrad.reversible.outcome import Outcome
from reversible_hypergrad.reversible.scales import ScaleState

__all__ = ["LOG_BYTES", "RunLog", "kinds_of"]

LOG_BYTES = 16  # per recorded step, where all tensors decay alike: a hash, a fraction

Integers = NDArray[np.int64]


class RunLog:
    """Last in, first out. All tensors of a run take part in every step, so tensors whose slots decay alike have one fraction.

    Args:
        kinds: of each tensor and slot, of shape (tensors, slots): slots with the same number decay by the same factors; negative:
            it never decays.
    """

    def __init__(self, kinds: Integers) -> None:
        self._kinds = kinds
        self._firsts = [tuple(np.argwhere(kinds == kind)[0].tolist()) for kind in range(int(kinds.max(initial=-1)) + 1)]
        self.hashes = HashLog()
        self._fractions = array("d")
        self._rooms: list[tuple[int, Integers]] = []  # steps that made room, and how much

    def push(self, step: int, before: ScaleState, after: ScaleState) -> None:
        """A step that moved the scales from ``before`` to ``after``."""
        self._fractions.extend(float(before.a[place]) for place in self._firsts)
        # The very same array, unless the step made room.
        if after.exponent is not before.exponent and (room := after.exponent - before.exponent).any():
            self._rooms.append((step, room))

    def pop(self, step: int, after: ScaleState) -> tuple[ScaleState, Integers | None]:
        """The scales before ``step``, but for their counts, which are those after it; and the room that it made, if any."""
        fractions = [self._fractions.pop() for _ in self._firsts]
        room = self._rooms.pop()[1] if self._rooms and self._rooms[-1][0] == step else None
        exponent = after.exponent if room is None else after.exponent - room
        # The last one: what never decays.
        return ScaleState(np.array([*fractions[::-1], 1.0])[self._kinds], after.count, exponent), room

    @property
    def nbytes(self) -> int:
        return self.hashes.nbytes + self._fractions.itemsize * len(self._fractions)

    def push_hash(self, hash_: int | Outcome) -> None:
        self.hashes.push(hash_)


def kinds_of(keys: Sequence[Sequence[object]]) -> Integers:
    """Numbers for equal keys, -1 for None; of shape (tensors, slots)."""
    known: dict[object, int] = {}
    return np.array([[-1 if key is None else known.setdefault(key, len(known)) for key in row] for row in keys], np.int64)
