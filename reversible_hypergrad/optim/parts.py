"""The optimizer's bookkeeping: which tensors move together, and what each step leaves to undo it by."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from reversible_hypergrad.optim.settings import Settings
from reversible_hypergrad.optim.watch import Watch
from reversible_hypergrad.reversible.outcome import Outcome, hash_of
from reversible_hypergrad.reversible.record import Record, StepNumbers
from reversible_hypergrad.reversible.state import State
from reversible_hypergrad.reversible.step_log import StepLog

__all__ = ["CAUSES", "NumbersOf", "Part", "SettingsLately"]

NumbersOf = Callable[[Settings, int], StepNumbers]  # what a step with settings is given, of tensors that have taken so many
SettingsLately = Callable[[int, int], list[Settings]]  # a group's number, how many steps -> their settings, oldest first

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
    log: StepLog = field(init=False)  # of its steps
    given: tuple[Settings, list[int], StepNumbers] | None = None  # the last step's settings and counts, and what they came to
    offsets: NDArray[np.int64] = None  # type: ignore[assignment]  # how many more steps each tensor has taken than the part
    begun: NDArray[np.int64] = None  # type: ignore[assignment]  # the same at the part's start

    def __post_init__(self) -> None:
        self.watch = Watch(self.state.weights)
        self.log = StepLog(self.state)
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

    def numbers(self, settings: Settings, numbers_of: NumbersOf) -> StepNumbers:
        """Of the next step. Where they are those of the last one, its record shares them."""
        return self._numbers_at(settings, self.counts, numbers_of)

    def _numbers_at(self, settings: Settings, counts: list[int], numbers_of: NumbersOf) -> StepNumbers:
        """Of a step that is every tensor's step ``counts``."""
        if self.state.rule.linear:
            counts = [min(count, 1) for count in counts]  # it knows first steps from later ones, no more
        if self.given is None or self.given[:2] != (settings, counts):
            by_count = {count: numbers_of(settings, count) for count in dict.fromkeys(counts)}
            joined = len(by_count) > 1
            given = StepNumbers.joined([by_count[count] for count in counts]) if joined else by_count[counts[0]]
            self.given = settings, counts, given
        return self.given[2]

    def _given_lately(self, count: int, settings: SettingsLately, numbers_of: NumbersOf) -> list[StepNumbers]:
        """Of the last ``count`` steps, oldest first."""
        took_part = ~self.log.runs["inactive"].last(count)
        counts = np.array(self.counts) - np.cumsum(took_part[::-1], 0)[::-1]
        rows = zip(settings(self.group, count), counts.tolist(), strict=True)
        return [self._numbers_at(own, of_step, numbers_of) for own, of_step in rows]

    def push(self, record: Record, settings: SettingsLately, numbers_of: NumbersOf) -> None:
        """Its step was taken."""
        self.log.push(record, lambda count: self._given_lately(count, settings, numbers_of))
        self.count(record, 1)

    def last(self, settings: SettingsLately, numbers_of: NumbersOf) -> Record:
        """Of the last step, which is counted."""
        return self.log.last(lambda count: self._given_lately(count, settings, numbers_of))

    def limit_bits(self, settings: SettingsLately, numbers_of: NumbersOf) -> float:
        """What no method can stay below, in bits, for undoing its steps."""
        signs = int(self.moved.sum()) if self.state.rule.keeps_signs else 0
        return signs + self.log.limit_bits(lambda count: self._given_lately(count, settings, numbers_of))

    @property
    def moved(self) -> NDArray[np.int64]:
        """Of each tensor, its weights times the steps that moved them."""
        steps: NDArray[np.int64] = self.offsets + self.steps - self.begun
        return steps * self.state.sizes

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

    def take_off(self, settings: SettingsLately, numbers_of: NumbersOf) -> None:
        """The last step counts as not taken; the device knows already."""
        record = self.last(settings, numbers_of)
        self.log.pop()
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
