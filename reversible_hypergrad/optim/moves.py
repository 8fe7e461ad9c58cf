"""A step of all parts, forward and back."""

from collections.abc import Callable, Sequence

from torch import Tensor

from reversible_hypergrad.errors import ReversalError
from reversible_hypergrad.optim.gradients import gather, refuse_missing
from reversible_hypergrad.optim.parts import CAUSES, Part
from reversible_hypergrad.reversible.lateness import Ticket
from reversible_hypergrad.reversible.outcome import Outcome, read
from reversible_hypergrad.reversible.record import Record, StepNumbers, combine

__all__ = ["Undoing", "step_parts", "take_back"]

Gradients = list[Tensor | None]  # of one part


def step_parts(
    parts: Sequence[Part],
    gradients: Sequence[Gradients],
    numbers: Sequence[StepNumbers],
    with_hash: bool,
    ticket: Ticket | None,
) -> tuple[list[Record], list[Outcome]]:
    """Moves every part by its gradients and numbers. With a ticket nobody looks at what came of it.

    Raises:
        FloatingPointError: if a gradient is not finite; all parts are as before then.
        OverflowError: if something left the range of floating-point numbers; all parts are as before then.
    """
    records: list[Record] = []
    outcomes: list[Outcome] = []
    for part, grads, chosen in zip(parts, gradients, numbers, strict=True):
        try:
            record, outcome = part.state.step(grads, chosen, part.hash, with_hash, look=ticket is None, ticket=ticket)
        except ArithmeticError:
            moved = len(records)
            take_back(parts[:moved], gradients[:moved], records, None)
            part.wrote()
            raise
        part.wrote(stepped=True)
        records.append(record)
        outcomes.append(outcome)
    return records, outcomes


def take_back(parts: Sequence[Part], gradients: Sequence[Gradients], records: Sequence[Record], ticket: Ticket | None) -> None:
    """Takes back the step just taken; with its ticket only if it was refused, which the device knows."""
    for part, record, grads in zip(parts, records, gradients, strict=True):
        part.state.retract(record, grads, ticket)
        if ticket is None:
            part.wrote()


class Undoing:
    """The last step on its way back. Constructing it moves the weights back; until :meth:`settle` all can be redone."""

    def __init__(self, parts: Sequence[Part], records: Sequence[Record]) -> None:
        self._work = list(zip(parts, records, strict=True))
        self._moved: list[Outcome] = []
        self._undone: list[Gradients] = []
        for part, record in self._work:
            self._moved.append(part.state.move_weights(record, back=True, with_hash=record.hash_before is not None))
            part.count(record, -1)
            part.wrote()

    def states(self, name: str, changed: Callable[[], str | None]) -> None:
        """Undoes the rest by the gradients that the parameters have now.

        Args:
            name: of the step, for the error.
            changed: says what is another than when the steps were taken, for the error.

        Raises:
            ReversalError: if they are not the step's gradients.
            RuntimeError: if one is sparse.
            TypeError: if one is of another dtype or device.
        """
        gradients = [gather(part.state.weights, part.state.names) for part, _ in self._work]
        for (part, record), grads in zip(self._work, gradients, strict=True):
            refuse_missing(part.state.names, record.active, grads)
        outcomes: list[Outcome] = []
        for (part, record), grads in zip(self._work, gradients, strict=True):
            outcomes.append(part.state.undo_states(record, grads, record.hash_before is not None))
            self._undone.append(grads)
        read([*self._moved, *outcomes])
        suspects = [
            part.suspects(outcome)
            for (part, record), weights, outcome in zip(self._work, self._moved, outcomes, strict=True)
            if not part.is_restored(record, outcome, combine(weights.hash, outcome.hash))
        ]
        if suspects:
            seen = changed()
            environment = f". The environment is another one than at the first step: {seen}" if seen else ""
            raise ReversalError(f"{name} did not restore the state before it (near {'; '.join(suspects)}). {CAUSES}{environment}")

    def redo(self) -> None:
        """Everything is again as before the step was undone."""
        done = len(self._undone)
        for (part, record), grads in zip(self._work, self._undone, strict=False):
            part.state.redo(record, grads)
        for part, record in self._work[done:]:
            part.state.move_weights(record, back=False)
        for part, record in self._work:
            part.count(record, 1)
            part.wrote()

    def settle(self) -> None:
        for part, record in self._work:
            part.hash = record.hash_before
