"""The optimizer's bookkeeping: which tensors move together, and what each step leaves to undo it by."""

from collections.abc import Callable
from dataclasses import dataclass, field

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
    given: tuple[Settings, bool, StepNumbers] | None = None  # the last step's settings, and what they came to

    def __post_init__(self) -> None:
        self.watch = Watch(self.state.weights)
        if self.steps == 0:
            self.hash = self.state.hash()

    @property
    def at_fresh_start(self) -> bool:
        return self.fresh and self.steps == 0

    def numbers(self, settings: Settings, numbers_of: Callable[[Settings, bool], StepNumbers]) -> StepNumbers:
        """Of the next step. In most runs they are those of the last one, and its record shares them."""
        first = self.at_fresh_start
        if self.given is None or self.given[:2] != (settings, first):
            self.given = settings, first, numbers_of(settings, first)
        return self.given[2]

    def wrote(self, stepped: bool = False) -> None:
        """After the kernels wrote the weights: at the start the first weights show to the last bit."""
        if self.steps == 0 and not stepped:
            self.state.restore_initial()
        self.watch.wrote()

    def take_off(self, record: Record) -> None:
        """The last step counts as not taken; the device knows already."""
        self.state.count_as_not_taken(record)
        self.hash = hash_of(record.hash_before)
        self.steps -= 1

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
