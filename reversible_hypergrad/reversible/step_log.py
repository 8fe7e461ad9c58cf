"""What undoes the steps of a state: arrays that grow, whatever each step brought."""

from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reversible_hypergrad.reversible.hash_log import HashLog
from reversible_hypergrad.reversible.record import Record, StepNumbers
from reversible_hypergrad.reversible.runs import Runs
from reversible_hypergrad.reversible.scales import ScaleState
from reversible_hypergrad.reversible.signs import joined, split
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.storage.memory import MemoryPlanes

__all__ = ["MARK_EVERY", "TENSORS", "GivenLately", "StepLog"]

MARK_EVERY = 32  # steps, at most, from one kept moment of the scales to the next

# How many steps -> what the last so many were given, oldest first.
GivenLately = Callable[[int], list[StepNumbers]]

# As what a log is saved; how many there are does not depend on the number of steps.
TENSORS = {
    "planes": torch.uint8,
    "signs": torch.uint8,
    **dict.fromkeys(("planes_sizes", "signs_sizes", "hashes", "marks", "integers"), torch.int64),
    **dict.fromkeys(("limits", "fractions"), torch.float64),
    **dict.fromkeys(("hashed_rows", "inactive_rows", "unset_rows"), torch.bool),
    **dict.fromkeys(("owed_rows", "room_rows"), torch.int64),
    **dict.fromkeys(("hashed_counts", "inactive_counts", "unset_counts", "owed_counts", "room_counts"), torch.int64),
}

_IS_KNOWN = {known: np.array([known]) for known in (False, True)}


