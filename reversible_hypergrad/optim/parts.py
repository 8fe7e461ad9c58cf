"""The optimizer's bookkeeping: which tensors move together, and what each step leaves to undo it by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from reversible_hypergrad.optim.settings import Settings
from reversible_hypergrad.optim.watch import Watch
from reversible_hypergrad.reversible.outcome import Outcome, hash_of
from reversible_hypergrad.reversible.record import Record, StepNumbers
from reversible_hypergrad.reversible.state import State

__all__ = ["CAUSES", "Entry", "Part"]

CAUSES = (
    "The closure gave other gradients than step() saw, or the state was damaged. Likely causes: another batch, unseeded "
    "randomness (dropout, augmentation), another number of threads, another loss scale or clipping, a module that counts "
    "its calls. Undo with a closure that replays the step"
)


@dataclass
class Part:
    """Tensors of one group and device whose first gradient came in the same step: they move together."""

    group: int
    members: tuple[int, ...]  # positions in the group's "params"
    state: State
    fresh: bool = True  # its states were zero at the start, so without steps it need not exist
    steps: int = 0
    hash: int | Outcome | None = None  # of the present state, or who will know it; None: not computed at this step
    watch: Watch = field(init=False)
    given: tuple[Settings, list[int], StepNumbers] | None = None  # the last step's settings and counts, and what they came to
    offsets: NDArray[np.int64] = None  # type: ignore[assignment]  # how many more steps each tensor has taken than the part
    begun: NDArray[np.int64] = None  # type: ignore[assignment]  # the same at the part's start

    def __post_init__(self) -> None:
        self.watch = Watch(self.state.weights)
        if self.offsets is None:
            self.offsets = np.zeros(len(self.members), np.int64)
        if self.begun is None:
            self.begun = self.offsets
        if self.steps == 0:
            self.hash = self.state.hash()

    @property
    def at_fresh_start(self) -> bool:
        return self.fresh and self.steps == 0

    def count(self, record: Record, by: int) -> None:
        """``by``: 1 if its step was taken, -1 if it is undone."""
        self.steps += by
        if record.inactive is not None:
            self.offsets = self.offsets - by * record.inactive

    @property
    def counts(self) -> list[int]:
        """How many steps each tensor has taken."""
        taken: list[int] = (self.offsets + self.steps).tolist()
        return taken

    def numbers(self, settings: Settings, numbers_of: Callable[[Settings, int], StepNumbers]) -> StepNumbers:
        """Of the next step. Where they are those of the last one, its record shares them."""
        counts = self.counts
        if self.state.rule.linear:
            counts = [min(count, 1) for count in counts]  # it knows first steps from later ones, no more
        if self.given is None or self.given[:2] != (settings, counts):
            self.given = settings, counts, self.numbers_at(settings, counts, numbers_of)
        return self.given[2]

    @staticmethod
    def numbers_at(settings: Settings, counts: Sequence[int], numbers_of: Callable[[Settings, int], StepNumbers]) -> StepNumbers:
        """Of a step that is every tensor's step ``counts``."""
        by_count = {count: numbers_of(settings, count) for count in dict.fromkeys(counts)}
        return by_count[counts[0]] if len(by_count) == 1 else StepNumbers.joined([by_count[count] for count in counts])

    @property
    def at_start(self) -> list[int]:
        """Which tensors have taken no step since the part's start: their first weights show, to the last bit."""
        if self.offsets is self.begun:  # all have taken part in every step
            return [] if self.steps else list(range(len(self.members)))
        return np.flatnonzero(self.offsets + self.steps == self.begun).tolist()

    def wrote(self, stepped: bool = False) -> None:
        """After the kernels wrote the weights."""
        if not stepped:
            self.state.restore_initial(self.at_start)
        self.watch.wrote()
        torch.clear_autocast_cache()  # an autocast around all of training would go on with casts of the weights of before

    def take_off(self, record: Record) -> None:
        """The last step counts as not taken; the device knows already."""
        self.state.count_as_not_taken(record)
        self.hash = hash_of(record.hash_before)
        self.count(record, -1)

    def is_restored(self, record: Record, outcome: Outcome, hash_: int) -> bool:
        """Whether undoing by ``record`` ended where the step began, as far as it is checked."""
        if any(outcome.flags) or (record.hash_before is not None and hash_ != record.hash_before):
            return False
        return not self.at_fresh_start or self.state.is_empty()

    def suspects(self, outcome: Outcome) -> str:
        names = [name for name, flags in zip(self.state.names, outcome.flags, strict=True) if flags]
        return ", ".join((names or self.state.names)[:3])


@dataclass
class Entry:
    """One step: the settings of every group, and the record of every part that existed then."""

    settings: list[Settings]
    records: list[Record]