class StepLog:
    """Last in, first out. Some of the state's tensors may have taken no part in a step.

    The scales before a step follow from earlier ones, from what the steps since were given, and from who took part. So they are
    kept only now and then, and where something else changed them: at marks. Between marks, records are made again when they are
    asked for.

    Args:
        state: whose steps they are.

    Cost: per step 9 bytes if the state is hashed, and per tensor and slot 24 bytes at every mark.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        tensors, slots = len(state.sizes), state.slots
        self.runs = {
            "hashed": Runs(1, np.bool_),  # whether the hash before the step is known
            "inactive": Runs(tensors, np.bool_),
            "unset": Runs(tensors * (slots - 1), np.bool_),
            "owed": Runs(tensors * slots, np.int64),
            "room": Runs(tensors * slots, np.int64),
        }
        self.hashes = HashLog()
        self.planes, self.signs = MemoryPlanes(), MemoryPlanes()
        self.marks = array("q")  # how many steps had been taken
        self._limits = array("d")  # at each mark: what decays have destroyed so far, in bits
        self._fractions, self._integers = array("d"), array("q")  # at each mark: a; count, then exponent
        self._recent: list[Record] = []  # all since the last mark, without what else is kept of them; or none
        self._after: ScaleState | None = None  # the scales after the last step, if they are known

    def __len__(self) -> int:
        return len(self.runs["hashed"])

    def push(self, record: Record, given: GivenLately) -> None:
        """A step has been taken. Its planes, signs and hash are kept here from now on, not by the record.

        Args:
            given: of the steps before it.
        """
        if len(self) and self._after is None:
            self._after = self._latest(given).scales_after
        if self._after is None or len(self) - self.marks[-1] >= MARK_EVERY or not _same(record.scales, self._after):
            self._mark(record.scales)
        self._after = record.scales_after
        self.runs["hashed"].push(_IS_KNOWN[record.hash_before is not None])
        for name in ("inactive", "unset", "owed", "room"):
            self.runs[name].push(getattr(record, name))
        if record.hash_before is not None:
            self.hashes.push(record.hash_before)
        if record.plane_bytes:
            self.planes.push(record.planes)
        if record.signs is not None:
            self.signs.push(joined(record.signs, self._state.plane_bytes.tolist()))
        record.planes, record.signs, record.hash_before = self._state.no_planes, None, None
        self._recent.append(record)

    def last(self, given: GivenLately) -> Record:
        """The record of the last step. Its planes are valid until the next :meth:`push`.

        Args:
            given: of this step and those before it.
        """
        record, state = self._latest(given), self._state
        if record.plane_bytes:
            record.planes = self.planes.top()
        if state.rule.keeps_signs:
            record.signs = split(self.signs.top(), state.plane_bytes.tolist())
        if self.runs["hashed"].last(1)[0, 0]:
            record.hash_before = self.hashes.top()
        return record

    def pop(self) -> None:
        """The last step, whose record :meth:`last` has returned, is taken off."""
        record = self._recent.pop()
        if record.hash_before is not None:
            self.hashes.pop()
        if record.plane_bytes:
            self.planes.pop()
        if record.signs is not None:
            self.signs.pop()
        for runs in self.runs.values():
            runs.pop()
        self._after = record.scales
        if self.marks[-1] == len(self):
            self._unmark()

    def _latest(self, given: GivenLately) -> Record:
        if not self._recent:
            self._recent = self._made_again(given(len(self) - self.marks[-1]))
        return self._recent[-1]

    def _made_again(self, given: list[StepNumbers]) -> list[Record]:
        """The records since the last mark."""
        state, count, tensors = self._state, len(given), len(self._state.sizes)
        rows = {name: runs.last(count).reshape(count, tensors, -1) for name, runs in self.runs.items() if name != "hashed"}
        records, now = [], state.scales.state
        state.scales.state = self._moment(len(self.marks) - 1)
        try:
            for t, numbers in enumerate(given):
                inactive, room = rows["inactive"][t, :, 0], rows["room"][t]
                record = Record.of_decay(
                    state.scales,
                    numbers,
                    inactive if inactive.any() else None,
                    room if room.any() else None,
                    state.no_planes,
                )
                record.unset, record.owed = rows["unset"][t], rows["owed"][t]
                records.append(record)
        finally:
            state.scales.state = now
        return records

    # Marks

    def _mark(self, scales: ScaleState) -> None:
        self._limits.append(self._limits[-1] + self._limit_of_recent() if self.marks else 0.0)
        self.marks.append(len(self))
        self._fractions.frombytes(scales.a.tobytes())
        self._integers.frombytes(scales.count.tobytes() + scales.exponent.tobytes())
        self._recent.clear()

    def _unmark(self) -> None:
        self.marks.pop()
        self._limits.pop()
        numbers = len(self._state.sizes) * self._state.slots
        del self._fractions[-numbers:], self._integers[-2 * numbers :]
        self._after = None

    def _moment(self, mark: int) -> ScaleState:
        """The scales there."""
        shape = len(self._state.sizes), self._state.slots
        size = shape[0] * shape[1]
        fractions = np.array(self._fractions[mark * size : (mark + 1) * size])
        integers = np.array(self._integers[2 * mark * size : 2 * (mark + 1) * size], np.int64)
        return ScaleState(fractions.reshape(shape), *integers.reshape(2, *shape))

    def _limit_of_recent(self) -> float:
        """What the decays since the last mark have destroyed, in bits."""
        of_given: dict[int, NDArray[np.float64]] = {}  # per tensor; most steps share what they were given
        total, sizes = 0.0, np.array(self._state.sizes)
        for record in self._recent:
            key = id(record.given)
            if key not in of_given:
                of_given[key] = -np.log2(np.atleast_2d(record.given.factors)).sum(1) * sizes
            total += float(of_given[key].sum() if record.inactive is None else of_given[key][~record.inactive].sum())
        return total

    # As a whole

    def limit_bits(self, given: GivenLately) -> float:
        """What no method can stay below, log2(1/decay) summed over states, weights and steps."""
        if not len(self):
            return 0.0
        self._latest(given)
        return self._limits[-1] + self._limit_of_recent()

    @property
    def information_bytes(self) -> int:
        """Of planes and signs."""
        return self.planes.nbytes + self.signs.nbytes - len(self.signs) * len(self._state.sizes)

    @property
    def record_bytes(self) -> int:
        """Of everything else but the hashes."""
        kept = self.planes.held_bytes + self.signs.held_bytes - self.information_bytes
        return (
            kept
            + sum(runs.nbytes for runs in self.runs.values())
            + sum(own.itemsize * len(own) for own in self._arrays().values())
        )

    def _arrays(self) -> dict[str, "array[Any]"]:
        return {"marks": self.marks, "limits": self._limits, "fractions": self._fractions, "integers": self._integers}

    def pack(self) -> dict[str, Tensor]:
        """As :data:`TENSORS`, on the state's device. Copies."""
        arrays: dict[str, NDArray[Any]] = {"hashes": self.hashes.numbers}
        arrays.update({name: np.array(own) for name, own in self._arrays().items()})
        for name, runs in self.runs.items():
            arrays.update({f"{name}_rows": runs.rows, f"{name}_counts": runs.counts})
        device = self._state.x.device
        packed = {name: torch.from_numpy(table).to(device) for name, table in arrays.items()}
        for name, store in (("planes", self.planes), ("signs", self.signs)):
            packed[name], sizes = store.pack(device)
            packed[f"{name}_sizes"] = sizes.to(device)
        return packed

    def load(self, packed: Mapping[str, Tensor]) -> None:
        """Becomes the one that was packed, of a state of the same tensors. Copies."""
        arrays: dict[str, NDArray[Any]] = {n: packed[n].cpu().numpy() for n in TENSORS if n not in ("planes", "signs")}
        self.hashes.load(arrays["hashes"])
        for name, own in self._arrays().items():
            del own[:]
            own.frombytes(arrays[name].tobytes())
        for name, runs in self.runs.items():
            runs.load(arrays[f"{name}_rows"], arrays[f"{name}_counts"])
        for name, store in (("planes", self.planes), ("signs", self.signs)):
            store.load(packed[name].to(self._state.x.device), arrays[f"{name}_sizes"].tolist())
        self._recent, self._after = [], None


def _same(one: ScaleState, other: ScaleState) -> bool:
    pairs = ((one.a, other.a), (one.count, other.count), (one.exponent, other.exponent))
    return all(mine is theirs or np.array_equal(mine, theirs) for mine, theirs in pairs)
